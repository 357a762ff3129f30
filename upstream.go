package tp

import (
	"log/slog"
	"math/rand/v2"
	"time"
)

// The pauses before a server is dialled again, unless the peer's Redial says otherwise.
var clusterRedial = Redial{MinBackoff: 100 * time.Millisecond, MaxBackoff: 10 * time.Second}

// retireTime is how long the calls in flight to a server that the resolver has taken away may take.
const retireTime = 30 * time.Second

// startAll runs the upstreams that begin, and ends those that are over.
func startAll(began, over []*upstream) {
	for _, u := range over {
		u.member.Leave(sinceStart())
		u.cancel()
	}
	for _, u := range began {
		go u.run()
	}
}

// run keeps a session to the server until the upstream's context ends. It then ends the session: at once if
// the cluster is closed, and otherwise when its calls are over. A session of a peer that shuts down is left
// to that.
func (u *upstream) run() {
	bounds := u.fleet.peer.cfg.Redial
	if bounds == nil {
		bounds = &clusterRedial
	}
	without := time.Now()      // since when there has been no session that lasted
	var drains <-chan struct{} // closed when the last session that was asked to end has done so
	for u.ctx.Err() == nil {
		sess, err := u.fleet.peer.dialOnce(u.ctx, u.addr)
		if err != nil {
			u.failed(err)
			u.pause(rand.N(bounds.bound(time.Since(without)) + 1))
			continue
		}
		bound, since := bounds.bound(time.Since(without)), time.Now()
		gone := u.connected(sess)
		select {
		case <-gone:
		case <-u.ctx.Done():
			u.part(sess)
			return
		}
		away := sess.first.away.Load() // it shuts down, and a new process may have its address already
		atOnce := away
		if drains != nil && !isClosed(drains) {
			// The server may be one that ends nothing, whose every session costs a connection more.
			bound, atOnce = max(bound, bounds.MaxBackoff), false
		}
		if away {
			drains = u.drain(sess)
		}
		if lasted := time.Since(since); lasted >= bound || atOnce && lasted >= bounds.MinBackoff {
			without = time.Now()
			if atOnce {
				continue
			}
		}
		u.pause(rand.N(bounds.bound(time.Since(without)) + 1))
	}
}

// drain has the session end that the server wants to end: when the server ends it, and at the latest when
// retireTime is over and nothing is in flight. It returns a channel that is closed then.
func (u *upstream) drain(sess *Session) <-chan struct{} {
	over := make(chan struct{})
	go func() {
		defer close(over)
		timer := time.NewTimer(retireTime)
		defer timer.Stop()
		for {
			select {
			case <-sess.Done():
				return
			case <-u.ctx.Done():
				u.part(sess)
				return
			case <-timer.C:
			}
			if sess.first.idle() {
				_ = sess.Close()
				return
			}
			timer.Reset(time.Second)
		}
	}()
	return over
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// idle reports whether nothing is in flight on the connection in either direction.
func (cn *conn) idle() bool {
	return cn.pulls.Len() == 0 && cn.handlers.Load() == 0 && cn.streams.Len() == 0
}

// pause waits for the time d, or until the upstream's context ends.
func (u *upstream) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-u.ctx.Done():
	}
}

// failed keeps why the server could not be dialled.
func (u *upstream) failed(err error) {
	f := u.fleet
	if u.ctx.Err() != nil || f.peer.draining() {
		return
	}
	f.mu.Lock()
	u.err = err
	u.fails++
	isDown := u.fails == downAfter
	f.mu.Unlock()
	f.peer.log.rarelyAbout(u.id, LevelWarn, "dialling a server failed",
		"server %s of a cluster, at %s: %v; again soon", slog.String("server", u.id),
		slog.String("address", u.addr), errAttr(err))
	if isDown && f.option.subset > 0 {
		startAll(f.chooseAgain())
	}
}

// connected makes the session the one that takes calls, and returns a channel that is closed when it can take
// no more.
func (u *upstream) connected(sess *Session) (gone <-chan struct{}) {
	f, remote := u.fleet, sess.RemoteIp()
	f.mu.Lock()
	u.gone, u.err = make(chan struct{}), nil
	gone = u.gone
	wasDown := u.fails >= downAfter
	u.fails = 0
	f.sessions[sess] = struct{}{}
	u.linkLocked(sess, remote)
	f.publishLocked() // which leaves u out if it is over; run ends the session then
	f.mu.Unlock()
	if !sess.enter(u) {
		u.sessionEnded(sess)
	} else if !sess.first.usable() { // since before it entered
		u.sessionGoesAway(sess)
	}
	f.peer.log.rarelyAbout(u.id, LevelInfo, "connected to a server",
		"server %s of a cluster: connected to %s", slog.String("server", u.id), slog.String("remote", remote))
	if wasDown && f.option.subset > 0 {
		startAll(f.chooseAgain())
	}
	return gone
}

// sessionGoesAway is called when nothing more can be sent by the session, as the server shuts down.
func (u *upstream) sessionGoesAway(sess *Session) { u.lost(sess, errGoesAway, false) }

// sessionEnded is called when the session has ended, before its pulls complete: those that go to other
// servers then do not find this one any more.
func (u *upstream) sessionEnded(sess *Session) { u.lost(sess, sess.Err(), true) }

// part ends the session when the upstream is over.
func (u *upstream) part(sess *Session) {
	const least, most = 10 * time.Millisecond, time.Second
	late := time.NewTimer(retireTime)
	defer late.Stop()
	tick := time.NewTimer(least)
	defer tick.Stop()
	for pause := least; ; pause = min(2*pause, most) {
		select {
		case <-u.fleet.ended:
		case <-u.fleet.peer.closing: // which ends its sessions itself
			return
		case <-sess.Done():
		case <-late.C:
		case <-tick.C:
			if !sess.first.idle() {
				tick.Reset(pause)
				continue
			}
		}
		_ = sess.Close()
		return
	}
}
