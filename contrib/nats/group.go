package nats

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/packet"
)

// Group is a group of sessions on all servers of the service. Its members on one server are a tp.Group of
// that server's peer with the same name. [Hub.Group] returns it; it is a name with options, and no more. All
// methods are safe for concurrent use.
type Group struct {
	h     *Hub
	name  string
	class *class // of its history; nil for none
}

// GroupOption sets up a group, see [Hub.Group].
type GroupOption func(*Group)

// Group returns the group with the name. Its options must be the same wherever the group is named, on all
// servers: a push goes to the subject of groups with these. A nil option panics.
func (h *Hub) Group(name string, option ...GroupOption) *Group {
	g := &Group{h: h, name: name}
	for i, set := range option {
		if set == nil {
			panic(fmt.Sprintf("nats: Group(%q): option %d of %d is nil.", name, i+1, len(option)))
		}
		set(g)
	}
	return g
}

// Name returns the group's name.
func (g *Group) Name() string { return g.name }

// Join makes a session of this server a member, until it leaves or ends. When Join returns the broker knows
// that this server has members; in a cluster of NATS its other members hear of that a moment later, and a
// push that begins there before that does not come. [Group.JoinAt] leaves no such gap.
//
// While the broker is away Join succeeds, and the member gets what is pushed on this server, and all when
// the broker is back; but for a group with a [History], whose first member on a server needs it: then the
// error wraps [ErrAway]. Otherwise errors are those of tp.Group.Join. A session that joins the tp.Group
// itself gets nothing from other servers if no other member has joined here.
func (g *Group) Join(sess *tp.Session) error {
	r, err := g.enter()
	if err != nil {
		return err
	}
	defer r.leave()
	return r.core.Join(sess)
}

// JoinAt makes a session of this server a member of a group with a [History] that may have missed pushes,
// wherever it was connected then: see tp.Group.JoinAt, and plugin/follow for the client's side. It gets the
// pushes after the position in order and once, and then those that come. It is told that it must start afresh
// if they are not all there, or are more than 16 MiB, or take longer than 5 s to read. Meanwhile the others
// get their pushes; members that need more of the history than the server remembers join one after the
// other. The error is that of tp.Group.JoinAt, or wraps [ErrAway].
func (g *Group) JoinAt(sess *tp.Session, at tp.Position) (tp.Recovery, error) {
	r, err := g.enter()
	if err != nil {
		return tp.Recovery{}, err
	}
	defer r.leave()
	if err := r.reach(g.h.ctx, at); err != nil {
		return tp.Recovery{}, err
	}
	join := func() (tp.Recovery, error) { return r.core.JoinAt(sess, at) }
	if r.log == nil {
		return join()
	}
	return r.log.joining(g.h.ctx, at, join)
}

// Leave ends the membership of a session of this server, and reports whether it was a member.
func (g *Group) Leave(sess *tp.Session) bool { return g.Local().Leave(sess) }

// Local returns the group of the members on this server: to have tp.Group.Watch tell of them, for example.
// A push to it goes to them alone, and fails if the group has a history.
func (g *Group) Local() *tp.Group { return g.h.peer.Group(g.name) }

// Push sends args to the URI of all members, on all servers, one way. It is encoded once, and one message
// of the broker. Each server gives it to its members as tp.Group.Push does, with what settings as tp.Latest
// say of those that are slow; tp.Every counts on each server for itself. Every member gets it once.
//
// The Delivery is what has become of the push on this server. Its Err is not nil if the push could not be
// made or not be sent to others. If it wraps [ErrAway] and tp.NotRun is not true of it, the members on this
// server have got it, and the others do not. What other servers have done is not known; a member that must
// not miss a push is one of a group with a [History].
//
// Pushes of one goroutine arrive in their order. Those of several servers arrive in an order that may be
// another one on each server, unless the group has a history: that puts all of them in one order.
//
// Hooks of pushes run on each server, and see the body encoded.
func (g *Group) Push(uri string, args interface{}, setting ...tp.PacketSetting) tp.Delivery {
	h := g.h
	if h.isClosed() {
		return tp.Delivery{Err: closed()}
	}
	if h.nc == nil {
		return g.core().Push(uri, args, setting...)
	}
	p, x := h.peer.Carry(uri, args, setting...)
	if x != nil {
		return tp.Delivery{Err: x}
	}
	p.Header.Type = packet.TypePush
	spread := tp.SpreadOf(setting...)
	m := &message{kind: kindGroup, number: h.waiting.last.Add(1), from: h.id, name: g.name,
		more: spreadText(spread)}
	b, err := m.withFrame(p)
	if err != nil {
		return tp.Delivery{Err: tp.WithNotRun(tp.NewXerror(tp.StatusWriteFailed,
			"nothing was sent: "+err.Error()))}
	}
	if c := g.classNow(); c != nil {
		return tp.Delivery{Err: h.histories.append(c, g.name, m.number, b)}
	}
	x = h.publish(h.subj.group(g.name), "", b)
	if x != nil && !errors.Is(x, ErrAway) {
		return tp.Delivery{Err: x}
	}
	var d tp.Delivery
	if r := h.room(g.name); r != nil {
		d = r.core.Push(uri, p.Body, append(settings(p), spread.Settings()...)...)
	}
	if x != nil && d.Err == nil {
		d.Err = unknown(tp.StatusServiceUnavailable, errors.Join(ErrAway, x),
			"only the members on this server have got the push: %s", x.Text())
	}
	return d
}

