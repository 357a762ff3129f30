package tp

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/teleport/internal/balance"
	"github.com/henrylee2cn/teleport/internal/printable"
)

// fleet is the servers of a cluster.
type fleet struct {
	peer   *Peer
	option clusterOptions
	// ctx ends with the cluster, and with the peer: nothing is dialled any more. ended is closed by the end
	// of the cluster.
	ctx    context.Context
	cancel context.CancelFunc
	ended  chan struct{}
	// choices is the servers that may be called now.
	choices atomic.Pointer[choices]
	ejector *balance.Ejector

	mu       sync.Mutex // guards the fields below, and some of every upstream's
	closed   bool
	list     []Server             // that the resolver has told of, without the wrong ones, by their ids
	servers  map[string]*upstream // by id: those of list that are to be connected
	order    []*upstream          // servers, by their ids
	sessions map[*Session]struct{}
	told     int    // how many lists have come
	err      error  // why the resolver has failed last; nil since a list came
	said     string // what String has returned at the time saidAt
	saidAt   time.Duration
}

// choices is the servers that may be called at one time. It is never changed.
type choices struct {
	links   []*link
	ends    []*balance.Endpoint // of links
	choosy  bool                // a server has not all routes
	changed chan struct{}       // closed when there are newer choices
}

// link is a session to a server that may be called.
type link struct {
	id     string // the server's
	sess   *Session
	remote string // the address and port of the session
	end    *balance.Endpoint
	member *balance.Member
	routes []string // that the server has; none means all
	// load is the link itself, as what the server tells of its load goes to.
	load  loadTaker
	asked atomic.Int64 // when the server was asked for its load last
}

// usable reports whether the session can take calls. One that has just ended is still among the choices until
// those who are to know of its end have been told, one after the other.
func (l *link) usable() bool { return !l.sess.closed.Load() && l.sess.first.usable() }

// askEvery is how often a server is asked for its load at most: many times in the time for which the balancer
// goes by what it has told.
const askEvery = 5 * time.Millisecond

// asks reports whether the server is to be asked for its load now.
func (l *link) asks(now time.Duration) bool {
	last := l.asked.Load()
	return (last == 0 || now-time.Duration(last) >= askEvery) && l.asked.CompareAndSwap(last, int64(now))
}

// set takes in what the server tells of its load with a reply.
func (l *link) set(calls int, delay time.Duration) { l.end.Report(sinceStart(), delay, calls) }

// upstream is one server of a fleet. It keeps a session to the server as long as the resolver tells of it,
// see upstream.go.
type upstream struct {
	fleet  *fleet
	id     string
	addr   string
	ctx    context.Context // ends with cancel, and with the fleet's context
	cancel context.CancelFunc
	member *balance.Member

	// The mu of fleet guards the fields below.
	server Server
	end    *balance.Endpoint
	link   *link         // nil while the server cannot be called
	gone   chan struct{} // closed when the session of link cannot be used any more
	err    error         // why there is no session
	fails  int           // attempts to dial that have failed in a row
}

// downAfter is after how many attempts to dial that have failed another server takes the place of one in a
// Subset. MostReplaced bounds how many places are taken so, or a client that is cut off would dial every
// server there is; with 100 of them it finds a server where nine of ten are down.
const downAfter, mostReplaced = 3, 100

func (f *fleet) init(peer *Peer, option clusterOptions) {
	f.peer, f.option, f.ended = peer, option, make(chan struct{})
	f.servers, f.sessions = make(map[string]*upstream), make(map[*Session]struct{})
	f.ejector = balance.NewEjector(option.ejector())
	f.choices.Store(&choices{changed: make(chan struct{})})
	f.ctx, f.cancel = context.WithCancel(context.Background())
}

// take makes the list that of the servers. It returns the upstreams that are to run now, and those that are
// over.
func (f *fleet) take(list []Server) (began, over []*upstream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed || f.ctx.Err() != nil {
		return nil, nil
	}
	f.told++
	f.list, f.err = list, nil
	return f.chooseLocked()
}

