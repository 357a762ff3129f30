package tp

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/teleport/internal/bufpool"
	"github.com/henrylee2cn/teleport/internal/outbox"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// How a connection takes pushes that go to many: at once if it can. What it cannot take waits in its
// outbox, from which one goroutine sends as fast as the other side takes.

// Delivery says what has become of a push to many sessions: how many of them it was queued for, and what
// that has cost those that were slow.
type Delivery struct {
	// Queued is for how many members the push was handed to the connection, or waits for one that is slow.
	Queued int
	// Dropped is how many pushes were dropped: this one for members that are going away or take no more,
	// and older ones that had to make room for this one, see [DropOldest].
	Dropped int
	// Replaced is, summed over the members, how many pushes that waited were replaced by this one, see
	// [Latest] and [Every].
	Replaced int
	// CutOff is how many connections were ended because the members could not take the push, see
	// [Disconnect].
	CutOff int
	// Err is not nil if the push could not be made, because its body does not encode for example; then
	// nobody gets it.
	Err Xerror
}

// groupPush is a push to a group, or to sessions of its own.
type groupPush struct {
	b      []byte          // the encoded packet; nil if another one has taken its place
	shared *bufpool.Shared // b, as connections hold it; made by a pass
	amount uint64
	seq    uint64
	policy outbox.Policy
	to     []*member  // instead of the group's
	except []*Session // do not get the push
	// kept is the push for the group's history; nil if there is none. Op is called instead of a push,
	// between passes.
	kept *StoredPush
	op   func()
	// turn tells the pusher: true, to make the next pass; false, that the push is through. It is nil if
	// nobody waits.
	turn chan bool

	failed                         Xerror // why the history has not kept the push
	queued, dropped, replaced, cut atomic.Int64
}

func (p *groupPush) delivery() Delivery {
	return Delivery{Err: p.failed, Queued: int(p.queued.Load()), Dropped: int(p.dropped.Load()),
		Replaced: int(p.replaced.Load()), CutOff: int(p.cut.Load())}
}

// member is a session in a group.
type member struct {
	sess  *Session
	after uint64 // the last push that does not go to the session, as it came before the session joined
}

// run is pushes that are written together, one behind the other.
type run struct {
	shared *bufpool.Shared
	amount uint64
	except []*Session
	plain  bool // no push takes more credit than credit.Plain
	pushes []*groupPush
	bytes  int
}

// spreadBehind is how many bytes may wait in a connection's output before pushes of groups wait elsewhere.
const spreadBehind = 64 << 10

// askForCredit asks for more than the little credit that a connection begins with, as pushes of a group
// come many at once.
func (s *Session) askForCredit() {
	if cn := s.conn.Load(); cn.ready.Load() && !s.peer.noCredit {
		cn.flow.Ask()
	}
}

// spread sends the run if the connection takes it without a wait.
func (cn *conn) spread(r *run) bool {
	if box := cn.outbox.Load(); cn.goneAway() || box != nil && box.Busy() {
		return false
	}
	var cost uint64
	if ok := true; !cn.peer.noCredit {
		if r.plain {
			cost, ok = cn.flow.TryTakeAll(r.amount)
		} else {
			cost, ok = cn.flow.TryTake(r.amount)
		}
		if !ok {
			return false
		}
	}
	ok, _ := cn.sock.Spread(r.shared, len(r.pushes), &cn.pushLane, spreadBehind)
	if !ok {
		cn.flow.Out().Return(cost)
	}
	return ok
}

// keepOrCut has the push wait in the outbox, and ends the connection if the push must not wait, or too
// much does. Where there is no memory those go first that have not moved for the longest.
func (cn *conn) keepOrCut(p *groupPush) outbox.Outcome {
	if !cn.usable() {
		return outbox.Outcome{Dropped: 1}
	}
	box := cn.outbox.Load()
	if box == nil {
		box = new(outbox.Box)
		box.Init(cn, &cn.outBudget, cn.peer.cfg.MaxSessionOutput, &cn.peer.keptBoxes)
		if !cn.outbox.CompareAndSwap(nil, box) {
			box = cn.outbox.Load()
		}
	}
	it := outbox.Item{Shared: p.shared, Amount: p.amount, Policy: p.policy}
	o, begin := box.Add(it)
	if o.NoMemory && cn.peer.relieve() {
		more := o.Dropped
		o, begin = box.Add(it)
		o.Dropped += more
	}
	if begin {
		go cn.sendKept(box)
	}
	if o.Cut {
		cn.cutOff(box, int64(len(p.b)), p.policy.Cut)
	}
	return o
}

// cutOff ends a connection that is too slow for pushes of groups. The memory of those that wait is free
// when cutOff returns.
func (cn *conn) cutOff(box *outbox.Box, more int64, atOnce bool) {
	if n, bytes, first := box.End(); first {
		go func() { _ = cn.fail(&cutOff{n, bytes, more, atOnce}) }()
	}
}

// stallPatience is how long a connection may take nothing before it is cut off where there is no memory.
const stallPatience = time.Second

// account returns the memory of pushes that wait in outboxes, or in the output. A push that waits for
// many sessions is counted once.
func (p *Peer) account() *packet.Budget {
	p.keptOnce.Do(func() {
		p.outPool.Join(&p.keptBudget, keptOwner{p})
		p.keptBoxes.Init(&p.keptBudget)
	})
	return &p.keptBudget
}

// relieve cuts off those that have taken nothing for long, and reports whether there were some.
func (p *Peer) relieve() bool {
	stalled := p.keptBoxes.Stalled(stallPatience)
	for _, box := range stalled {
		box.Owner.(*conn).cutOff(box, 0, false)
	}
	return len(stalled) > 0
}

// keptOwner gives memory back when others need it.
type keptOwner struct{ peer *Peer }

// Reclaim is called by the pool of the peer's memory, see [packet.Owner].
func (o keptOwner) Reclaim(*packet.Budget, int64) { go o.peer.relieve() }

// sendKept sends what waits in the outbox, until nothing does or the connection ends.
func (cn *conn) sendKept(box *outbox.Box) {
	defer cn.peer.activity() // Shutdown waits for what a group was told is queued
	for {
		it, ok := box.First()
		if !ok {
			return
		}
		if !cn.sendFirst(box, it) {
			box.End()
			return
		}
	}
}

// sendFirst sends the first push of the outbox, which was that one. It reports false if the connection
// takes none any more. While it waits another push may come in the place of the first; then it sends
// nothing.
func (cn *conn) sendFirst(box *outbox.Box, it outbox.Item) bool {
	ctx := context.Background()
	if err := cn.sock.AwaitQueued(ctx, spreadBehind); err != nil {
		return false
	}
	var cost uint64
	if !cn.peer.noCredit {
		var x Xerror
		if cost, x = cn.awaitCredit(ctx, it.Amount); x != nil {
			return cn.usable() // there was some progress: it goes on waiting
		}
	}
	it, ok := box.Take(it.Amount)
	if !ok {
		cn.flow.Out().Return(cost)
		return true
	}
	defer it.Release()
	frame, err := cn.sock.Share(ctx, it.Shared)
	if err == nil {
		_, err = cn.sock.Send(ctx, frame.In(&cn.pushLane), socket.Later)
	}
	if err != nil {
		cn.flow.Out().Return(cost)
		_ = cn.wrote(err)
		return false
	}
	return true
}
