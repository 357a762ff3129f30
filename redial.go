package tp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"
)

// Redial says how the sessions that a peer dials outlive their connections. When a
// connection is lost, or the other side says that it shuts down, the session dials
// again, runs the PostDial hooks on the new connection and goes on: the same Session,
// with its id and its Public values. A connection whose other side shuts down is kept
// until it has answered what it was sent.
//
// An error that another attempt would meet again ends the session instead: what
// [Permanent] says of an error, and where no address has failed in another way a refusal
// with StatusUnauthorized or StatusForbidden and an alert about this side's certificate.
//
// A pull or a push that certainly has not run, see [NotRun], because its connection
// has gone, is sent again by the next one, and its PreWrite and PostWrite hooks run
// again. What may have run never is: it fails with StatusConnClosed.
//
// On the other side the new connection is a new session. What it has to know about
// this one, who it is or what it subscribes to, is for PostDial and PostConnect
// hooks to tell.
type Redial struct {
	// Attempts is how many attempts in a row may fail before the session ends; zero
	// and negative values mean no bound. An attempt tries each address once. One whose
	// connection does not last as long as the next attempt might have waited for has
	// failed.
	Attempts int
	// Before each attempt a random time passes, between nothing and a bound ("full
	// jitter", as in "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
	// The bound is half the time for which the session has had no lasting connection,
	// but MinBackoff at least and MaxBackoff at most (100 ms, 30 s). When the other
	// side has said that it shuts down the first attempt is made at once.
	MinBackoff, MaxBackoff time.Duration
	// MaxWait is the longest that a pull or a push waits for a connection before it
	// fails with StatusConnClosed (30 s); a negative value means no bound. It counts
	// as part of the time that a pull may take.
	MaxWait time.Duration
	// FailFast makes pulls and pushes fail at once with StatusConnClosed while there
	// is no connection. When the other side shuts down they wait all the same, for the
	// first attempt to make a new one.
	FailFast bool
	// First makes [Peer.Dial] itself try again, as redialling does, when the server is not
	// there yet: until it succeeds, Attempts have failed, the peer is closed, the context of
	// DialContext ends, or the error is one that another attempt would meet again. Without
	// an end of these kinds Dial waits for ever; PeerConfig.DefaultDialTimeout bounds each
	// attempt. It is not for DialConn.
	First bool
}

// maxOldLinks is how many connections of a session may wait for their other sides to end them
// before those on which nothing is in flight are ended here.
const maxOldConns = 4

const (
	defaultMinBackoff = 100 * time.Millisecond
	defaultMaxBackoff = 30 * time.Second
	defaultMaxWait    = 30 * time.Second
)

// withDefaults returns a copy with the defaults filled in; nil for nil.
func (r *Redial) withDefaults() *Redial {
	if r == nil {
		return nil
	}
	c := *r
	orDefault(&c.MinBackoff, defaultMinBackoff)
	orDefault(&c.MaxBackoff, max(defaultMaxBackoff, c.MinBackoff))
	orDefault(&c.MaxWait, defaultMaxWait)
	return &c
}

// bound is the longest wait before an attempt when there has been no lasting
// connection for some time.
func (r *Redial) bound(without time.Duration) time.Duration {
	return min(max(without/2, r.MinBackoff), r.MaxBackoff)
}

// redialer keeps a session connected. There is at most one goroutine that runs run,
// while the session has no connection that can be used.
type redialer struct {
	sess  *Session
	cfg   *Redial
	addrs []string
	at    int          // the address that the session's connection is to; run's
	hooks <-chan error // of the session's first connection; nil if there are none

	// The session's mu guards the fields below.
	others   []*conn   // besides the session's connection: older ones, and one that is being made
	dialling bool      // run
	since    time.Time // when the session's connection was made,
	without  time.Time // and since when there has been none that lasted
	tries    int       // attempts in a row that came to nothing, as far as is known
	failed   bool      // the last attempt has
	err      error     // of the last attempt, or the end of the connection that it has made
	gaveUp   error     // why there will be no other connection; nil while there may be
	// changed is closed when who waits for a connection should look again; made when
	// somebody waits. hooked is that of the last connection that had PostDisconnect hooks.
	changed, hooked chan struct{}
}

func newRedialer(cfg *Redial, addrs []string, at int) *redialer {
	now := time.Now()
	return &redialer{cfg: cfg, addrs: addrs, at: at, since: now, without: now}
}

