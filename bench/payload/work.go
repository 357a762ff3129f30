package payload

import (
	"sync/atomic"
	"time"
)

// ComputeTime is how long the handler of Compute takes on a core of its own.
const ComputeTime = 200 * time.Microsecond

// Work is the handlers' side of a server. It is safe for concurrent use.
type Work struct {
	spins int
	notes atomic.Int64
	sink  atomic.Uint64 // so that the compiler keeps spin
}

// NewWork returns handlers that compute for so many spins, see Calibrate.
func NewWork(spins int) *Work { return &Work{spins: spins} }

// Handle answers m in place.
func (w *Work) Handle(k Kind, m *Message) {
	w.do(k, m.Id)
	m.Count++
}

// HandlePlain answers p in place.
func (w *Work) HandlePlain(k Kind, p *Plain) {
	w.do(k, p.Id)
	p.Count++
}

func (w *Work) do(k Kind, id uint64) {
	switch k {
	case Doze:
		if id%DozeEvery == 0 {
			time.Sleep(DozeTime)
		}
	case Compute:
		w.sink.Store(spin(w.spins))
	}
}

// Note takes what was pushed.
func (w *Work) Note(*Message) { w.notes.Add(1) }

// Notes returns how many notes were taken.
func (w *Work) Notes() int64 { return w.notes.Load() }

// Calibrate returns how many spins take ComputeTime on this machine when nothing
// disturbs them. Every server is given the same number, so that all handlers do
// the same work.
func Calibrate() int {
	const try = 20000
	best := time.Duration(1 << 62)
	var sink uint64
	for range 50 {
		start := time.Now()
		sink += spin(try)
		best = min(best, time.Since(start))
	}
	calibrated.Store(sink)
	return int(int64(try) * int64(ComputeTime) / int64(max(best, 1)))
}

var calibrated atomic.Uint64

// spin computes n steps that depend on each other.
func spin(n int) uint64 {
	x := uint64(88172645463325252)
	for range n {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	return x
}
