package tp

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/henrylee2cn/teleport/internal/balance"
	"github.com/henrylee2cn/teleport/internal/uri"
)

// attempts is the course of one call by a cluster: which server it goes to, and which ones have refused it.
type attempts struct {
	c       *Cluster
	uri     string
	untimed bool          // a push or a stream, whose end does not say how long a call takes
	start   time.Duration // when the call began
	link    *link         // where the attempt under way has gone
	began   time.Duration // when that was
	late    bool          // some of the call's time has passed before the attempt
	tried   []*Session    // that have refused the call, or were lost
	// unsure is the error of an attempt that may have run.
	unsure Xerror
}

// maxAttempts is how many servers a call goes to at most.
const maxAttempts = 5

// next chooses the server for the next attempt, which has begun there. It waits for one if the cluster has
// none that may be called: as long as WaitForServer and ctx allow, and for the time bound after the call's
// start if that is not 0.
func (a *attempts) next(ctx context.Context, bound time.Duration, settings []PacketSetting) Xerror {
	now := a.c.fleet.choices.Load()
	if a.choose(now, settings) {
		return nil
	}
	if len(a.tried) > 0 && a.c.hasRoute(now, a.uri) { // those that there are have refused the call
		return unrun(StatusServiceUnavailable, "no other server for the call: "+a.c.fleet.String(), nil)
	}
	return a.await(ctx, bound, settings)
}

// choose is next without the wait.
func (a *attempts) choose(now *choices, settings []PacketSetting) bool {
	if len(now.links) == 0 {
		return false
	}
	call := balance.Call{Untimed: a.untimed}
	if a.c.option.hashes {
		call.Key = keyHash(settings)
	}
	l, at := a.c.pick(now, a.uri, call, a.tried)
	a.link, a.began = l, at
	if a.start == 0 {
		a.start = at
	}
	return l != nil
}

// keyHash returns the hash of the call's key, see WithKey. A call without one has a key of its own.
func keyHash(settings []PacketSetting) uint64 {
	for i := len(settings) - 1; i >= 0; i-- {
		if settings[i].kind == settingKey {
			return balance.Hash(settings[i].name)
		}
	}
	return rand.Uint64()
}

// pick chooses one of the servers and begins a call there. It returns nil if none may be called.
func (c *Cluster) pick(now *choices, uri string, call balance.Call,
	tried []*Session) (*link, time.Duration) {
	at := sinceStart()
	if !now.choosy && len(tried) == 0 { // which costs no memory
		l := now.links[0]
		if len(now.links) > 1 {
			l = now.links[c.option.policy.Pick(at, now.ends, call, nil)]
		}
		if l.usable() && !c.ejected(l, at) {
			l.end.Begin(at)
			return l, at
		}
	}
	i := c.pickOf(now, at, uri, call, tried)
	if i < 0 {
		return nil, at
	}
	now.ends[i].Begin(at)
	return now.links[i], at
}

// pickOf is pick with all that may speak against a server. One that is ejected is called if there is no
// other.
func (c *Cluster) pickOf(now *choices, at time.Duration, uri string, call balance.Call,
	tried []*Session) int {
	path := routeOf(uri)
	all := false
	skip := func(i int) bool {
		l := now.links[i]
		return slices.Contains(tried, l.sess) || !l.usable() || !l.has(path) || !all && c.ejected(l, at)
	}
	i := c.option.policy.Pick(at, now.ends, call, skip)
	if i < 0 {
		all = true
		i = c.option.policy.Pick(at, now.ends, call, skip)
	}
	return i
}

func (c *Cluster) ejected(l *link, at time.Duration) bool {
	return c.option.ejects && l.member.Skip(at, l.end.Awaited())
}

// hasRoute reports whether one of the servers that can be called has the route of the URI.
func (c *Cluster) hasRoute(now *choices, uri string) bool {
	path := routeOf(uri)
	return slices.ContainsFunc(now.links, func(l *link) bool { return l.usable() && l.has(path) })
}

// has reports whether the server has a route.
func (l *link) has(path string) bool { return len(l.routes) == 0 || anyRoute(l.routes, path) }

// routeOf returns the path of a URI as the other side reads it.
func routeOf(text string) string {
	if canonical, err := uri.Canonical(text); err == nil {
		text = canonical
	}
	path, _ := uri.Split(text)
	return path
}

