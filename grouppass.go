package tp

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/henrylee2cn/teleport/internal/bufpool"
	"github.com/henrylee2cn/teleport/internal/credit"
)

const (
	// runBytes and runAmount bound what is written to a member at once: bytes, and credit, of which a
	// connection has so much from the beginning.
	runBytes, runAmount = 64 << 10, credit.First
	// passPart is how many members a goroutine takes at a time.
	passPart = 128
)

// pass gives pushes to sessions.
type pass struct {
	runs  []run
	to    []*member
	next  atomic.Int64 // member
	first uint64       // seq of the first push
}

// newPass makes the pass. What it makes of the pushes is counted as the peer's memory while connections
// hold it.
func (g *Group) newPass(pushes []*groupPush, to []*member) *pass {
	ps := &pass{to: to}
	for _, p := range pushes {
		if p.b == nil {
			continue
		}
		p.shared = bufpool.Share(p.b, g.peer.account())
		if ps.first == 0 {
			ps.first = p.seq
		}
		last := len(ps.runs) - 1
		plain := p.amount <= credit.Plain
		if last < 0 || !plain || !ps.runs[last].plain || !slices.Equal(ps.runs[last].except, p.except) ||
			ps.runs[last].bytes+len(p.b) > runBytes || ps.runs[last].amount+p.amount > runAmount {
			ps.runs = append(ps.runs, run{plain: plain, except: p.except})
			last++
		}
		r := &ps.runs[last]
		r.pushes = append(r.pushes, p)
		r.amount += p.amount
		r.bytes += len(p.b)
	}
	for i := range ps.runs {
		r := &ps.runs[i]
		if r.shared = r.pushes[0].shared; len(r.pushes) > 1 {
			b := make([]byte, 0, r.bytes)
			for _, p := range r.pushes {
				b = append(b, p.b...)
			}
			r.shared = bufpool.Share(b, g.peer.account())
		}
	}
	return ps
}

// alone is a run of the push alone, which is one of r.
func (p *groupPush) alone(r *run) *run {
	return &run{shared: p.shared, amount: p.amount, except: r.except, plain: r.plain, pushes: []*groupPush{p}}
}

// run gives the pushes to all members, on as many goroutines as there are processors if there are many.
func (ps *pass) run() {
	if len(ps.runs) == 0 {
		return
	}
	if n := min(runtime.GOMAXPROCS(0), (len(ps.to)+passPart-1)/passPart); n > 1 {
		var wg sync.WaitGroup
		for range n - 1 {
			wg.Go(ps.work)
		}
		defer wg.Wait()
	}
	ps.work()
}

// work gives the pushes to one part of the members after another.
func (ps *pass) work() {
	through := make([]int64, len(ps.runs)) // members that have taken the run as it is
	for {
		end := ps.next.Add(passPart)
		for _, m := range ps.to[min(end-passPart, int64(len(ps.to))):min(end, int64(len(ps.to)))] {
			for i := range ps.runs {
				if ps.give(&ps.runs[i], m) {
					through[i]++
				}
			}
		}
		if end >= int64(len(ps.to)) {
			break
		}
	}
	for i, r := range ps.runs {
		for _, p := range r.pushes {
			p.queued.Add(through[i])
		}
	}
}

// give gives a run to a member. It reports true if the member's connection has taken all of it at once.
func (ps *pass) give(r *run, m *member) bool {
	if slices.Contains(r.except, m.sess) {
		return false
	}
	cn := m.sess.conn.Load()
	if !cn.ready.Load() { // in the handshake pushes are for hooks
		for _, p := range r.pushes {
			p.dropped.Add(1)
		}
		return false
	}
	joined := m.after < ps.first
	if joined && cn.spread(r) {
		return true
	}
	for _, p := range r.pushes {
		if p.seq <= m.after {
			continue
		}
		if !joined && cn.spread(p.alone(r)) {
			p.queued.Add(1)
			continue
		}
		o := cn.keepOrCut(p)
		if o.Queued {
			p.queued.Add(1)
		}
		p.dropped.Add(int64(o.Dropped))
		p.replaced.Add(int64(o.Replaced))
		if o.Cut {
			p.cut.Add(1)
		}
	}
	return false
}
