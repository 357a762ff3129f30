package tp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/henrylee2cn/teleport/packet"
)

// resend is what a pull that may be sent more than once has beside its arguments.
type resend struct {
	ctx      context.Context
	settings []PacketSetting
	patience patience
	last     *pending // that it was launched with and that is not complete; nil if there is none
	entered  bool     // and in the table of pulls in flight, or was
}

// patience is how long a pull or a push waits for connections, in all.
type patience struct {
	until   time.Time // the end of the pull's time,
	maxWait time.Time // and of MaxWait; zero if there is none
}

func (r *redialer) resend(ctx context.Context, settings []PacketSetting) *resend {
	return &resend{ctx: ctx, settings: slices.Clone(settings), patience: r.patience(r.sess.peer.cfg.DefaultPullTimeout)}
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

// end returns when nobody waits any more, and why then.
func (r *redialer) waitsUntil(p patience) (time.Time, Xerror) {
	if !p.until.IsZero() && (p.maxWait.IsZero() || p.until.Before(p.maxWait)) {
		return p.until, unrun(StatusDeadlineExceeded, fmt.Sprintf("no connection within %v, nothing was sent", r.sess.peer.cfg.DefaultPullTimeout), nil)
	}
	return p.maxWait, unrun(StatusConnClosed, fmt.Sprintf("no connection for %v, nothing was sent", r.cfg.MaxWait), nil)
}

// await returns a connection that can be used, when there is one.
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
			return cn, unrun(StatusServiceUnavailable, "this peer is shutting down and has no connection, nothing was sent", nil)
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

// persist sends the command, which nobody else has, until it may have run, and
// completes it.
func (cmd *PullCmd) persist() {
	r, again := cmd.conn.sess.redial, cmd.again
	for {
		cn, x := r.await(again.ctx, again.patience)
		cmd.conn, cmd.Xerror = cn, nil
		cmd.seen.Store(nil)
		pd := cmd.newPending(again.ctx, true)
		again.last, again.entered = pd, false
		if x == nil {
			cmd.launch(again.ctx, pd, again.settings)
			cmd.await(again.ctx, pd)
		} else {
			cmd.missed(pd, x)
		}
		again.last = nil
		cmd.finish(pd)
		if x != nil || !cmd.refused() {
			return
		}
	}
}

// missed completes a pending pull that there was no connection for.
func (cmd *PullCmd) missed(pd *pending, x Xerror) {
	d := newDraft()
	defer d.put()
	w := &d.ownPacket
	if pd.seen != nil {
		w = &pd.seen.out
	}
	w.fill(&cmd.conn.peer.cfg, packet.TypePull, cmd.uri, cmd.args, cmd.again.settings)
	pd.sent(cmd.conn, w)
	pd.ended = nil // its number is of another connection
	pd.complete(x)
	pd.completed.Wait()
}

// refused reports whether the command, which is complete, is to be sent again.
func (cmd *PullCmd) refused() bool {
	return cmd.again != nil && !cmd.conn.usable() && NotRun(cmd.Xerror)
}

// push is Session.Push.
func (r *redialer) push(ctx context.Context, uri string, args interface{}, settings []PacketSetting) Xerror {
	p := r.patience(0)
	for {
		cn, x := r.await(ctx, p)
		if x != nil {
			return x
		}
		if x = cn.push(ctx, uri, args, settings); x == nil || cn.usable() || !NotRun(x) {
			return x
		}
	}
}
