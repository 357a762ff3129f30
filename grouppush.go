package tp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"
	"weak"

	"github.com/henrylee2cn/teleport/packet"
)

// A push to a group is made on the caller's goroutine and added to the group's pending pushes. One
// goroutine at a time makes a pass: it takes what is pending and gives it to every member, without any
// lock, so that all members get the pushes of a group in one order. Who comes meanwhile waits for that
// pass, and makes the next one for all who have come.

const (
	// maxBatch is how many bytes may wait for the end of a tick, and how many Every may hold back;
	// maxPaces is for how many keys.
	maxBatch = 1 << 20
	maxPaces = 64 << 10
)

// Push sends args to the URI of every member, one way, as [Session.Push] does to one. The packet is
// encoded, and compressed, once. Push does not wait for members that are slow: for those the push waits
// in memory, up to [PeerConfig].MaxSessionOutput bytes for each member. What becomes of older ones the
// settings say:
//
//   - without one of these all of them wait, and a member that lets more wait than may is cut off: its
//     connection ends. So does that of one that takes nothing for the write timeout;
//   - [DropOldest] drops older pushes of the group;
//   - [Latest] replaces an older push with the same key;
//   - [Every] does that too, and lets a push with the key go once in a while only, to all members;
//   - [Disconnect] cuts off a member that has taken nothing for some time.
//
// As Push does not wait, a loop of pushes is faster than any member, and in the end all of them are cut
// off: a program that has so much to say must slow down by itself. Where the peer's memory is at its end
// those that have taken nothing for a second are cut off first. What waits for many members is counted as
// memory once.
//
// All members get the pushes of a group in the same order, except that one which replaces another one has
// its place. Pushes that wait for a slow member may be passed by what is sent to the session alone. A
// member of which the connection is lost, and that redials, misses what is pushed meanwhile; see
// [History].
//
// PreWritePush and PostWritePush hooks run once for the push. The session that they see stands for all
// members: it has ended, and has no address but "group " and the name.
func (g *Group) Push(uri string, args interface{}, setting ...PacketSetting) Delivery {
	return g.push(nil, uri, args, setting)
}

// Except leaves one session out of a push to a group: the one that the push has come from, for example.
// Several leave out several. Except is for [Group.Push] and [Peer.Broadcast] only, and has no effect on
// other packets.
func Except(sess *Session) PacketSetting { return PacketSetting{kind: settingExcept, other: sess} }

// Broadcast pushes args to the URI of all sessions of the peer for which the filter, called once for
// each, returns true; a nil filter stands for all. Broadcasts of a peer go out one after another; between
// a broadcast and a push to a group there is no order. For the rest see [Group.Push].
func (p *Peer) Broadcast(filter func(sess *Session) bool, uri string, args interface{},
	setting ...PacketSetting) Delivery {
	to := []*member{}
	p.RangeSession(func(sess *Session) bool {
		if filter == nil || filter(sess) {
			to = append(to, &member{sess: sess})
		}
		return true
	})
	return p.everybody().push(to, uri, args, setting)
}

// everybody is the group that broadcasts go by, which has no members.
func (p *Peer) everybody() *Group {
	type broadcasts struct{}
	g, ok := p.heldGroups.Load(broadcasts{})
	if !ok {
		g, _ = p.heldGroups.LoadOrStore(broadcasts{}, newGroupOf(p, "of all sessions"))
	}
	return g.(*Group)
}

func (g *Group) push(to []*member, uri string, args interface{}, settings []PacketSetting) Delivery {
	p := &groupPush{to: to}
	every := p.settings(g, uri, settings)
	if x := g.encode(p, uri, args, settings); x != nil {
		return Delivery{Err: x}
	}
	g.mu.Lock()
	if every > 0 && g.heldBackLocked(p, every) {
		defer g.mu.Unlock()
		p.queued.Store(g.reachLocked(p))
		return p.delivery()
	}
	g.addLocked(p)
	if to == nil && g.tick > 0 && !(g.passing && g.bytes >= maxBatch) {
		defer g.mu.Unlock()
		p.queued.Store(g.reachLocked(p))
		g.tickLocked()
		return p.delivery()
	}
	g.awaitPassLocked(p)
	return p.delivery()
}

// awaitPassLocked waits until p, which is pending, is through, and unlocks mu. It makes the pass if
// nobody does.
func (g *Group) awaitPassLocked(p *groupPush) {
	g.due = true
	if g.passing {
		turn := make(chan bool, 1)
		p.turn = turn
		g.mu.Unlock()
		if !<-turn {
			return
		}
		g.mu.Lock()
	}
	g.passing = true
	g.passLocked()
}

// settings takes in those that are about the push's delivery.
func (p *groupPush) settings(g *Group, uri string, settings []PacketSetting) (every time.Duration) {
	p.policy.Of = g
	for _, s := range settings {
		switch s.kind {
		case settingLatest:
			p.policy.Key = "=" + s.name // no URI
		case settingEvery:
			every = s.every
		case settingDropOldest:
			p.policy.Most = int(s.level)
		case settingDisconnect:
			p.policy.Cut, p.policy.After = true, s.every
		case settingExcept:
			if sess, _ := s.other.(*Session); sess != nil {
				p.except = append(p.except, sess)
			}
		}
	}
	if every > 0 && p.policy.Key == "" {
		p.policy.Key = uri
	}
	return every
}

