package harness

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/teleport/bench/plan"
	"github.com/henrylee2cn/teleport/bench/stats"
	"github.com/henrylee2cn/teleport/bench/systems"
)

const (
	dialsAtOnce = 32
	// sampleEvery is of how many calls of a caller one is timed, where there are
	// many callers: reading the clock is a good part of what the fastest call
	// costs. It has no factor in common with payload.DozeEvery.
	sampleEvery = 7
	// timeAllUpTo is up to how many callers every call is timed.
	timeAllUpTo = 4
)

// load is the client's side of a measurement: connections with callers or
// pushers, which run from startLoad until stop.
type load struct {
	w      plan.Workload
	client systems.Client
	conns  []systems.Conn
	warm   []func(uint64) error // a caller of each connection in conns

	sample  uint64
	done    []counter // of each goroutine
	took    [8]stats.Hist
	ending  atomic.Bool
	running sync.WaitGroup

	mu  sync.Mutex // guards err
	err error      // the first failure
}

// counter counts what one goroutine has done, on a cache line of its own.
type counter struct {
	n atomic.Int64
	_ [120]byte
}

// startLoad connects, makes a call on every connection, and lets the callers run;
// in mode Idle it opens one connection only.
func startLoad(r role) (*load, error) {
	sys, ok := systems.Find(r.System)
	if !ok {
		return nil, fmt.Errorf("no system is called %q", r.System)
	}
	client, err := sys.NewClient(r.Addr)
	if err != nil {
		return nil, err
	}
	l := &load{w: r.Workload, client: client, sample: sampleEvery}
	if l.w.Conns*l.w.Callers <= timeAllUpTo {
		l.sample = 1
	}
	switch l.w.Mode {
	case plan.Idle:
		return l, l.open(1)
	case plan.Push:
		err = l.startPushing()
	case plan.Calls:
		err = l.startCalling()
	default:
		err = fmt.Errorf("unknown mode %q", l.w.Mode)
	}
	return l, err
}

// open opens n more connections and makes a call on each.
func (l *load) open(n int) error {
	conns, warm := make([]systems.Conn, n), make([]func(uint64) error, n)
	var next atomic.Int64
	var opening sync.WaitGroup
	for range min(n, dialsAtOnce) {
		opening.Go(func() {
			for {
				i := int(next.Add(1) - 1)
				if i >= n || l.failure() != nil {
					return
				}
				var err error
				if conns[i], warm[i], err = l.openOne(); err != nil {
					l.fail(fmt.Errorf("connection %d: %w", i, err))
				}
			}
		})
	}
	opening.Wait()
	l.conns, l.warm = append(l.conns, conns...), append(l.warm, warm...)
	return l.failure()
}

func (l *load) openOne() (systems.Conn, func(uint64) error, error) {
	conn, err := l.client.Dial()
	if err != nil {
		return nil, nil, err
	}
	call, err := conn.Caller(l.w.Kind, make([]byte, l.w.Data))
	if err != nil {
		return nil, nil, err
	}
	return conn, call, call(1)
}

func (l *load) startCalling() error {
	if err := l.open(l.w.Conns); err != nil {
		return err
	}
	var calls []func(uint64) error
	for i, conn := range l.conns {
		calls = append(calls, l.warm[i])
		for range l.w.Callers - 1 {
			call, err := conn.Caller(l.w.Kind, make([]byte, l.w.Data))
			if err != nil {
				return err
			}
			calls = append(calls, call)
		}
	}
	l.run(calls, l.sample)
	return nil
}

func (l *load) startPushing() error {
	if err := l.open(l.w.Conns); err != nil {
		return err
	}
	var pushes []func(uint64) error
	for _, conn := range l.conns {
		p, ok := conn.(systems.Pusher)
		if !ok {
			return errors.New("the system does not push")
		}
		for range l.w.Callers {
			pushes = append(pushes, p.Pusher())
		}
	}
	l.run(pushes, 0)
	return nil
}

// run starts a goroutine for each of the functions, which calls it again and
// again; the durations of every sample-th call are kept, of none if sample is 0.
func (l *load) run(each []func(uint64) error, sample uint64) {
	l.done = make([]counter, len(each))
	for g, do := range each {
		l.running.Go(func() {
			done, took := &l.done[g].n, &l.took[g%len(l.took)]
			id := uint64(g) << 32
			for !l.ending.Load() {
				id++
				var err error
				if sample != 0 && id%sample == 0 {
					start := time.Now()
					err = do(id)
					took.Record(time.Since(start))
				} else {
					err = do(id)
				}
				if err != nil {
					l.fail(fmt.Errorf("caller %d: %w", g, err))
					return
				}
				done.Add(1)
			}
		})
	}
}

func (l *load) fail(err error) {
	l.mu.Lock()
	if l.err == nil {
		l.err = err
	}
	l.mu.Unlock()
	l.ending.Store(true)
}

func (l *load) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func (l *load) snapshot() snapshot {
	s := take()
	for i := range l.done {
		s.Done += l.done[i].n.Load()
	}
	s.Took = make(stats.Counts)
	for i := range l.took {
		l.took[i].AddTo(s.Took)
	}
	if err := l.failure(); err != nil {
		s.Err = err.Error()
	}
	return s
}

// fill opens the connections of a workload in mode Idle, beside the first.
func (l *load) fill() error { return l.open(l.w.Conns) }

// stop waits for the calls under way, and until what was pushed is on its way.
func (l *load) stop() error {
	l.ending.Store(true)
	l.running.Wait()
	if l.w.Mode == plan.Push {
		for _, conn := range l.conns {
			if err := conn.(systems.Pusher).Flush(); err != nil {
				return err
			}
		}
	}
	return l.failure()
}