// chooseAgain is take for the list that there is, as other servers of it may have to be connected.
func (f *fleet) chooseAgain() (began, over []*upstream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed || f.ctx.Err() != nil {
		return nil, nil
	}
	return f.chooseLocked()
}

func (f *fleet) chooseLocked() (began, over []*upstream) {
	chosen := f.chosenLocked()
	left := f.servers
	f.servers, f.order = make(map[string]*upstream), nil
	for _, s := range chosen {
		u := left[s.Id]
		if u != nil && u.addr == s.Addr {
			delete(left, s.Id)
			u.changeLocked(s)
		} else {
			u = f.newUpstream(s)
			began = append(began, u)
		}
		f.servers[s.Id] = u
		f.order = append(f.order, u)
	}
	for _, u := range left {
		over = append(over, u)
	}
	f.publishLocked()
	return began, over
}

// chosenLocked returns the servers that the cluster is to be connected to: as many as it is to have, and one
// more for each of these that is down.
func (f *fleet) chosenLocked() []Server {
	for down := 0; ; {
		chosen, among := f.option.choose(f.list, down), 0
		for _, s := range chosen {
			if u := f.servers[s.Id]; u != nil && u.addr == s.Addr && u.fails >= downAfter {
				among++
			}
		}
		if among <= down {
			return chosen
		}
		down = among
	}
}

// choose returns the servers that the cluster is to be connected to, of which so many are down.
func (o *clusterOptions) choose(list []Server, down int) []Server {
	if o.subset == 0 || len(list) <= o.subset {
		return list
	}
	var near, far []string
	for _, s := range list {
		if o.zone != "" && s.Zone != o.zone {
			far = append(far, s.Id)
		} else {
			near = append(near, s.Id)
		}
	}
	down = min(down, max(mostReplaced, 3*o.subset))
	ids := balance.Subset(near, o.self, o.subset+down)
	if o.zone != "" {
		ids = append(ids, balance.Subset(far, o.self, max(1, o.subset/4, o.subset+down-len(near)))...)
	}
	chosen := make(map[string]bool, len(ids))
	for _, id := range ids {
		chosen[id] = true
	}
	return slices.DeleteFunc(slices.Clone(list), func(s Server) bool { return !chosen[s.Id] })
}

func (f *fleet) newUpstream(s Server) *upstream {
	u := &upstream{fleet: f, id: s.Id, addr: s.Addr, server: s,
		end: balance.NewEndpoint(f.config(s), sinceStart()), member: f.ejector.Join()}
	u.ctx, u.cancel = context.WithCancel(f.ctx)
	return u
}

// config returns what the balancer knows of the server beforehand.
func (f *fleet) config(s Server) balance.Config {
	return balance.Config{Weight: s.Weight, Hash: balance.Hash(s.Id),
		Preferred: f.option.zone == "" || s.Zone == f.option.zone}
}

// changeLocked takes in what the resolver says of the server now. The address is the same. What is known of
// the server from the calls stays known: a resolver may have another weight every second.
func (u *upstream) changeLocked(s Server) {
	was := u.server
	u.server = s
	if was.Weight != s.Weight || was.Zone != s.Zone {
		u.end = u.end.With(u.fleet.config(s))
	}
	if u.link != nil && (u.link.end != u.end || !slices.Equal(u.link.routes, s.Routes)) {
		u.linkLocked(u.link.sess, u.link.remote)
	}
}

// linkLocked makes the session the one by which the server is called.
func (u *upstream) linkLocked(sess *Session, remote string) {
	u.link = &link{id: u.id, sess: sess, remote: remote, end: u.end, member: u.member,
		routes: u.server.Routes}
	u.link.load = u.link
}

// publishLocked makes the choices of the servers that may be called now.
func (f *fleet) publishLocked() {
	before := len(f.choices.Load().links)
	now := &choices{changed: make(chan struct{}), links: make([]*link, 0, before+1),
		ends: make([]*balance.Endpoint, 0, before+1)}
	for _, u := range f.order { // for each connection, so it takes no look into the map
		if u.link != nil {
			now.links = append(now.links, u.link)
			now.ends = append(now.ends, u.link.end)
			now.choosy = now.choosy || len(u.link.routes) > 0
		}
	}
	close(f.choices.Swap(now).changed)
}

