package tp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"
)

// maxOldConns is how many older connections of a session may wait for the other side to end them. When there
// are more, the session ends the oldest itself if no call is in flight there.
const maxOldConns = 4

// stayConnected is redialer.redial: it dials until the session has a connection that can be used and whose
// hooks have passed, or until the session has ended.
func (r *redialer) stayConnected() {
	s := r.sess
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := s.Done()
	go func() {
		select {
		case <-ended:
		case <-s.peer.closing:
		case <-ctx.Done():
		}
		cancel()
	}()
	hooks := r.hooks // PostConnect and PostReconnect hooks that have not ended
	for !r.rests() {
		if err := r.pause(ctx); err != nil {
			r.giveUp(err)
			return
		}
		if err, final := r.attempt(ctx); final {
			r.giveUp(fmt.Errorf("redialling is given up: %w", err))
			return
		} else if err != nil {
			s.peer.log.rarely(LevelWarn, "redialling failed", "session %s: dialling again: %v",
				slog.String("session", s.Id()), errAttr(err))
			continue
		}
		cn := s.conn.Load()
		s.peer.log.rarely(LevelInfo, "connected again", "session %s: connected again, to %s",
			cn.logAttrs()...)
		// Hooks may pull, and wait for a connection when this one goes.
		if hooks != nil {
			if _, ended := r.hooksEnd(cn, hooks); !ended {
				continue
			}
		}
		hooks = s.peer.chain.postReconnect.start(s)
		err, ended := r.hooksEnd(cn, hooks)
		if ended {
			hooks = nil
		}
		if err != nil {
			s.mu.Lock()
			r.failed = true
			s.mu.Unlock()
			if lasting(err) {
				_ = cn.end(err)
				r.giveUp(fmt.Errorf("redialling is given up: %w", err))
				return
			}
			_ = cn.fail(err)
		}
	}
}

// rests reports whether the session has a connection that can be used. If so stayConnected must return,
// because dialling is false from then on.
func (r *redialer) rests() bool {
	r.sess.mu.Lock()
	defer r.sess.mu.Unlock()
	if r.sess.conn.Load().usable() {
		r.dialling = false
		return true
	}
	return false
}

// pause waits before the next attempt. If there is to be no next attempt, pause returns why.
func (r *redialer) pause(ctx context.Context) error {
	s := r.sess
	s.mu.Lock()
	if r.gaveUp != nil {
		defer s.mu.Unlock()
		return r.gaveUp
	}
	away := s.conn.Load().away.Load()
	now := time.Now()
	lasted := now.Sub(r.since)
	if !r.failed && (lasted >= r.cfg.bound(r.since.Sub(r.without)) || away && lasted >= r.cfg.MinBackoff) {
		r.tries, r.without = 0, now
	}
	tries, err := r.tries, r.err
	bound := r.cfg.bound(now.Sub(r.without))
	s.mu.Unlock()
	r.awaitHooks(ctx)
	if n := r.cfg.Attempts; n > 0 && tries >= n {
		return fmt.Errorf("%d attempts in a row to dial again have failed: %w", tries, err)
	}
	if !away || tries > 0 {
		timer := time.NewTimer(rand.N(bound))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		return ErrPeerClosed // or the session has ended
	}
	return nil
}

// awaitHooks waits until the PostDisconnect hooks of earlier connections have ended, or ctx has.
func (r *redialer) awaitHooks(ctx context.Context) {
	r.sess.mu.Lock()
	hooked := r.hooked
	r.sess.mu.Unlock()
	if hooked != nil {
		select {
		case <-hooked:
		case <-ctx.Done():
		}
	}
}

// attempt tries each address once. It reports final if there is to be no other attempt.
func (r *redialer) attempt(ctx context.Context) (_ error, final bool) {
	var all error
	final = true
	for i := range r.addrs {
		at := (r.at + 1 + i) % len(r.addrs)
		err := r.dial(ctx, r.addrs[at])
		if err == nil {
			r.at = at
			return nil, false
		}
		final = final && lasting(err)
		if all = joinDialErrors(all, r.addrs, at, err); marked(err) {
			final = true
			break
		} else if ctx.Err() != nil {
			final = false
			break
		}
	}
	r.sess.mu.Lock()
	defer r.sess.mu.Unlock()
	r.tries++
	r.failed, r.err = true, all
	r.wakeLocked()
	return all, final
}

// dial makes another connection to addr and makes it the session's.
func (r *redialer) dial(ctx context.Context, addr string) error {
	s, p := r.sess, r.sess.peer
	dialCtx, cancel := bounded(ctx, p.cfg.DefaultDialTimeout)
	defer cancel()
	nc, asked, err := p.connect(dialCtx, addr)
	if err != nil {
		return err
	}
	cn := newConn(s, nc)
	p.sessions.attach(cn)
	s.mu.Lock()
	r.others = append(r.others, cn)
	open := s.state == stateOpen // otherwise nobody else will end the connection
	s.mu.Unlock()
	if !open {
		_ = cn.end(errClosedHere)
		return errClosedHere
	}
	from := p.dialledFrom(nil, asked)
	first, err := cn.runHandshake(dialCtx, &from)
	if err == nil {
		r.awaitHooks(ctx) // of a connection that has ended meanwhile
		if !r.adopt(cn) {
			err = errClosedInHandshake
		}
	}
	if err != nil {
		cn.linger()
		_ = cn.end(err)
		return err
	}
	cn.start(first)
	return nil
}

// adopt makes cn the session's connection. It reports false if cn or the session has ended.
func (r *redialer) adopt(cn *conn) bool {
	s := r.sess
	s.mu.Lock()
	defer s.mu.Unlock()
	if cn.ended.Load() || s.state != stateOpen {
		return false
	}
	r.forgetLocked(cn)
	if old := s.conn.Load(); !old.ended.Load() {
		r.others = append(r.others, old)
	}
	if len(r.others) > maxOldConns { // the other side goes away again and again
		if oldest := r.others[0]; oldest.handlers.Load() == 0 && oldest.pulls.Len() == 0 {
			go oldest.fail(errors.New("nothing is in flight, and it goes away"))
		}
	}
	cn.ready.Store(true)
	s.conn.Store(cn)
	r.tries++
	r.failed, r.err, r.since = false, nil, time.Now()
	r.wakeLocked()
	return true
}

// giveUp ends the redialling. The session ends when all of its connections have, so that calls in flight go
// on.
func (r *redialer) giveUp(cause error) {
	s := r.sess
	s.mu.Lock()
	r.dialling = false
	r.gaveUp = cause
	s.mu.Unlock()
	r.start()
}

// hooksEnd waits until the hooks have ended, for HookTimeout at most, and returns their error. It reports
// false if cn can no longer be used before the hooks have ended.
func (r *redialer) hooksEnd(cn *conn, hooks <-chan error) (err error, ended bool) {
	ctx, cancel := bounded(context.Background(), cn.peer.cfg.HookTimeout)
	defer cancel()
	for {
		r.sess.mu.Lock()
		changed := r.changeLocked()
		r.sess.mu.Unlock()
		if !cn.usable() {
			return nil, false
		}
		select {
		case err := <-hooks:
			return err, true
		case <-ctx.Done(): // nobody waits for them any more
			return fmt.Errorf("PostReconnect took longer than %v", cn.peer.cfg.HookTimeout), true
		case <-changed:
		}
	}
}

func newRedialer(cfg *Redial, addrs []string, at int) *redialer {
	now := time.Now()
	r := &redialer{cfg: cfg, addrs: addrs, at: at, since: now, without: now}
	r.redial = r.stayConnected
	return r
}