// survives reports whether the session goes on when the connection ends: because there can
// be another, or is.
func (r *redialer) survives(cn *conn) bool {
	s := r.sess
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state == stateOpen && (s.conn.Load() != cn || len(r.others) > 0 || !s.peer.draining())
}

// start has the session redial, if it needs to.
func (r *redialer) start() {
	s := r.sess
	s.mu.Lock()
	r.wakeLocked()
	cn := s.conn.Load()
	idle := !r.dialling && s.state == stateOpen && !cn.usable()
	cause := r.gaveUp
	if s.peer.draining() {
		cause = ErrPeerClosed
	}
	if idle && cause == nil {
		r.dialling = true
		go r.stayConnected()
	}
	over := idle && cause != nil && cn.ended.Load() && len(r.others) == 0
	s.mu.Unlock()
	if over {
		_ = s.shut(cause)
	}
}

// run redials until the session has a connection that can be used and its hooks have
// passed, or has ended.
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
			s.peer.rarely(LevelWarn, "redialling failed", "session %s: dialling again: %v", slog.String("session", s.Id()), errAttr(err))
			continue
		}
		cn := s.conn.Load()
		s.peer.rarely(LevelInfo, "connected again", "session %s: connected again, to %s", cn.logAttrs()...)
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

// rests ends run if the session has a connection that can be used.
func (r *redialer) rests() bool {
	r.sess.mu.Lock()
	defer r.sess.mu.Unlock()
	if r.sess.conn.Load().usable() {
		r.dialling = false
		return true
	}
	return false
}

// pause waits before the next attempt. An error is why there is to be none.
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

// awaitHooks waits for the PostDisconnect hooks.
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

// attempt tries each address once. It reports whether there is to be no other.
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

// dial makes the session another connection.
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

// adopt makes l the session's connection, unless it has been ended.
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
	if len(r.others) > maxOldConns { // of sides that go away again and again
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

// giveUp ends run. The session ends when its connections have: what is in flight goes on.
func (r *redialer) giveUp(cause error) {
	s := r.sess
	s.mu.Lock()
	r.dialling = false
	r.gaveUp = cause
	s.mu.Unlock()
	r.start()
}

// forbid ends the redialling for a reason that another attempt would meet again.
func (r *redialer) forbid(cause error) {
	r.sess.mu.Lock()
	defer r.sess.mu.Unlock()
	if r.gaveUp == nil {
		r.gaveUp = fmt.Errorf("redialling is given up: %w", cause)
	}
}

// hooksEnd waits until hooks have ended, for HookTimeout at most, and returns their
// error. It reports false if l cannot be used any more before that.
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

// changeLocked returns a channel that is closed when there is something new.
func (r *redialer) changeLocked() <-chan struct{} {
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
	return r.changed
}

func (r *redialer) wakeLocked() {
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

func (r *redialer) forgetLocked(cn *conn) {
	r.others = slices.DeleteFunc(r.others, func(other *conn) bool { return other == cn })
}

// linksLocked returns all connections of the session that may not have ended.
func (s *Session) connsLocked() []*conn {
	links := []*conn{s.conn.Load()}
	if s.redial != nil {
		links = append(links, s.redial.others...)
	}
	return links
}

// lostLocked is told that a connection has ended. It reports whether there are hooks to be
// told that the session has lost its connection.
func (s *Session) lostLocked(cn *conn, cause error) bool {
	lost := cn.ready.Load() && s.conn.Load() == cn
	hooks := lost && len(s.peer.chain.postDisconnect) > 0
	if r := s.redial; r != nil {
		if lost {
			r.err = cause
		}
		r.forgetLocked(cn)
		r.wakeLocked()
		if hooks {
			cn.hooked = make(chan struct{})
			r.hooked = cn.hooked
		}
	}
	return hooks
}

// disconnected runs the PostDisconnect hooks; the connection is counted as running until
// then.
func (cn *conn) disconnected(cause error) {
	s := cn.sess
	defer cn.handlerDone()
	if cn.hooked != nil {
		defer close(cn.hooked)
	}
	if err := s.peer.chain.postDisconnect.run(lostConn{s, cause}); err != nil {
		s.peer.rarely(LevelWarn, "hook failed", "session %s: %v", slog.String("session", s.Id()), errAttr(err), slog.String("remote", cn.remoteIp()))
	}
}

// lostConn is what PostDisconnect hooks are told.
type lostConn struct {
	sess  *Session
	cause error
}

// Peer is the local peer.
func (l lostConn) Peer() *Peer { return l.sess.peer }