// classNow returns the history's class: that of the group, or of its members here.
func (g *Group) classNow() *class {
	if g.class == nil {
		if r := g.h.room(g.name); r != nil {
			return r.class
		}
	}
	return g.class
}

// core returns the group of this server, with its history where there is no broker.
func (g *Group) core() *tp.Group {
	if g.class != nil && g.h.nc == nil {
		return g.h.peer.Group(g.name, tp.History(g.class.size, g.class.age))
	}
	return g.h.peer.Group(g.name)
}

// spreadText encodes what settings say of the delivery; nil for nothing. Sessions that are left out are
// sessions of one server, which it does by itself.
func spreadText(s tp.Spread) []byte {
	s.Except = nil
	if s.Latest == "" && s.Every == 0 && s.DropOldest == 0 && !s.Disconnect {
		return nil
	}
	b, _ := json.Marshal(s)
	return b
}

// spreadSettings decodes what spreadText has encoded. The error says that it is none.
func spreadSettings(b []byte) (list []tp.PacketSetting, err error) {
	if len(b) == 0 {
		return nil, nil
	}
	var s tp.Spread
	if err = json.Unmarshal(b, &s); err == nil && (s.Every < 0 || s.After < 0 ||
		s.DropOldest < 0 || s.DropOldest > math.MaxInt32) {
		err = errForeign
	}
	if err != nil {
		return nil, err
	}
	s.Except = nil
	return s.Settings(), nil
}

// room is a group that has members on this server, or is about to have some.
type room struct {
	h     *Hub
	name  string
	core  *tp.Group
	class *class
	log   *groupLog // nil without a history
	stop  func()    // ends the watch of the members
	ready chan struct{}
	err   error // when ready is closed: why there is no room
	sub   *nats.Subscription
	// turn is held, by its one place, by who gives pushes to the members, so that this may wait.
	turn chan struct{}
	// Who has the turn uses the fields below.
	sure   time.Time // when the members were known to have missed nothing
	lastAt time.Time // when the last push was kept, by the broker's clock; zero if that is not known
	// The hub's mu guards the fields below.
	entered int  // goroutines that are about to make members
	over    bool // the room is none of the hub's any more

	dropped int // pushes that the subscription has lost; only beats uses it
}

// room returns the room, nil if there is none.
func (h *Hub) room(name string) *room {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rooms[name]
}

// enter returns the group's room, which stays until leave is called, and as long as it has members.
func (g *Group) enter() (*room, error) {
	h := g.h
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil, fmt.Errorf("nats: group %q: %w", g.name, ErrClosed)
	}
	r := h.rooms[g.name]
	first := r == nil
	if first {
		r = &room{h: h, name: g.name, class: g.class}
		r.ready, r.turn = make(chan struct{}), make(chan struct{}, 1)
		h.rooms[g.name] = r
	}
	r.entered++
	h.mu.Unlock()
	if first {
		r.err = r.open(g)
		close(r.ready)
	}
	<-r.ready
	err := r.err
	if err == nil && g.class != nil && (r.class == nil || *r.class != *g.class) {
		err = fmt.Errorf("nats: group %q was joined here with another history, or without one", g.name)
	}
	if err != nil {
		r.leave()
		return nil, err
	}
	return r, nil
}

// open makes the room ready for members.
func (r *room) open(g *Group) (err error) {
	h := r.h
	if h.nc != nil && r.class != nil {
		if err = h.histories.open(r); err != nil {
			return err
		}
	} else {
		r.core = g.core()
	}
	r.stop = r.core.Watch(func(e tp.GroupEvent) {
		if e.Len == 0 {
			r.mayEnd()
		}
	})
	if h.nc != nil && r.class == nil {
		if r.sub, err = h.nc.Subscribe(h.subj.group(r.name), r.pushed); err != nil {
			r.stop()
			return fmt.Errorf("nats: group %q: %w", r.name, err)
		}
		h.flush()
	}
	return nil
}

// leave undoes what enter has done.
func (r *room) leave() {
	r.h.mu.Lock()
	r.entered--
	r.h.mu.Unlock()
	r.mayEnd()
}