// await is next while no server may be called.
func (a *attempts) await(ctx context.Context, bound time.Duration, settings []PacketSetting) Xerror {
	f := &a.c.fleet
	wait := a.c.option.wait
	if a.start == 0 {
		a.start = sinceStart()
	}
	if bound > 0 {
		wait = min(wait, bound-(sinceStart()-a.start))
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	over := wait <= 0
	for {
		now := f.choices.Load()
		if a.choose(now, settings) {
			a.late = true
			return nil
		}
		switch {
		case f.peer.draining():
			return unrun(StatusServiceUnavailable,
				"this peer is shutting down and has no server for the call, nothing was sent", ErrPeerClosed)
		case f.ctx.Err() != nil:
			return unrun(StatusConnClosed, "the cluster is closed, nothing was sent", ErrClusterClosed)
		case ctx.Err() != nil:
			x := ctxXerror(ctx, "nothing was sent, no server for the call: "+f.String())
			x.notRun = true
			return x
		case over:
			what := "no server for the call"
			if slices.ContainsFunc(now.links, (*link).usable) {
				what = fmt.Sprintf("no server has the route %s", quote(routeOf(a.uri)))
			}
			if wait > 0 {
				what += fmt.Sprintf(" within %v", wait.Round(time.Millisecond))
			}
			return unrun(StatusConnClosed, what+", nothing was sent: "+f.String(), nil)
		}
		select {
		case <-now.changed:
		case <-timer.C:
			over = true
		case <-ctx.Done():
		case <-f.ctx.Done():
		}
	}
}

// begin makes the command one of the attempt's session.
func (a *attempts) begin(ctx context.Context, cmd *PullCmd) *pending {
	cmd.conn = &a.link.sess.first
	if cmd.Xerror != nil { // of the attempt before
		cmd.Xerror = nil
		cmd.seen.Store(nil)
	}
	pd := cmd.newPending(ctx, cmd.done == nil)
	if a.late {
		pd.began = a.start
	}
	if a.c.option.reports && a.link.asks(a.began) {
		pd.load = &a.link.load
	}
	return pd
}

// over ends the attempt of a pull, with what has become of it.
func (a *attempts) over(x Xerror) {
	outcome, counts := outcomeOf(x)
	now := a.end(outcome)
	if counts {
		a.count(now, outcome != balance.OK)
	}
}

// end ends the attempt where it has begun, and returns the time.
func (a *attempts) end(outcome balance.Outcome) time.Duration {
	now := sinceStart()
	a.link.end.End(now, now-a.began, outcome)
	return now
}

// count tells the ejector how the attempt has ended.
func (a *attempts) count(now time.Duration, failed bool) {
	l, c := a.link, a.c
	if c.option.ejects && l.member.Count(now, failed) {
		c.peer.log.rarelyAbout(l.id, LevelWarn, "server ejected",
			"server %s of a cluster, at %s, gets no calls for some time: too many of them have failed",
			slog.String("server", l.id), slog.String("remote", l.remote))
	}
}

// outcomeOf returns what a call says of the server that it went to. It reports counts if the ejector is to
// know.
func outcomeOf(x Xerror) (outcome balance.Outcome, counts bool) {
	if x == nil {
		return balance.OK, true
	}
	switch code := x.Code(); {
	case !Local(x):
		switch code {
		case StatusOverloaded: // with one server less the others would have more to do
			return balance.Failed, false
		case StatusInternalServerError, StatusBadGateway, StatusServiceUnavailable,
			StatusGatewayTimeout:
			return balance.Failed, true
		}
		return balance.OK, true // what a handler has answered, or that there is none
	case code == StatusConnClosed || code == StatusWriteFailed && isWriteError(x):
		return balance.Failed, true
	case code == StatusOverloaded:
		return balance.Failed, false
	case code == StatusDeadlineExceeded: // as for how long, nobody knows
		return balance.Unanswered, true
	case NotRun(x):
		return balance.Untimed, false
	case code == StatusCanceled || code == StatusServiceUnavailable:
		return balance.Unanswered, false
	}
	return balance.OK, true // a reply that this side cannot take
}

// again reports whether the call is to go to another server, after an attempt that ended with x. Safe says
// that it may run twice.
func (a *attempts) again(ctx context.Context, x Xerror, safe bool) bool {
	if x == nil || len(a.tried) >= maxAttempts-1 || ctx.Err() != nil || a.c.peer.refusesPulls() {
		return false
	}
	local := Local(x)
	if NotRun(x) {
		if _, ok := Retryable(x); !ok || x.Code() == StatusDeadlineExceeded {
			return false
		}
	} else if !safe || !local || x.Code() != StatusConnClosed && x.Code() != StatusWriteFailed {
		return false
	}
	if !(local && NotRun(x)) && !a.c.budget.Take(sinceStart()) {
		return false
	}
	if !NotRun(x) {
		a.unsure = x
	}
	a.tried = append(a.tried, a.link.sess)
	a.late = true
	return true
}
