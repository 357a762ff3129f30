package tp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/henrylee2cn/teleport/internal/balance"
)

// Cluster is one client of a service that has many servers. It is used as a [Session] is: each call goes to
// one of the servers, to which the cluster keeps sessions of its own. Make it with [NewCluster]. All methods
// are safe for concurrent use.
type Cluster struct {
	peer     *Peer
	resolver Resolver
	option   clusterOptions
	fleet    fleet
	budget   *balance.Budget
	times    routeTimes // how long pulls take, for Hedge
	// standIn is the session of calls for which there was no server.
	standIn func() *Session
}

// ErrClusterClosed is what errors.Is finds in the errors of calls by a [Cluster] that is closed.
var ErrClusterClosed = errors.New("tp: the cluster is closed")

// NewCluster makes a client of all servers that the resolver tells of. The sessions are made by the peer, as
// [Peer.Dial] makes them: with its plugins and its TLS, but each lasts as long as its connection, whatever
// PeerConfig.Redial is. The cluster dials again itself: at once when a server says that it shuts down, and
// otherwise after random pauses within the bounds of PeerConfig.Redial, or of 100 ms to 10 s.
//
// A call goes to the better one of two servers chosen at random, unless an option says otherwise. The
// better one is that with the lower (calls in flight + 1) x latency / weight; the latency rises at once with
// a slow answer and falls slowly (the peak EWMA of Finagle). See [RoundRobin] and [ConsistentHash] for
// others. Servers whose calls fail get none for some time, see [Eject].
//
// A pull that certainly has not run, because it was not sent, the server shuts down or is overloaded, goes to
// another server: see [RetryBudget]. One that may have run fails as on a session, see [NotRun], unless it is
// [Idempotent]. What a handler answers is never tried again.
//
// The cluster works until [Cluster.Close], or the end of the peer. NewCluster returns at once: calls wait
// for the first connection, see [WaitForServer] and [Cluster.Ready]. It panics if the peer, the resolver or
// an option is nil.
func NewCluster(peer *Peer, r Resolver, option ...ClusterOption) *Cluster {
	switch {
	case peer == nil:
		panic("tp: NewCluster: the peer is nil.")
	case r == nil:
		panic("tp: NewCluster: the resolver is nil.")
	}
	c := &Cluster{peer: peer, resolver: r, option: defaultClusterOptions()}
	for i, set := range option {
		if set == nil {
			panic(fmt.Sprintf("tp: NewCluster: option %d of %d is nil.", i+1, len(option)))
		}
		set(&c.option)
	}
	if c.option.self == "" {
		c.option.self = fmt.Sprintf("%016x", rand.Uint64())
	}
	c.budget = balance.NewBudget(c.option.share, c.option.perSecond, sinceStart())
	c.standIn = sync.OnceValue(func() *Session { return peer.standIn("no server") })
	c.fleet.init(peer, c.option)
	go c.watch()
	go c.resolve()
	return c
}

// watch ends the cluster's context with the peer.
func (c *Cluster) watch() {
	select {
	case <-c.peer.closing:
	case <-c.fleet.ctx.Done():
	}
	c.fleet.cancel()
}

// Close ends the cluster's sessions, each as [Session.Close] does, and no more calls are made. It does not
// wait for the resolver. It may be called more than once and from anywhere.
func (c *Cluster) Close() error {
	sessions, first := c.fleet.end()
	if first {
		close(c.fleet.ended)
		c.fleet.cancel()
	}
	errs := make(chan error, len(sessions))
	for _, s := range sessions { // at the same time, since each may take a second
		go func() { errs <- s.Close() }()
	}
	var err error
	for range sessions {
		if e := <-errs; err == nil {
			err = e
		}
	}
	return err
}

