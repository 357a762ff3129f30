package balance

import (
	"fmt"
	"math"
	"sync/atomic"
	"time"
)

const (
	// HalfLife is the time in which an estimate of latency forgets half of what it was, by newer and lower
	// latencies or by none at all.
	HalfLife = 10 * time.Second
	// unknownLatency stands for the latency of a server that has not answered yet and has a call to do.
	unknownLatency = time.Second
	// reportHalfLife is the time in which a server's own word loses half of its weight. If it faded before
	// the latency does, a slow server that is not called would soon look like one that has nothing to do.
	reportHalfLife = HalfLife
	// normalWeight is the weight of a server that is as strong as others.
	normalWeight = 100
	// maxWeight keeps sums of weights, and their products with 32 bits, within 64 bits.
	maxWeight = 1 << 24
	// maxLoad bounds a report's calls in flight, and maxDelay its delay: the numbers come from elsewhere.
	maxLoad  = 1<<31 - 1
	maxDelay = time.Hour
)

// Config is what is known of a server beforehand.
type Config struct {
	// Weight is the server's share of the calls beside the others' weights: 1 or more, 100 is normal.
	Weight int
	// Hash is a hash of the server's id: the same in all clients, for policies that go by keys.
	Hash uint64
	// Preferred says that the server stands in the client's own zone. It is true of all servers if there are
	// no zones; false of all is the same, but takes longer to find out in long lists.
	Preferred bool
}

func (c Config) check() {
	if c.Weight < 1 || c.Weight > maxWeight {
		panic(fmt.Sprintf("balance: the weight of an endpoint is %d, must be 1 to %d", c.Weight, maxWeight))
	}
}

// Outcome is what became of a call.
type Outcome uint8

const (
	// OK is a call that was answered. An error of the handler's is an answer, if the server is well.
	OK Outcome = iota
	// Failed is a call that the server did not do, or did wrong because it is not well.
	Failed
	// Unanswered is a call that nobody waits for any more: what it took is the least that it would have
	// taken.
	Unanswered
	// Untimed is a call whose duration says nothing, because it has no answer or was never sent.
	Untimed
)

// Endpoint is one server, as one client sees it. Its methods are safe for concurrent use and take no lock.
type Endpoint struct {
	config Config
	weight float64 // 1 is normal
	*record
}

// record is what is known of a server from the calls to it.
type record struct {
	born        time.Duration
	outstanding atomic.Int64
	held        atomic.Int64 // those of outstanding that may go on for ever, see Hold
	latency     peak

	reported atomic.Int64  // when the last report came, since born, and 1 so that 0 is never
	report   atomic.Uint64 // its delay in microseconds, and its load

	turn atomic.Uint64 // of RoundRobin: the bits of a float64
}

// NewEndpoint returns an endpoint of which nothing is known yet. It panics if the weight is less than 1, or
// more than maxWeight.
func NewEndpoint(c Config, now time.Duration) *Endpoint {
	c.check()
	return newEndpoint(c, &record{born: now})
}

func newEndpoint(c Config, r *record) *Endpoint {
	return &Endpoint{config: c, weight: float64(c.Weight) / normalWeight, record: r}
}

// With returns an endpoint for the same server, of which something else is known beforehand. What the calls
// have shown is that of both: a call may begin on one and end on the other. It panics as NewEndpoint does.
func (e *Endpoint) With(c Config) *Endpoint {
	c.check()
	return newEndpoint(c, e.record)
}

// Begin says that a call goes to the server. Each Begin is followed by one End.
func (e *Endpoint) Begin(now time.Duration) { e.outstanding.Add(1) }

// End says that a call is over, and that it took so long.
//
// A failure never makes a server look faster: it keeps the latency up where it is, and that of a server of
// which nothing is known becomes a second. Who fails quickly would look better and better otherwise. How many
// failures are too many is for an [Ejector] to say.
func (e *Endpoint) End(now, took time.Duration, o Outcome) {
	if e.outstanding.Add(-1) < 0 {
		panic("balance: End of an endpoint without a Begin")
	}
	age := now - e.born
	switch o {
	case OK:
		e.latency.observe(age, took)
	case Failed:
		e.latency.fail(age, took)
	case Untimed:
	default:
		e.latency.atLeast(age, took)
	}
}

// Report says what the server has said of itself with a reply: how long a call waits there before it is
// handled, and how many are in flight there, of all its clients. Numbers below 0 count as 0.
func (e *Endpoint) Report(now, delay time.Duration, load int) {
	d := uint64(min(max(delay, 0), maxDelay) / time.Microsecond)
	e.report.Store(d<<31 | uint64(min(max(load, 0), maxLoad)))
	e.reported.Store(int64(max(now-e.born, 0)) + 1)
}

// Hold says of a call under way that it may go on for ever, as a stream may. It counts as one under way, but
// nobody waits for its end to learn how the server is. It is followed by one Release, before the call's End.
func (e *Endpoint) Hold() { e.held.Add(1) }

// Release is the end of Hold.
func (e *Endpoint) Release() { e.held.Add(-1) }

// Outstanding returns how many calls are under way.
func (e *Endpoint) Outstanding() int { return int(e.outstanding.Load()) }

// Awaited returns how many calls are under way whose end will say how the server is.
func (e *Endpoint) Awaited() int { return int(max(e.outstanding.Load()-e.held.Load(), 0)) }

// Latency returns the smoothed latency, and whether it is known: it is not before the first call is over, and
// when the last one has been over for long.
func (e *Endpoint) Latency(now time.Duration) (time.Duration, bool) {
	v, known := e.latency.at(now - e.born)
	return time.Duration(v), known
}

// Score returns how long a call would take here, in nanoseconds, as far as can be told: the smoothed latency
// times the calls under way and this one. A call is less for a server of more weight.
//
// What the server has reported joins in and fades as the latency does. The calls in flight there count by
// half the logarithm of their number: they are nearly all of other clients, who see the same number and would
// all run to where it is low if it counted in full. Nor does a server that lies, or that does not report, get
// many more calls than others. The delay is the least that a call takes. bench/balancers shows what that is
// worth: where calls wait for each other, in servers that do one at a time and are 85% busy, 5 to 10% of the
// 99th percentile; nothing where servers do many at a time.
//
// Of a server whose latency is not known the score is 0 if it has nothing to do: somebody has to try. Until
// that call is over the score is that of a slow server, so that there is one trial at a time. What is held,
// see Hold, is no trial.
func (e *Endpoint) Score(now time.Duration) float64 {
	score, _ := e.score(now)
	return score
}

func (e *Endpoint) score(now time.Duration) (score float64, known bool) {
	age := now - e.born
	latency, known := e.latency.at(age)
	if !known {
		if e.Awaited() == 0 {
			return 0, false
		}
		latency = max(latency, float64(unknownLatency))
	}
	load, delay := e.occupied(age)
	return load * max(latency, delay), known
}

// own returns the calls of this client that are under way, and one more, as they count in Score.
func (e *Endpoint) own() float64 { return float64(e.outstanding.Load())/e.weight + 1 }

// occupied returns the server's load, and the delay that it has reported in nanoseconds.
func (e *Endpoint) occupied(age time.Duration) (load, delay float64) {
	load = e.own()
	if at := e.reported.Load(); at != 0 {
		r := e.report.Load()
		fade := math.Exp2(-float64(max(age-time.Duration(at-1), 0)) / float64(reportHalfLife))
		delay = float64(r>>31) * float64(time.Microsecond) * fade
		load += math.Log2(1+float64(r&maxLoad)) / 2 * fade // calls of other clients, as far as they count
	}
	return load, delay
}
