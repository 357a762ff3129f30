// Package follow keeps a client's position in groups with a history, so that after a reconnect the client
// catches up: it gets exactly the pushes that it has missed, in order and once, or is told that it must
// start afresh.
//
//	follower := follow.New(follow.Afresh(func(sess *tp.Session, group string) {
//		... load all of it again ...
//	}))
//	client := tp.NewPeer(&tp.PeerConfig{Redial: &tp.Redial{}}, follower, rejoin)
//
// The server's part is [tp.History] and [tp.Group.JoinAt], which a handler of the server's calls with the
// position that the client sends: a hook that runs on every connection, PostConnect, pulls that handler.
// See the package's example.
//
// A position moves when the handler of a push has returned or panicked, and never back. Pushes that come
// again, because the client has joined again while a handler was running for example, are dropped before
// they are handled. The handlers of a group's pushes must be handled in order, as those of a session are:
// [tp.Unordered] is not for them.
package follow

import (
	"slices"
	"strings"
	"sync"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/option"
	"github.com/henrylee2cn/teleport/internal/weakset"
	"github.com/henrylee2cn/teleport/packet"
)

// Follower is the plugin: for a peer, the client's, of which it follows the sessions that the peer has
// dialled. [New] makes one; the zero value has no options. All methods are safe for concurrent use.
type Follower struct {
	afresh func(sess *tp.Session, group string)
	peers  weakset.Set[tp.Peer]

	mu     sync.Mutex // guards the map and what is in it
	groups map[string]*followed
}

// An Option is for New.
type Option func(*Follower)

// Afresh has f called when the client could not catch up with the group: pushes are missing, and what
// they were about must be loaded in another way. f is called in the order of the session's pushes, before
// the first push that comes after the gap is handled, on the goroutine of a push handler. The position is
// the new one already.
func Afresh(f func(sess *tp.Session, group string)) Option {
	return func(w *Follower) { w.afresh = f }
}

// New makes a Follower. A nil option panics.
func New(o ...Option) *Follower {
	w := new(Follower)
	option.Apply("follow", w, o)
	return w
}

// Name is the plugin's name.
func (w *Follower) Name() string { return "follow" }

// Position returns how far the client has come with the group: the pushes up to there have been handled.
// It is what the client sends to join again, and what a program stores that wants to go on after a
// restart. The zero Position says that nothing is known of the group.
func (w *Follower) Position(group string) tp.Position {
	w.mu.Lock()
	defer w.mu.Unlock()
	if f := w.groups[group]; f != nil {
		return f.at
	}
	return tp.Position{}
}

// Set makes at the position in the group: one that was stored, before the client joins.
func (w *Follower) Set(group string, at tp.Position) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if f := w.followedLocked(group); f != nil {
		f.at = at
		f.beginLocked(at)
	}
}

// Forget forgets the group: for a client that has left it for good.
func (w *Follower) Forget(group string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.groups, group)
}

// followed is what is known of one group. The Follower's mu guards it.
type followed struct {
	at     tp.Position // all pushes up to there have been handled
	marked bool        // the server says where members are: pushes of another epoch are late ones
	// What has come is of the epoch, and after the floor. What is not handled yet, or comes after such a
	// push, is in pushes, and its numbers in order.
	epoch  string
	floor  uint64
	pushes map[uint64]*push
	order  []uint64
	stuck  bool // there were too many
}

// push is one that has come.
type push struct {
	call any // the hooks' context
	over bool
	lost bool // it was dropped, and was not handled
}

// maxGroups is how many groups are followed at most, whatever the other side says of groups: pushes of
// others are handled as they come.
const maxGroups, maxName = 4096, 256

// maxPushes is how many pushes of a group that are not handled, or come after one that was lost, are
// remembered. When there are more the position stays where it is, and all that comes after it comes again
// when the client joins again.
const maxPushes = 16 << 10

// followedLocked returns what is known of the group; nil if there are too many.
func (w *Follower) followedLocked(group string) *followed {
	f := w.groups[group]
	if f == nil && len(w.groups) < maxGroups && len(group) <= maxName {
		f = new(followed)
		if w.groups == nil {
			w.groups = make(map[string]*followed)
		}
		w.groups[group] = f
	}
	return f
}

// beginLocked has pushes come that are after the position. Those that have come before do not count any
// more.
func (f *followed) beginLocked(at tp.Position) {
	f.epoch, f.floor = at.Epoch, at.Seq
	f.pushes, f.order, f.stuck = make(map[uint64]*push), nil, false
}

