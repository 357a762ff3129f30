package tp

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// patience is how long a pull or a push waits for connections, in all.
type patience struct {
	until   time.Time // when the pull's time is over; zero for no bound
	maxWait time.Time // when Redial.MaxWait is over; zero for no bound
}

func (r *redialer) patience(timeout time.Duration) (p patience) {
	now := time.Now()
	if timeout > 0 {
		p.until = now.Add(timeout)
	}
	if r.cfg.MaxWait >= 0 {
		p.maxWait = now.Add(r.cfg.MaxWait)
	}
	return p
}

// waitsUntil returns when the wait for a connection is over, and the error to end it with; a zero time is no
// bound.
func (r *redialer) waitsUntil(p patience) (time.Time, Xerror) {
	if !p.until.IsZero() && (p.maxWait.IsZero() || p.until.Before(p.maxWait)) {
		return p.until, unrun(StatusDeadlineExceeded,
			fmt.Sprintf("no connection within %v, nothing was sent", r.sess.peer.cfg.DefaultPullTimeout), nil)
	}
	return p.maxWait, unrun(StatusConnClosed, fmt.Sprintf("no connection for %v, nothing was sent",
		r.cfg.MaxWait), nil)
}

// await waits for a connection that can be used and returns it. If there will be none in time, it returns the
// last connection and why.
func (r *redialer) await(ctx context.Context, p patience) (*conn, Xerror) {
	s := r.sess
	if cn := s.conn.Load(); cn.usable() {
		return cn, nil
	}
	late := make(<-chan time.Time)
	end, giveUp := r.waitsUntil(p)
	if !end.IsZero() {
		timer := time.NewTimer(time.Until(end))
		defer timer.Stop()
		late = timer.C
	}
	closing := s.peer.closing
	for {
		s.mu.Lock()
		cn := s.conn.Load()
		fails := r.cfg.FailFast && (r.failed || !cn.usable() && !cn.away.Load())
		closed, err, changed := s.state == stateClosed, r.err, r.changeLocked()
		if r.gaveUp != nil {
			fails, err = true, r.gaveUp
		}
		s.mu.Unlock()
		switch {
		case closed:
			return cn, s.closedXerror("connection closed, nothing was sent", nil)
		case cn.usable():
			return cn, nil
		case s.peer.draining():
			return cn, unrun(StatusServiceUnavailable,
				"this peer is shutting down and has no connection, nothing was sent", nil)
		case fails:
			text := "no connection, nothing was sent"
			if err != nil {
				text += ": " + err.Error()
			}
			var refused *refusedConn
			if errors.As(err, &refused) {
				return cn, refused.unrun()
			}
			return cn, unrun(StatusConnClosed, text, err)
		}
		select {
		case <-changed:
		case <-closing:
			closing = nil
		case <-late:
			return cn, giveUp
		case <-ctx.Done():
			return cn, notSent(ctx)
		}
	}
}
