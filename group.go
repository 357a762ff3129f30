package tp

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"weak"
)

// A Group is a set of sessions of one peer to which pushes go together: a room, a topic, a region of a
// map. [Peer.Group] returns the group with a name. A push to a group is encoded once, whatever the number
// of its members, see [Group.Push]. A session leaves its groups when it ends. All methods are safe for
// concurrent use.
type Group struct {
	peer *Peer
	name string
	// stands is the session that hooks of pushes to the group see; it is made when it is first needed.
	stands func() *Session
	// history has the last pushes; nil if they are not kept. Only passes use it.
	history atomic.Pointer[agedLog]
	opening sync.Once

	mu        sync.Mutex // guards the fields below
	members   map[*Session]*member
	list      []*member // the members, never changed once it is made; nil when it must be made again
	seq       uint64    // of the last push that was added
	pending   []*groupPush
	bytes     int                   // of pending
	dead      int                   // how many of pending others have replaced
	heldBytes int                   // of those in paces
	keys      map[string]int        // where in pending the latest push of a key is, in a tick
	due       bool                  // pending is to be sent now
	passing   bool                  // a goroutine sends
	tick      time.Duration         // see Batch
	ticks     *time.Timer           // of the tick that has begun; nil between ticks
	paces     map[string]*groupPush // by key of Every, what is held back; nil for nothing yet
	watchers  []*watcher
	events    []told      // for the watchers
	telling   bool        // a goroutine calls the watchers
	stays     *time.Timer // keeps the group for its history's sake
}

// Group returns the peer's group with the name. The first call makes it. The group exists as long as it
// has members, is watched, or the program holds it in a variable, and with it what was set by
// [Group.Batch] and [History]. One that is set up before it has members stays until they have come and
// left, or for the history's age; but a program that sets up a group had better hold it. A [History]
// given with a later call is that of the group if it has none yet. A nil option panics.
func (p *Peer) Group(name string, option ...GroupOption) *Group {
	g := p.group(name)
	for i, set := range option {
		if set == nil {
			panic(fmt.Sprintf("tp: Group(%q): option %d of %d is nil.", name, i+1, len(option)))
		}
	}
	if len(option) > 0 {
		g.opening.Do(func() {
			var o groupOptions
			for _, set := range option {
				set(&o)
			}
			g.history.Store(o.open(name))
			g.stay()
		})
	}
	return g
}

func (p *Peer) group(name string) *Group {
	for {
		old, ok := p.groups.Load(name)
		if ok {
			if g := old.(weak.Pointer[Group]).Value(); g != nil {
				return g
			}
			p.groups.CompareAndDelete(name, old)
		}
		g := newGroupOf(p, name)
		ref := weak.Make(g)
		if _, taken := p.groups.LoadOrStore(name, ref); !taken {
			runtime.AddCleanup(g, func(name string) { p.groups.CompareAndDelete(name, ref) }, name)
			return g
		}
	}
}

func newGroupOf(p *Peer, name string) *Group {
	return &Group{peer: p, name: name, members: make(map[*Session]*member),
		stands: sync.OnceValue(func() *Session { return p.standIn("group " + name) })}
}

// Name returns the group's name.
func (g *Group) Name() string { return g.name }

// Join makes the session a member: pushes to the group that begin from now on go to the session, until it
// leaves or ends. A member may join again, which changes nothing. A session whose handshake is not over
// may join in a PostAccept hook, and gets pushes when the handshake is over. The error says that the
// session has ended, or belongs to another peer.
func (g *Group) Join(sess *Session) error {
	if err := g.check("Join", sess); err != nil {
		return err
	}
	if err := g.join(sess); err != nil {
		return err
	}
	sess.askForCredit()
	return nil
}

func (g *Group) join(sess *Session) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.joinLocked(sess, g.seq)
}

func (g *Group) check(method string, sess *Session) error {
	switch {
	case sess == nil:
		return fmt.Errorf("tp: %s of group %q: the session is nil", method, g.name)
	case sess.peer != g.peer:
		return fmt.Errorf("tp: %s of group %q: session %q is of another peer, a group has sessions of its "+
			"own peer", method, g.name, sess.Id())
	}
	return nil
}

func (g *Group) joinLocked(sess *Session, after uint64) error {
	if g.members[sess] != nil {
		return nil
	}
	if !sess.enter(g) {
		return fmt.Errorf("tp: Join of group %q: session %q has ended", g.name, sess.Id())
	}
	g.members[sess] = &member{sess, after}
	g.changedLocked(sess, true)
	return nil
}