// Ready waits until a server is connected. The error says what keeps the cluster from it; errors.Is finds in
// it why ctx has ended, [ErrClusterClosed] or [ErrPeerClosed].
func (c *Cluster) Ready(ctx context.Context) error {
	ctx = orNone(ctx)
	for {
		now := c.fleet.choices.Load()
		if slices.ContainsFunc(now.links, (*link).usable) {
			return nil
		}
		var err error
		select {
		case <-now.changed:
			continue
		case <-c.fleet.ctx.Done():
			if err = ErrClusterClosed; c.peer.draining() {
				err = ErrPeerClosed
			}
		case <-ctx.Done():
			err = ctx.Err()
		}
		return fmt.Errorf("tp: no server is connected, %s: %w", &c.fleet, err)
	}
}

// Servers returns the servers that the resolver has told of last, in the order of their ids, for pages of
// status and the like.
func (c *Cluster) Servers() []ServerState { return c.fleet.states() }

// resolve has the resolver tell of the servers, again and again, until the cluster's context ends.
func (c *Cluster) resolve() {
	const least, most = 100 * time.Millisecond, 30 * time.Second
	pause, told, logged := least, 0, ""
	for {
		err := c.resolveOnce()
		if c.fleet.ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("it has returned before its context ended, without an error")
		}
		if n := c.fleet.failed(fmt.Errorf("the resolver: %w", err)); n != told {
			told, pause, logged = n, least, "" // it has worked meanwhile
		}
		if err.Error() != logged { // once, and not as often as it is tried
			logged = err.Error()
			then := "the servers stay as they are, and it is tried again"
			if told == 0 {
				then = "no servers are known yet, and it is tried again"
			}
			c.peer.log.rarelyAbout(err.Error(), LevelWarn, "resolver failed",
				"the resolver of a cluster: %v; %v", errAttr(err), slog.String("then", then))
		}
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-timer.C:
		case <-c.fleet.ctx.Done():
			timer.Stop()
			return
		}
		pause = min(2*pause, most)
	}
}

// resolveOnce calls the resolver, whose panic is an error.
func (c *Cluster) resolveOnce() (err error) {
	defer func() {
		if p := recover(); p != nil {
			c.peer.log.panicked(LevelError, "a cluster's resolver", "", p)
			err = panicError(p)
		}
	}()
	return c.resolver.Resolve(c.fleet.ctx, c.update)
}

// update takes in the servers that the resolver tells of.
func (c *Cluster) update(servers []Server) {
	list := c.check(servers)
	if len(list) == 0 && len(servers) > 0 {
		return // which says nothing about the service
	}
	startAll(c.fleet.take(list))
	if len(list) == 0 {
		c.peer.log.rarely(LevelWarn, "no servers", "a cluster's resolver has told of no servers")
	}
}

// check returns the servers that can be what is meant, by their ids, and logs what is wrong with the others.
func (c *Cluster) check(servers []Server) []Server {
	list := make([]Server, 0, len(servers))
	ids := make(map[string]bool, len(servers))
	for i, s := range servers {
		if s.Id == "" {
			s.Id = s.Addr
		}
		if s.Weight == 0 {
			s.Weight = DefaultWeight
		}
		err := checkServer(s)
		if err == nil && ids[s.Id] {
			err = errors.New("another server has the same id")
		}
		if err != nil {
			c.peer.log.rarelyAbout(s.Id, LevelWarn, "wrong server",
				"the resolver of a cluster: server %d of %d, id %v, address %v, is left out: %v",
				slog.Int("server", i+1), slog.Int("of", len(servers)), slog.String("id", s.Id),
				slog.String("address", s.Addr), errAttr(err))
			continue
		}
		ids[s.Id] = true
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b Server) int { return strings.Compare(a.Id, b.Id) })
	return list
}

// checkServer returns what is wrong with a server.
func checkServer(s Server) error {
	if s.Weight < 0 || s.Weight > MaxWeight {
		return fmt.Errorf("the weight is %d, expected 0 to %d", s.Weight, MaxWeight)
	}
	if _, err := splitAddrs(s.Addr); err != nil {
		return err
	}
	for _, r := range s.Routes {
		if !strings.HasPrefix(r, "/") {
			return fmt.Errorf("the route %q does not begin with a slash", quote(r))
		}
	}
	return nil
}