// failed keeps why the resolver has failed, and returns how many lists have come.
func (f *fleet) failed(err error) (told int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
	return f.told
}

// end takes all servers away, and returns the sessions that are left. It reports first the first time.
func (f *fleet) end() (sessions []*Session, first bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	first, f.closed = !f.closed, true
	f.servers, f.order = make(map[string]*upstream), nil
	f.publishLocked()
	return slices.Collect(maps.Keys(f.sessions)), first
}

// lost takes a session out, which cannot be used any more for the reason given. Ended says that it has ended.
func (u *upstream) lost(sess *Session, why error, ended bool) {
	f := u.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	if ended {
		delete(f.sessions, sess)
	}
	if u.link != nil && u.link.sess == sess {
		u.link, u.err = nil, why
		close(u.gone)
		f.publishLocked()
	}
}

// states returns what is known of the servers.
func (f *fleet) states() []ServerState {
	now := sinceStart()
	f.mu.Lock()
	defer f.mu.Unlock()
	states := make([]ServerState, 0, len(f.list))
	for _, s := range f.list {
		state := ServerState{Server: s}
		if u := f.servers[s.Id]; u != nil {
			state.Err, state.Outstanding = u.err, u.end.Outstanding()
			if state.Connected = u.link != nil; state.Connected {
				state.Ejected = f.option.ejects && u.member.Ejected(now)
				state.RemoteIp = u.link.remote
			}
		}
		states = append(states, state)
	}
	return states
}

// saidFor is for how long what String says of a server is good enough. There is nothing to be won for a few
// servers; with 10,000 of them each call that fails would cost milliseconds.
const (
	saidFor  = 10 * time.Microsecond
	fewToSay = 100
)

// String says in words what is known of the servers, for errors.
func (f *fleet) String() string {
	now := sinceStart()
	f.mu.Lock()
	if n := len(f.order); n > fewToSay && f.said != "" && now-f.saidAt < time.Duration(n)*saidFor {
		defer f.mu.Unlock()
		return f.said
	}
	known, connected, ejected, last, why := f.sumLocked(now)
	told, resolving := f.told, f.err
	f.mu.Unlock()
	text := fmt.Sprintf("servers: %d known, %d connected, %d ejected", known, connected, ejected)
	if told == 0 {
		text = "the resolver has told of no servers yet"
	}
	if resolving != nil {
		text += "; " + printable.Value(resolving, maxPrinted)
	}
	if why != nil {
		text += "; server " + quote(last) + ": " + printable.Value(why, maxPrinted)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.said, f.saidAt = text, now
	return text
}

// sumLocked counts the servers, and returns the id of one that cannot be called and why, if there is one.
func (f *fleet) sumLocked(now time.Duration) (known, connected, ejected int, last string, why error) {
	for _, u := range f.order {
		if u.link != nil {
			connected++
			if f.option.ejects && u.member.Ejected(now) {
				ejected++
			}
		}
		if u.err != nil {
			last, why = u.id, u.err
		}
	}
	return len(f.list), connected, ejected, last, why
}

// ServerState is what a [Cluster] knows of a server.
type ServerState struct {
	Server
	// Connected says that there is a session to the server by which calls may go. It is false while the
	// server is dialled, when it shuts down, and of servers beyond the cluster's [Subset].
	Connected bool
	// Ejected says that the connected server gets no calls for some time, as too many of them have failed;
	// see [Eject].
	Ejected bool
	// Outstanding is how many calls and streams of this cluster are in flight there.
	Outstanding int
	// RemoteIp is the address and port of the connection; empty if there is none.
	RemoteIp string
	// Err is why the server could not be connected to, or why it cannot be called any more; nil while it is
	// connected.
	Err error
}

// sinceStart is the time on the clock of package balance.
func sinceStart() time.Duration { return time.Since(processStart) }