// Leave ends the session's membership and reports whether it was a member. Pushes to the group that have
// begun may still go to the session.
func (g *Group) Leave(sess *Session) bool {
	if sess == nil || !sess.leave(g) {
		return false
	}
	g.sessionEnded(sess)
	return true
}

// sessionEnded takes the session out. The session does not count the group among its own any more.
func (g *Group) sessionEnded(sess *Session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.members[sess] == nil {
		return
	}
	delete(g.members, sess)
	g.changedLocked(sess, false)
}

// Members returns the sessions that are members now, in no set order.
func (g *Group) Members() []*Session {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := make([]*Session, 0, len(g.members))
	for sess := range g.members {
		all = append(all, sess)
	}
	return all
}

// Len returns how many members there are.
func (g *Group) Len() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.members)
}

// GroupEvent says that a session has joined a group or has left it.
type GroupEvent struct {
	Group   *Group
	Session *Session
	Joined  bool // true: it has joined; false: it has left, or has ended
	Len     int  // how many members there were then
}

type watcher struct{ f func(GroupEvent) }

// Watch has f called when a session joins the group, leaves it or ends, from now on: one event after
// another, in their order, on a goroutine of its own. An f that takes long holds up later events, which
// wait in memory. The group exists as long as it is watched. Stop ends that; f may still be called for an
// event that it is about to see.
func (g *Group) Watch(f func(GroupEvent)) (stop func()) {
	if f == nil {
		panic(fmt.Sprintf("tp: Watch of group %q: the function is nil.", g.name))
	}
	w := &watcher{f}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.watchers = append(slices.Clone(g.watchers), w)
	g.peer.heldGroups.Store(w, g)
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.watchers = slices.DeleteFunc(slices.Clone(g.watchers), func(x *watcher) bool { return x == w })
		g.peer.heldGroups.Delete(w)
	}
}

func (g *Group) stay() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stayLocked()
}

// stayLocked keeps a group without members for as long as its history has something.
func (g *Group) stayLocked() {
	log := g.history.Load()
	if log == nil || len(g.members) > 0 {
		return
	}
	if g.stays == nil {
		g.stays = time.AfterFunc(log.age, func() { runtime.KeepAlive(g) })
	} else {
		g.stays.Reset(log.age)
	}
}

// changedLocked notes that a session has joined or left.
func (g *Group) changedLocked(sess *Session, joined bool) {
	g.list = nil
	g.stayLocked()
	if len(g.members) == 0 {
		g.peer.heldGroups.Delete(g)
	}
	if len(g.watchers) == 0 {
		return
	}
	g.events = append(g.events, told{GroupEvent{g, sess, joined, len(g.members)}, g.watchers})
	if !g.telling {
		g.telling = true
		go g.tell()
	}
}

// told is an event for those who watched then.
type told struct {
	event    GroupEvent
	watchers []*watcher
}

// tell calls the watchers until there are no events.
func (g *Group) tell() {
	through := false
	defer func() {
		if !through { // a watcher has called runtime.Goexit
			go g.tell()
		}
	}()
	for {
		e, ok := g.nextEvent()
		if !ok {
			through = true
			return
		}
		for _, w := range e.watchers {
			g.tellOne(w, e.event)
		}
	}
}

// nextEvent takes out the first event. If there is none nobody tells any more.
func (g *Group) nextEvent() (told, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.events) == 0 {
		g.events, g.telling = nil, false
		return told{}, false
	}
	e := g.events[0]
	g.events = g.events[1:]
	return e, true
}

func (g *Group) tellOne(w *watcher, e GroupEvent) {
	defer func() {
		if p := recover(); p != nil {
			g.peer.log.panicked(LevelError, "a watcher of group", g.name, p)
		}
	}()
	w.f(e)
}

// listLocked returns the members for a pass.
func (g *Group) listLocked() []*member {
	if g.list == nil {
		g.list = make([]*member, 0, len(g.members))
		for _, m := range g.members {
			g.list = append(g.list, m)
		}
	}
	return g.list
}

var errStandIn = errors.New("it stands for the sessions of a group, to which a push goes")

// standIn returns a session for hooks that look at a push which goes to many. It has ended, and its
// address is the name given.
func (p *Peer) standIn(name string) *Session {
	s := &Session{peer: p, state: stateClosed, cause: errStandIn, left: true}
	s.closed.Store(true)
	s.id.Store(&name)
	s.first.init(s, nowhere(name))
	s.conn.Store(&s.first)
	_ = s.first.sock.Close()
	return s
}