// acceptLocked reports whether a push is to be handled.
func (f *followed) acceptLocked(at tp.Position, call any) bool {
	switch {
	case f.epoch == "" || f.epoch != at.Epoch && !f.marked:
		f.at = tp.Position{Epoch: at.Epoch, Seq: at.Seq - 1}
		f.beginLocked(f.at)
	case f.epoch != at.Epoch, at.Seq <= f.floor:
		return false
	}
	if len(f.order) >= maxPushes {
		f.pushes, f.order, f.stuck = make(map[uint64]*push), nil, true
	}
	if f.stuck {
		return true
	}
	if p := f.pushes[at.Seq]; p != nil && !p.lost {
		return false
	} else if p == nil {
		i, _ := slices.BinarySearch(f.order, at.Seq)
		f.order = slices.Insert(f.order, i, at.Seq)
	}
	f.pushes[at.Seq] = &push{call: call}
	return true
}

// overLocked says that the push has been handled, or lost.
func (f *followed) overLocked(at tp.Position, call any, lost bool) {
	p := f.pushes[at.Seq]
	if p == nil || p.call != call || f.epoch != at.Epoch {
		return
	}
	p.call, p.over, p.lost = nil, !lost, lost
	for len(f.order) > 0 && f.pushes[f.order[0]].over {
		f.floor = f.order[0]
		f.at = tp.Position{Epoch: f.epoch, Seq: f.floor}
		delete(f.pushes, f.floor)
		f.order = f.order[1:]
	}
}

// positionOf returns which push of which group the packet is; false if it is none of a group with a
// history.
func positionOf(h *packet.Header) (group string, at tp.Position, ok bool) {
	if h.Type != packet.TypePush || h.Meta[tp.MetaGroup] == "" {
		return "", at, false
	}
	at, err := tp.ParsePosition(h.Meta[tp.MetaAt])
	return h.Meta[tp.MetaGroup], at, err == nil && at.Epoch != ""
}

// joined reports whether the packet says where a member is that has joined.
func joined(h *packet.Header) bool {
	path, _, _ := strings.Cut(h.Uri, "?")
	return path == tp.JoinedURI
}

// followedKey marks a session that is followed.
type followedKey struct{}

// PostDial has this side follow the session, on its new connection: what the other sides of accepted
// sessions say of groups does not count.
func (w *Follower) PostDial(fore tp.ForeSession) error {
	if p := fore.Peer(); w.peers.Add(p) {
		tp.HandlePush(p.PushRouter, tp.JoinedURI, w.joined)
	}
	fore.Session().Public().Store(followedKey{}, true)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.groups {
		f.marked = false
		if f.stuck {
			f.beginLocked(f.at)
		}
	}
	return nil
}

// PostReadHeader drops pushes that have come before: its error wraps [tp.ErrDuplicate].
func (w *Follower) PostReadHeader(ctx tp.ReadCtx) error {
	h := ctx.Input().Header
	group, at, ok := positionOf(h)
	if !ok {
		return nil
	}
	if _, is := ctx.Session().Public().Load(followedKey{}); !is {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.followedLocked(group)
	if f == nil {
		return nil
	}
	if joined(h) {
		f.marked = true
		f.beginLocked(at)
		return nil
	}
	if at.Seq == 0 || !f.acceptLocked(at, ctx) {
		return tp.ErrDuplicate
	}
	return nil
}

// joined handles what says where a member is that has joined.
func (w *Follower) joined(ctx tp.PushCtx, _ *struct{}) {
	meta := ctx.Meta()
	group := meta[tp.MetaGroup]
	at, err := tp.ParsePosition(meta[tp.MetaAt])
	if _, is := ctx.Session().Public().Load(followedKey{}); !is || group == "" || err != nil {
		return
	}
	w.mu.Lock()
	// Another one may have come since that says something else.
	if f := w.groups[group]; f != nil && f.epoch == at.Epoch {
		f.at = at
	}
	w.mu.Unlock()
	if meta[tp.MetaAfresh] != "" && w.afresh != nil {
		w.afresh(ctx.Session(), group)
	}
}

// PostCall moves the position when a push has been handled.
func (w *Follower) PostCall(ctx tp.CallCtx) error {
	h := ctx.Input().Header
	group, at, ok := positionOf(h)
	if !ok || joined(h) {
		return nil
	}
	code, _ := ctx.Status()
	lost := code == tp.StatusOverloaded || code == tp.StatusConnClosed || code == tp.StatusServiceUnavailable
	w.mu.Lock()
	defer w.mu.Unlock()
	if f := w.groups[group]; f != nil {
		f.overLocked(at, ctx, lost)
	}
	return nil
}
