package main

import (
	"container/heap"
	"math/rand/v2"
	"time"

	"github.com/henrylee2cn/teleport/bench/stats"
	"github.com/henrylee2cn/teleport/internal/balance"
)

// world is what all runs have in common: a fleet of servers, and clients that know nothing of each other.
type world struct {
	servers, workers int           // and how many calls a server does at a time
	clients          int           // each with a balancer of its own
	service          time.Duration // mean time of a call in a healthy server, exponentially distributed
	network          time.Duration // one way
	busy             float64       // part of what the healthy fleet can do
	timeout          time.Duration // after which a call is given up
	warmUp, length   time.Duration // calls that begin in the warm-up do not count
}

var usual = world{
	servers: 20, workers: 8, clients: 50,
	service: 10 * time.Millisecond, network: 250 * time.Microsecond,
	busy:    0.65,
	timeout: 2 * time.Second,
	warmUp:  20 * time.Second, length: 30 * time.Second,
}

// narrow are servers that do one call at a time, and are busy: calls wait for each other much more.
var narrow = func() world {
	w := usual
	w.workers, w.service, w.busy = 1, 2*time.Millisecond, 0.85
	return w
}()

// trouble is what is wrong with the first servers of a fleet.
type trouble struct {
	servers int
	slower  float64       // times the service time; 0 is 1
	stalls  time.Duration // how long a server starts no call, once in every period; servers take turns
	period  time.Duration
	fails   bool // every call fails at once, from the middle of the warm-up on
}

var slow = trouble{servers: 2, slower: 10}

// scenario is a world with a trouble in it.
type scenario struct {
	name string
	world
	trouble
}

var scenarios = []scenario{
	{"all are well", usual, trouble{}},
	{"2 are ten times slower", usual, slow},
	{"1 stalls for a second in ten", usual,
		trouble{servers: 1, stalls: time.Second, period: 10 * time.Second}},
	{"1 fails at once", usual, trouble{servers: 1, fails: true}},
	{"one call at a time, all are well", narrow, trouble{}},
	{"one call at a time, 2 are ten times slower", narrow, slow},
}

// setup is how a client balances.
type setup struct {
	name    string
	policy  func(random func() uint64) balance.Policy
	reports bool // servers say with each reply how they are
	eject   bool
	hedge   bool // a second attempt when the first takes longer than 95% of the client's calls
}

// result is what a run has measured.
type result struct {
	calls          int
	failed         int           // by the server's answer
	late           int           // given up
	p50, p99, p999 time.Duration // of all that did not fail; what was given up took that long
	toFaulty       float64       // part of the attempts that went to the servers in trouble
	wasted         float64       // part of the servers' work whose result nobody used
	extra          float64       // attempts beyond the first, by the number of calls
}

// simulation is one run: a queue of events, and a clock that goes from one to the next.
type simulation struct {
	scenario
	setup
	now    time.Duration
	events events
	number int // of the last event, so that those of one time keep their order
	random *rand.Rand
	fleet  []*server
	from   []*client

	calls, failed, late    int
	tries, toFaulty, again int
	took                   stats.Hist
	work, useless          time.Duration
}

type event struct {
	at     time.Duration
	number int
	do     func()
}

type events []event

func (q events) Len() int { return len(q) }
func (q events) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].number < q[j].number
}
func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *events) Push(x any)   { *q = append(*q, x.(event)) }
func (q *events) Pop() any {
	old := *q
	last := old[len(old)-1]
	*q = old[:len(old)-1]
	return last
}

// after has do called when so much time has passed.
func (s *simulation) after(d time.Duration, do func()) {
	s.number++
	heap.Push(&s.events, event{s.now + d, s.number, do})
}

func (s *simulation) exponential(mean time.Duration) time.Duration {
	return time.Duration(s.random.ExpFloat64() * float64(mean))
}

// simulate runs a fleet for the world's length, and to the end of all calls. The same seed gives the same
// calls, and the same result.
func simulate(of scenario, how setup, seed uint64) result {
	s := &simulation{scenario: of, setup: how, random: rand.New(rand.NewPCG(seed, 1))}
	for i := range s.servers() {
		s.fleet = append(s.fleet, newServer(s, i))
	}
	for i := range s.clients {
		s.from = append(s.from, newClient(s, seed, i))
	}
	s.arrive(rand.New(rand.NewPCG(seed, 2)))
	for len(s.events) > 0 {
		next := heap.Pop(&s.events).(event)
		s.now = next.at
		next.do()
	}
	return s.result()
}

func (s *simulation) servers() int { return s.world.servers }

// ended reports whether the world's length is over, and no more calls begin.
func (s *simulation) ended() bool { return s.now >= s.warmUp+s.length }

// arrive begins calls of any client at random times, a Poisson process, until the end.
func (s *simulation) arrive(random *rand.Rand) {
	if s.ended() {
		return
	}
	s.from[random.IntN(len(s.from))].call(random.Uint64N(keys))
	mean := float64(s.service) / (float64(s.servers()*s.workers) * s.busy)
	s.after(time.Duration(random.ExpFloat64()*mean), func() { s.arrive(random) })
}

// keys is how many keys there are, for the policy that goes by them.
const keys = 10_000

func (s *simulation) result() result {
	counts := make(stats.Counts)
	s.took.AddTo(counts)
	quantile := func(q float64) time.Duration { return time.Duration(counts.Quantile(q)) }
	return result{
		calls: s.calls, failed: s.failed, late: s.late,
		p50: quantile(0.5), p99: quantile(0.99), p999: quantile(0.999),
		toFaulty: float64(s.toFaulty) / float64(max(s.tries, 1)),
		wasted:   float64(s.useless) / float64(max(s.work, 1)),
		extra:    float64(s.again) / float64(max(s.calls, 1)),
	}
}