// encode makes the packet, with the hooks of pushes.
func (g *Group) encode(p *groupPush, uri string, args interface{}, settings []PacketSetting) Xerror {
	ctx := context.Background()
	of := func() *conn { return g.stands().conn.Load() }
	return g.peer.makePush(ctx, uri, args, settings, of, func(out *packet.Packet, mem []byte) Xerror {
		b, err := packet.Append(mem, out, g.peer.limits)
		if err != nil {
			return of().sendXerror(ctx, err)
		}
		p.b, p.amount = append(make([]byte, 0, len(b)), b...), uint64(out.Length+pushCost)
		if p.to == nil && g.history.Load() != nil {
			h := out.Header
			p.kept = &StoredPush{
				Uri: h.Uri, Meta: maps.Clone(h.Meta), HeaderCodec: out.HeaderCodec, Gzip: h.Gzip,
				Body: packet.RawBody(p.b[int64(len(p.b))-out.BodyLength:]),
			}
		}
		return nil
	})
}

// addLocked puts the push behind those that are pending. Within a tick it takes the place of an older one
// with its key.
func (g *Group) addLocked(p *groupPush) {
	g.seq++
	p.seq = g.seq
	if key := p.policy.Key; key != "" && g.tick > 0 && p.to == nil {
		if at, ok := g.keys[key]; ok {
			g.bytes -= len(g.pending[at].b)
			g.pending[at].b = nil
			g.dead++
			p.replaced.Add(g.reachLocked(p))
		} else if g.keys == nil {
			g.keys = make(map[string]int)
		}
		g.keys[key] = len(g.pending)
	}
	g.pending = append(g.pending, p)
	g.bytes += len(p.b)
	g.stayLocked()
	if g.dead > len(g.pending)/2+64 {
		g.compactLocked()
	}
}

// compactLocked forgets pending pushes whose places others have taken.
func (g *Group) compactLocked() {
	g.pending = slices.DeleteFunc(g.pending, func(p *groupPush) bool {
		return p.b == nil && p.op == nil && p.turn == nil
	})
	g.dead = 0
	clear(g.keys)
	for i, p := range g.pending {
		if p.policy.Key != "" && p.to == nil && p.b != nil {
			g.keys[p.policy.Key] = i
		}
	}
}

// reachLocked returns for how many sessions the push is.
func (g *Group) reachLocked(p *groupPush) int64 {
	n := len(g.members)
	if p.to != nil {
		n = len(p.to)
	}
	for i, sess := range p.except {
		among := g.members[sess] != nil
		if p.to != nil {
			among = slices.ContainsFunc(p.to, func(m *member) bool { return m.sess == sess })
		}
		if among && !slices.Contains(p.except[:i], sess) {
			n--
		}
	}
	return int64(n)
}

// Batch gathers the pushes to the group. A tick begins with a push and is d long; at its end all pushes
// of the tick go to each member in one write. Push does not wait for the end: its [Delivery] says for how
// many members the push is, and how many older pushes of the tick it replaces, see [Latest]. What becomes
// of it later at a slow member is not told. When a megabyte has been pushed the tick ends, and if the
// tick before is still going out Push waits for that.
//
// With 0, the default, every push goes at once; to set it sends what was gathered. A negative duration
// panics. A program with ticks of its own calls [Group.Flush] at their ends, and gives a d that is
// longer.
func (g *Group) Batch(d time.Duration) {
	if d < 0 {
		panic(fmt.Sprintf("tp: Batch(%v) of group %q: a duration that is not negative was expected.", d,
			g.name))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tick = d
	if d > 0 && len(g.members) == 0 {
		g.peer.heldGroups.Store(g, g) // until it is empty again
	}
	if d == 0 {
		g.endTickLocked()
	}
}

// Flush ends the tick of [Group.Batch] that has begun, if there is one: for a program that has ticks of
// its own. What was gathered is on its way when Flush returns.
func (g *Group) Flush() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.endTickLocked()
}

// sendAll sends what the group holds back for a tick or by Every, and waits until it is on its way.
func (g *Group) sendAll() {
	g.mu.Lock()
	for key, p := range g.paces {
		if p != nil {
			g.paces[key] = nil
			g.heldBytes -= len(p.b)
			g.addLocked(p)
		}
	}
	g.endTickLocked()
	end := &groupPush{op: func() {}}
	g.addLocked(end)
	g.awaitPassLocked(end)
}

// sendAll has all groups send what they hold back.
func (p *Peer) sendAll() {
	p.groups.Range(func(_, v any) bool {
		if g := v.(weak.Pointer[Group]).Value(); g != nil {
			g.sendAll()
		}
		return true
	})
	p.everybody().sendAll()
}

// tickLocked begins a tick, or ends one in which there is enough.
func (g *Group) tickLocked() {
	switch {
	case g.bytes >= maxBatch:
		g.endTickLocked()
	case g.ticks == nil:
		g.ticks = time.AfterFunc(g.tick, g.Flush)
	}
}