// mayEnd ends the room if nobody needs it.
func (r *room) mayEnd() {
	h := r.h
	h.mu.Lock()
	end := r.entered == 0 && !r.over && (r.err != nil || r.core.Len() == 0)
	if end {
		r.over = true
		if h.rooms[r.name] == r {
			delete(h.rooms, r.name)
		}
	}
	h.mu.Unlock()
	if end && r.err == nil {
		r.end()
	}
}

// end ends what the room has.
func (r *room) end() {
	r.h.mu.Lock()
	r.over = true
	r.h.mu.Unlock()
	select {
	case <-r.ready:
	case <-time.After(flushTime): // the hub is closed while the room is being made
	}
	if r.stop != nil {
		r.stop()
	}
	if r.sub != nil {
		_ = r.sub.Unsubscribe() // an error says that the connection is closed
	}
}

// isOver reports whether the room is none any more. Another one with its name may be there.
func (r *room) isOver() bool {
	r.h.mu.Lock()
	defer r.h.mu.Unlock()
	return r.over
}

// pushed gives the members what was pushed on another server.
func (r *room) pushed(m *nats.Msg) {
	msg, err := parse(m.Data)
	if err != nil || msg.kind != kindGroup || msg.name != r.name {
		r.h.foreign(m, errors.Join(errForeign, err))
		return
	}
	if msg.from == r.h.id || r.isOver() {
		return
	}
	r.give(m.Subject, &msg)
}

// give gives a push to the members, with more settings.
func (r *room) give(subject string, msg *message, more ...tp.PacketSetting) {
	p, err := msg.packet()
	var set []tp.PacketSetting
	if err == nil {
		set, err = spreadSettings(msg.more)
	}
	if err != nil {
		r.h.lines.warnf("a push to group %s on %s is lost: %s", r.name, subject, err)
		return
	}
	set = append(append(settings(p), set...), more...)
	if d := r.core.Push(p.Header.Uri, p.Body, set...); d.Err != nil {
		r.h.lines.warnf("a push to group %s is lost here: %s", r.name, d.Err)
	}
}

// checkDropped looks whether the subscriptions of rooms have lost pushes, as they came faster than they could
// be given on.
func (h *Hub) checkDropped() {
	h.mu.Lock()
	var list []*room
	for _, r := range h.rooms {
		list = append(list, r)
	}
	h.mu.Unlock()
	for _, r := range list {
		select {
		case <-r.ready:
		default:
			continue
		}
		if r.err != nil || r.sub == nil {
			continue
		}
		n, err := r.sub.Dropped()
		if err != nil || n == r.dropped {
			continue
		}
		h.lines.warnf("%d pushes to group %s were lost here, as more came than could be given on",
			n-r.dropped, r.name)
		r.dropped = n
		if r.log != nil {
			h.start(func() { r.check(h.ctx) })
		}
	}
}

// checksAtOnce is how many rooms look at once what they have missed.
const checksAtOnce = 16

// checkSoon has the room with the name look what it has missed, if it has a history, or all rooms for an
// empty name. However often that is asked for there is one goroutine for it.
func (h *Hub) checkSoon(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || name != "" && h.rooms[name] == nil {
		return
	}
	if h.checks == nil {
		h.checks = make(map[string]bool)
		h.tasks.Go(h.runChecks)
	}
	h.checks[name] = true
}

// runChecks does what checkSoon was called for, until nothing is left.
func (h *Hub) runChecks() {
	for {
		h.mu.Lock()
		names := h.checks
		if len(names) == 0 || h.ctx.Err() != nil {
			h.checks = nil
			h.mu.Unlock()
			return
		}
		h.checks = make(map[string]bool)
		h.mu.Unlock()
		h.checkRooms(names)
	}
}

// checkRooms has the rooms of the names look what they have missed.
func (h *Hub) checkRooms(names map[string]bool) {
	if names[""] {
		h.histories.refresh(h.ctx)
	}
	h.mu.Lock()
	var list []*room
	for _, r := range h.rooms {
		if r.class != nil && (names[""] || names[r.name]) {
			list = append(list, r)
		}
	}
	h.mu.Unlock()
	next := make(chan *room)
	var workers sync.WaitGroup
	for range min(checksAtOnce, len(list)) {
		workers.Go(func() {
			for r := range next {
				r.checkReady(h.ctx)
			}
		})
	}
	for _, r := range list {
		next <- r
	}
	close(next)
	workers.Wait()
}

// checkReady is check when the room is ready.
func (r *room) checkReady(ctx context.Context) {
	select {
	case <-r.ready:
		if r.err == nil && r.h.nc != nil {
			r.check(ctx)
		}
	case <-ctx.Done():
	}
}

// take takes the room's turn, and reports false if ctx has ended before.
func (r *room) take(ctx context.Context) bool {
	select {
	case r.turn <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (r *room) giveBack() { <-r.turn }