func (g *Group) endTickLocked() {
	if g.ticks != nil {
		g.ticks.Stop()
		g.ticks = nil
	}
	if len(g.pending) > 0 {
		g.due = true
		g.goPassLocked()
	}
}

// goPassLocked has a goroutine make a pass if nobody does.
func (g *Group) goPassLocked() {
	if !g.passing {
		g.passing = true
		go func() {
			g.mu.Lock()
			g.passLocked()
		}()
	}
}

// passLocked gives all members what is pending, and unlocks mu. Then it has somebody else go on if more
// has come.
func (g *Group) passLocked() {
	pushes, list := g.pending, g.listLocked()
	g.pending, g.bytes, g.dead, g.due, g.keys = nil, 0, 0, false, nil
	g.mu.Unlock()
	defer func() {
		for _, p := range pushes { // a history's store has called runtime.Goexit
			p.failed = unrun(StatusInternalServerError, "the group's history has ended the goroutine", nil)
			if p.turn != nil {
				p.turn <- false
			}
		}
		g.endPass()
	}()
	for len(pushes) > 0 {
		n := 1
		switch first := pushes[0]; {
		case first.op != nil:
			first.op()
			list = g.listNow()
		case first.to != nil:
			g.newPass(pushes[:1], first.to).run()
		default:
			for n < len(pushes) && pushes[n].to == nil && pushes[n].op == nil {
				n++
			}
			g.keep(pushes[:n])
			g.newPass(pushes[:n], list).run()
		}
		for _, p := range pushes[:n] {
			if p.turn != nil {
				p.turn <- false
			}
		}
		pushes = pushes[n:]
	}
}

// endPass has somebody else make a pass if more has come.
func (g *Group) endPass() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.passing = false
	if !g.due || len(g.pending) == 0 {
		return
	}
	g.passing = true
	for _, p := range g.pending {
		if p.turn != nil {
			turn := p.turn
			p.turn = nil // the pusher does not wait any more
			turn <- true
			return
		}
	}
	g.passing = false
	g.goPassLocked()
}

// listNow is listLocked without mu.
func (g *Group) listNow() []*member {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.listLocked()
}

// keep puts the pushes into the group's history, and their positions there into what members get.
func (g *Group) keep(pushes []*groupPush) {
	for _, p := range pushes {
		if p.kept == nil || p.b == nil {
			continue
		}
		err := g.guarded(func() (err error) {
			if p.kept.At, err = g.history.Load().Append(*p.kept); err == nil {
				err = g.finish(p, p.kept.packet(g.name))
			}
			return err
		})
		if err != nil {
			p.b = nil
			p.failed = unrun(StatusInternalServerError,
				"the group's history has not kept the push: "+err.Error(), err)
			if p.turn == nil { // a tick's push, of which nobody is told
				g.peer.log.rarely(LevelError, "history failed", "a push to group %s is lost: %v",
					slog.String("group", g.name), errAttr(err))
			}
		}
	}
}

// guarded calls f, which calls the history's store, and returns its error; a panic is one too.
func (g *Group) guarded(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			g.peer.log.panicked(LevelError, "the history of group", g.name, p)
			err = errors.New("the history has panicked")
		}
	}()
	return f()
}

// finish encodes the packet of a push that has its position.
func (g *Group) finish(p *groupPush, packed *packet.Packet) (err error) {
	p.b, err = packet.Append(nil, packed, g.peer.limits)
	p.amount = uint64(packed.Length + pushCost)
	return err
}

// heldBackLocked reports whether the push comes too early after the last one with its key. Then it goes
// later, instead of one that is held back already.
func (g *Group) heldBackLocked(p *groupPush, every time.Duration) bool {
	key := p.policy.Key
	held, ok := g.paces[key]
	switch {
	case !ok && (g.reachLocked(p) == 0 || len(g.paces) >= maxPaces):
		return false
	case !ok:
		if g.paces == nil {
			g.paces = make(map[string]*groupPush)
		}
		g.paces[key] = nil
		time.AfterFunc(every, func() { g.letGo(key, every) })
		return false
	}
	if held != nil {
		p.replaced.Add(g.reachLocked(p))
		g.heldBytes -= len(held.b)
	}
	if g.reachLocked(p) == 0 || g.heldBytes+len(p.b) > maxBatch { // it goes at once, instead of the other
		g.paces[key] = nil
		return false
	}
	g.paces[key] = p
	g.heldBytes += len(p.b)
	return true
}

// letGo sends the push that is held back for the key, if there is one, and otherwise forgets the key.
func (g *Group) letGo(key string, every time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.paces[key]
	if p == nil {
		delete(g.paces, key)
		return
	}
	g.paces[key] = nil
	g.heldBytes -= len(p.b)
	time.AfterFunc(every, func() { g.letGo(key, every) })
	g.addLocked(p)
	if p.to == nil && g.tick > 0 {
		g.tickLocked()
		return
	}
	g.due = true
	g.goPassLocked()
}
