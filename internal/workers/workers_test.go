package workers_test

import (
	"bytes"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/workers"
)

// goroutineId returns the number of the goroutine that calls it.
func goroutineId() string {
	b := make([]byte, 64)
	return string(bytes.Fields(b[:runtime.Stack(b, false)])[1])
}

// workersNow returns how many workers there are in bubbles, of which there is one
// at a time.
func workersNow() int {
	b := make([]byte, 4<<20)
	n := 0
	for _, stack := range strings.Split(string(b[:runtime.Stack(b, true)]), "\n\n") {
		if strings.Contains(stack, "synctest bubble") && strings.Contains(stack, "(*Pool).work(") {
			n++
		}
	}
	return n
}

// owner is a connection, whose output is busy when a test says so.
type owner struct {
	queue   workers.Queue
	busy    atomic.Bool
	changes atomic.Int32
}

func newOwner() *owner {
	o := new(owner)
	o.queue.Init(o)
	return o
}

func (o *owner) OutputBusy() bool { return o.busy.Load() }
func (o *owner) QueueChanged()    { o.changes.Add(1) }

// job is a call.
type job struct {
	run     func()
	owner   *owner
	kind    workers.Kind
	cost    int64
	waits   atomic.Bool
	dropped atomic.Bool
	lane    *workers.Lane
	entered bool
	quick   bool
	heldUp  atomic.Int32 // how many waited when it was told
}

func (j *job) Run()                  { j.run() }
func (j *job) Drop()                 { j.dropped.Store(true) }
func (j *job) Waits()                { j.waits.Store(true) }
func (j *job) Kind() workers.Kind    { return j.kind }
func (j *job) Quick() bool           { return j.quick }
func (j *job) Cost() int64           { return j.cost }
func (j *job) Queue() *workers.Queue { return &j.owner.queue }

func (j *job) Lane() (*workers.Lane, bool) { return j.lane, j.entered }

func (j *job) HoldsUp(waiting int) { j.heldUp.Store(int32(waiting)) }

// testWorkers runs f in a bubble with a pool that nobody closes, and a function that makes calls to run on
// it. In the end all goroutines have been swept, or else the bubble does not end.
func testWorkers(t *testing.T, f func(t *testing.T, w *workers.Pool, call func(run func()) *job)) {
	synctest.Test(t, func(t *testing.T) {
		w := new(workers.Pool)
		w.Init(-1, -1, -1)
		defer func() {
			time.Sleep(2 * sweepWorkers)
			synctest.Wait()
			require.Zero(t, w.Idle())
			require.Zero(t, workersNow())
			require.Zero(t, w.Running())
		}()
		o := newOwner()
		f(t, w, func(run func()) *job { return &job{run: run, owner: o, cost: 1} })
	})
}

// sweepWorkers is how often goroutines that are not needed are ended, and maxIdleWorkers how many wait for
// a call at most.
const (
	sweepWorkers   = time.Second
	maxIdleWorkers = 1 << 10
)

// The goroutine that was used last runs the next call, and there are as many as
// calls run at once.
func TestWorkersAreUsedAgain(t *testing.T) {
	testWorkers(t, func(t *testing.T, w *workers.Pool, call func(func()) *job) {
		ids := map[string]int{}
		for range 20 {
			w.Run(call(func() { ids[goroutineId()]++ }))
			synctest.Wait()
			require.Equal(t, 1, w.Idle())
		}
		require.Len(t, ids, 1)

		release, got := make(chan struct{}), make(chan string, 3)
		for range 3 {
			w.Run(call(func() { got <- goroutineId(); <-release }))
		}
		synctest.Wait()
		require.Zero(t, w.Idle(), "busy ones are not idle")
		for range 3 {
			ids[<-got]++
		}
		require.Len(t, ids, 3, "one of them is the old one")
		close(release)
		synctest.Wait()
		require.Equal(t, 3, w.Idle())
		w.Run(call(func() { got <- goroutineId() }))
		require.Contains(t, ids, <-got)
		synctest.Wait()
		require.Equal(t, 3, w.Idle())
	})
}

// Workers that were idle for a whole period of the sweep end, no sooner, and then
// the sweep does too.
func TestIdleWorkersEnd(t *testing.T) {
	testWorkers(t, func(t *testing.T, w *workers.Pool, call func(func()) *job) {
		for range 2 { // after an end it begins again
			release := make(chan struct{})
			for range 5 {
				w.Run(call(func() { <-release }))
			}
			synctest.Wait()
			close(release)
			synctest.Wait()
			require.Equal(t, 5, w.Idle())
			time.Sleep(2*sweepWorkers - 1)
			synctest.Wait()
			require.Equal(t, 5, workersNow())
			require.Equal(t, 5, w.Idle(), "not yet idle from one sweep to the next")
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			require.Zero(t, w.Idle())
			require.Zero(t, workersNow())
		}
	})
}

// Of the workers those stay that were needed since the last sweep.
func TestWorkersThatAreNeededStay(t *testing.T) {
	testWorkers(t, func(t *testing.T, w *workers.Pool, call func(func()) *job) {
		run := func(n int) {
			release := make(chan struct{})
			for range n {
				w.Run(call(func() { <-release }))
			}
			synctest.Wait()
			close(release)
			synctest.Wait()
		}
		run(10)
		for range 50 {
			time.Sleep(sweepWorkers / 10)
			run(3)
		}
		require.Equal(t, 3, w.Idle())
		for range 50 {
			time.Sleep(sweepWorkers / 10)
			run(1)
		}
		require.Equal(t, 1, w.Idle())
	})
}

// Close ends idle workers at once and busy ones when they have finished, whose
// calls run to their end.
func TestWorkersClose(t *testing.T) {
	testWorkers(t, func(t *testing.T, w *workers.Pool, call func(func()) *job) {
		const n = 4
		all := make(chan struct{}) // so that no worker is used twice
		release, began, ended := make(chan struct{}), make(chan struct{}, n), make(chan struct{}, n)
		for i := range n {
			w.Run(call(func() {
				began <- struct{}{}
				if <-all; i > 0 {
					<-release
				}
				ended <- struct{}{}
			}))
		}
		close(all)
		synctest.Wait()
		require.Len(t, began, n)
		require.Len(t, ended, 1)
		require.Equal(t, 1, w.Idle())
		require.Equal(t, n, workersNow())
		w.Close()
		synctest.Wait()
		require.Zero(t, w.Idle())
		require.Equal(t, n-1, workersNow(), "only the idle one has ended")
		close(release)
		synctest.Wait()
		require.Len(t, ended, n)
		require.Zero(t, w.Idle())
		require.Zero(t, workersNow())
		// What still comes is run, on a goroutine that does not stay.
		w.Run(call(func() { ended <- struct{}{} }))
		for range n + 1 {
			<-ended
		}
		synctest.Wait()
		require.Zero(t, workersNow())
		w.Close()
	})
}

// A call that ends its goroutine ends a worker.
func TestWorkersAndGoexit(t *testing.T) {
	testWorkers(t, func(t *testing.T, w *workers.Pool, call func(func()) *job) {
		var last string
		run := func(then func()) string {
			w.Run(call(func() { last = goroutineId(); then() }))
			synctest.Wait()
			return last
		}
		first := run(func() {})
		require.Equal(t, first, run(runtime.Goexit))
		require.Zero(t, w.Idle())
		second := run(func() {})
		require.NotEqual(t, first, second)
		require.Equal(t, second, run(func() {}))
		require.Equal(t, 1, w.Idle())
	})
}

// After a burst no more than so many wait for another.
func TestWorkersKeepNoMoreThanTheyMay(t *testing.T) {
	testWorkers(t, func(t *testing.T, w *workers.Pool, call func(func()) *job) {
		release := make(chan struct{})
		for range maxIdleWorkers + 100 {
			w.Run(call(func() { <-release }))
		}
		synctest.Wait()
		require.Equal(t, maxIdleWorkers+100, workersNow())
		close(release)
		synctest.Wait()
		require.Equal(t, maxIdleWorkers, w.Idle())
		require.Equal(t, maxIdleWorkers, workersNow())
	})
}

// No more run at once than may, in all and of one connection; a pull is refused then, and a push waits, in
// order, within its bound.
func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(workers.Pool)
		w.Init(16, 2, 100)
		defer w.Close()
		a, b := newOwner(), newOwner()
		release := make(chan struct{})
		var mu sync.Mutex
		var order []int
		call := func(o *owner, kind workers.Kind, n int) *job {
			return &job{owner: o, kind: kind, cost: 40, run: func() {
				<-release
				mu.Lock()
				order = append(order, n)
				mu.Unlock()
			}}
		}
		require.Equal(t, workers.Accepted, w.Run(call(a, workers.Pull, 0)))
		require.Equal(t, workers.Accepted, w.Run(call(a, workers.Pull, 0)))
		require.Equal(t, workers.Overloaded, w.Run(call(a, workers.Pull, 1)))
		require.Equal(t, workers.Overloaded, w.Run(call(a, workers.Refusal, 1)))
		waits := []*job{call(a, workers.Push, 2), call(a, workers.Push, 3)}
		for _, j := range waits {
			require.Equal(t, workers.Accepted, w.Run(j))
			require.True(t, j.waits.Load())
		}
		require.Equal(t, workers.Overflown, w.Run(call(a, workers.Push, 4)), "more than 100 bytes")
		free := call(b, workers.Push, 5)
		require.Equal(t, workers.Accepted, w.Run(free), "another connection's")
		require.False(t, free.waits.Load())
		require.Equal(t, 3, w.Running())
		close(release)
		synctest.Wait()
		require.Zero(t, w.Running())
		require.Len(t, order, 5)
		require.ElementsMatch(t, []int{0, 0, 2, 3, 5}, order)
		require.Positive(t, a.changes.Load())
	})
}

// An eighth of all is for connections that run few.
func TestReservedPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(workers.Pool)
		w.Init(16, -1, -1)
		defer w.Close()
		greedy, late := newOwner(), newOwner()
		release := make(chan struct{})
		call := func(o *owner) *job {
			return &job{owner: o, kind: workers.Pull, run: func() { <-release }}
		}
		n := 0
		for w.Run(call(greedy)) == workers.Accepted {
			n++
		}
		require.Equal(t, 14, n)
		require.Equal(t, workers.Accepted, w.Run(call(late)))
		require.Equal(t, workers.Overloaded, w.Run(call(late)), "it has its share")
		close(release)
		synctest.Wait()
	})
}

// Pulls wait while their replies could not be sent, and begin in order when there is room again; who goes
// takes them with it.
func TestPullsWaitForTheOutput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(workers.Pool)
		w.Init(-1, -1, -1)
		defer w.Close()
		o := newOwner()
		ran := make(chan int, 100)
		pull := func(n int) *job {
			return &job{owner: o, kind: workers.Pull, cost: 10, run: func() { ran <- n }}
		}
		o.busy.Store(true)
		for n := range 50 {
			require.Equal(t, workers.Accepted, w.Run(pull(n)))
		}
		require.Equal(t, workers.Accepted, w.Run(&job{owner: o, kind: workers.Refusal,
			run: func() { ran <- -1 }}))
		synctest.Wait()
		require.Len(t, ran, 1, "refusals do not wait")
		require.Equal(t, -1, <-ran)
		require.EqualValues(t, 500, o.queue.PullBytes())
		w.Resume(&o.queue)
		synctest.Wait()
		require.Empty(t, ran, "it is busy still")
		o.busy.Store(false)
		w.Resume(&o.queue)
		synctest.Wait()
		require.Len(t, ran, 50)
		require.Zero(t, o.queue.PullBytes())
		o.busy.Store(true)
		left := pull(1)
		w.Run(left)
		w.DropPulls(&o.queue)
		require.True(t, left.dropped.Load())
		require.Zero(t, o.queue.PullBytes())
	})
}

// Pushes that wait can be given up.
func TestDropPushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(workers.Pool)
		w.Init(-1, 1, -1)
		defer w.Close()
		o := newOwner()
		release := make(chan struct{})
		w.Run(&job{owner: o, run: func() { <-release }})
		var waiting []*job
		for range 3 {
			j := &job{owner: o, run: func() { t.Error("it was given up") }}
			w.Run(j)
			waiting = append(waiting, j)
		}
		require.Equal(t, 3, w.DropPushes(&o.queue))
		require.Zero(t, w.DropPushes(&o.queue))
		for _, j := range waiting {
			require.True(t, j.dropped.Load())
		}
		close(release)
	})
}

// Calls that run elsewhere count as others do.
func TestAdopt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(workers.Pool)
		w.Init(-1, 1, -1)
		defer w.Close()
		o := newOwner()
		w.Adopt(nil, &o.queue, nil)
		ran := make(chan struct{}, 1)
		j := &job{owner: o, run: func() { ran <- struct{}{} }}
		require.Equal(t, workers.Accepted, w.Run(j))
		require.True(t, j.waits.Load())
		w.Ended(&o.queue, nil)
		<-ran
	})
}

// Calls of one lane run one after another in their order, whoever runs them, and however they end.
func TestLane(t *testing.T) {
	testWorkers(t, func(t *testing.T, w *workers.Pool, call func(func()) *job) {
		var lane, other workers.Lane
		var order []int
		in := func(l *workers.Lane, run func()) *job {
			j := call(run)
			j.lane = l
			return j
		}
		release := make(chan struct{})
		for i := range 100 {
			require.Equal(t, workers.Accepted, w.Run(in(&lane, func() {
				if i == 0 {
					<-release
				}
				order = append(order, i)
				switch i % 3 {
				case 1:
					runtime.Goexit()
				case 2:
					time.Sleep(time.Millisecond)
				}
			})))
		}
		ran := false
		w.Run(in(&other, func() { ran = true }))
		synctest.Wait()
		require.True(t, ran, "another lane does not wait")
		require.False(t, lane.TryEnter())
		require.Equal(t, 99, lane.Waiting())
		close(release)
		time.Sleep(time.Second)
		synctest.Wait()
		require.Len(t, order, 100)
		require.True(t, slices.IsSorted(order))
		require.Zero(t, lane.Waiting())

		require.True(t, lane.TryEnter()) // as a reader
		w.Run(in(&lane, func() { order = nil }))
		synctest.Wait()
		require.NotNil(t, order)
		w.Leave(&lane)
		synctest.Wait()
		require.Nil(t, order)
		require.True(t, lane.TryEnter())
		w.Leave(&lane)
	})
}

// A reader that asks for a lane gets it when the call that runs has ended, and runs what waits in order: its
// own connection's quick calls. The others go by workers, and then the lane is not the reader's any more.
func TestReaderTakesOverALane(t *testing.T) {
	type setup struct {
		w        *workers.Pool
		lane     *workers.Lane
		own      *owner
		add      func(o *owner, quick bool, name string) *job
		ran      func() []string
		takeOver func() *job
		next     func() *job
	}
	tests := map[string]func(t *testing.T, s setup){
		"all of them": func(t *testing.T, s setup) {
			for j := s.takeOver(); j != nil; j = s.next() {
				require.False(t, s.lane.TryEnter())
				j.run()
			}
			require.Equal(t, []string{"first", "a", "b"}, s.ran())
		},
		"one that is not quick": func(t *testing.T, s setup) {
			s.add(s.own, false, "slow")
			s.add(s.own, true, "c")
			for j := s.takeOver(); j != nil; j = s.next() {
				require.NotEqual(t, 4, len(s.ran()))
				j.run()
			}
			require.Equal(t, []string{"first", "a", "b", "slow", "c"}, s.ran())
		},
		"another connection's": func(t *testing.T, s setup) {
			s.add(newOwner(), true, "other")
			s.takeOver().run()
			s.next().run()
			require.Nil(t, s.next())
			require.Equal(t, []string{"first", "a", "b", "other"}, s.ran())
		},
		"the reader is held up": func(t *testing.T, s setup) {
			j := s.takeOver()
			require.True(t, s.lane.Ask(), "the reader that replaces it may ask again")
			j.run()
			s.w.Ended(&s.own.queue, s.lane)
			synctest.Wait()
			require.True(t, s.lane.Offered())
			require.Equal(t, []string{"first", "a"}, s.ran())
			s.takeOver().run()
			require.Nil(t, s.next())
		},
		"a call ends its goroutine": func(t *testing.T, s setup) {
			s.takeOver()
			s.w.Ended(&s.own.queue, s.lane)
			require.Equal(t, []string{"first", "b"}, s.ran())
		},
		"what waits is given up": func(t *testing.T, s setup) {
			require.Equal(t, 2, s.w.DropPushes(&s.own.queue))
			require.Nil(t, s.takeOver())
			require.Equal(t, []string{"first"}, s.ran())
		},
		"another one comes meanwhile": func(t *testing.T, s setup) {
			s.add(s.own, true, "c")
			require.Equal(t, []string{"first"}, s.ran())
			for j := s.takeOver(); j != nil; j = s.next() {
				j.run()
				if len(s.ran()) == 2 {
					s.add(s.own, true, "d")
				}
			}
			require.Equal(t, []string{"first", "a", "b", "c", "d"}, s.ran())
		},
		"others wait for a place": func(t *testing.T, s setup) {
			release := make(chan struct{})
			for range 3 {
				s.w.Run(&job{owner: newOwner(), run: func() { <-release }})
			}
			synctest.Wait()
			require.Nil(t, s.takeOver(), "workers take turns")
			close(release)
			require.Equal(t, []string{"first", "a", "b"}, s.ran())
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := new(workers.Pool)
				w.Init(2, -1, -1)
				defer w.Close()
				var lane workers.Lane
				var mu sync.Mutex
				var ran []string
				own, release := newOwner(), make(chan struct{})
				add := func(o *owner, quick bool, name string) *job {
					j := &job{owner: o, quick: quick, lane: &lane}
					j.run = func() {
						if name == "first" {
							<-release
						}
						mu.Lock()
						defer mu.Unlock()
						ran = append(ran, name)
					}
					w.Run(j)
					return j
				}
				add(own, true, "first")
				add(own, true, "a")
				add(own, true, "b")
				require.True(t, lane.Ask())
				require.False(t, lane.Ask(), "one reader asks at a time")
				require.False(t, lane.Offered())
				close(release)
				synctest.Wait()
				require.True(t, lane.Offered())
				require.False(t, lane.TryEnter())
				jobOf := func(c workers.Job) *job {
					if c == nil {
						return nil
					}
					return c.(*job)
				}
				test(t, setup{w, &lane, own, add,
					func() []string {
						synctest.Wait()
						mu.Lock()
						defer mu.Unlock()
						return slices.Clone(ran)
					},
					func() *job { return jobOf(w.TakeOver(&lane, &own.queue)) },
					func() *job { return jobOf(w.Next(&lane, &own.queue)) },
				})
				synctest.Wait()
				require.True(t, lane.TryEnter(), "the lane is free at the end")
				require.Zero(t, w.Running())
			})
		})
	}
}

// A reader that asks while the call runs on takes nothing, and a worker goes on.
func TestReaderAsksInVain(t *testing.T) {
	testWorkers(t, func(t *testing.T, w *workers.Pool, call func(func()) *job) {
		var lane workers.Lane
		release, ran := make(chan struct{}), 0
		for range 3 {
			j := call(func() { <-release; ran++ })
			j.lane, j.quick = &lane, true
			w.Run(j)
		}
		require.True(t, lane.Ask())
		require.Nil(t, w.TakeOver(&lane, &call(nil).owner.queue))
		close(release)
		synctest.Wait()
		require.Equal(t, 3, ran)
		require.True(t, lane.TryEnter())
	})
}

// What waits in a lane has the bounds of what waits, and can be given up; the lane goes on.
func TestWhatWaitsInALane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(workers.Pool)
		w.Init(-1, 3, 100)
		defer w.Close()
		var lane workers.Lane
		release := make(chan struct{})
		one, two := newOwner(), newOwner()
		var ran []string
		add := func(o *owner, kind workers.Kind, name string, cost int64) (*job, workers.Verdict) {
			j := &job{owner: o, kind: kind, cost: cost, lane: &lane}
			j.run = func() { <-release; ran = append(ran, name) }
			return j, w.Run(j)
		}
		add(one, workers.Push, "first", 1)
		synctest.Wait()
		var dropped []*job
		for i := range 2 { // 50 each
			j, v := add(one, workers.Push, "one", 50)
			require.Equal(t, workers.Accepted, v, i)
			dropped = append(dropped, j)
		}
		_, v := add(one, workers.Push, "too much", 1)
		require.Equal(t, workers.Overflown, v)
		w.Trust(&one.queue)
		j, v := add(one, workers.Push, "trusted", 1)
		require.Equal(t, workers.Accepted, v)
		dropped = append(dropped, j)
		for range 3 {
			_, v = add(two, workers.Pull, "two", 1)
			require.Equal(t, workers.Accepted, v)
		}
		_, v = add(two, workers.Pull, "too many", 1)
		require.Equal(t, workers.Overloaded, v)
		require.Equal(t, 6, lane.Waiting())
		require.Equal(t, 3, w.DropPushes(&one.queue))
		for _, j := range dropped {
			require.True(t, j.dropped.Load())
		}
		running, waiting, cost := w.Count(&one.queue)
		require.Equal(t, 1, running)
		require.Zero(t, waiting)
		require.Zero(t, cost)
		close(release)
		synctest.Wait()
		require.Equal(t, []string{"first", "two", "two", "two"}, ran)
		require.True(t, lane.TryEnter())
	})
}

// A call that is in its turn and finds no room keeps the lane.
func TestLaneAtTheLimitOfHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := new(workers.Pool)
		w.Init(2, -1, -1)
		defer w.Close()
		var lane workers.Lane
		var ran []int
		o, others := newOwner(), newOwner()
		release := make(chan struct{})
		for range 2 {
			w.Run(&job{owner: others, run: func() { <-release }})
		}
		for i := range 10 {
			w.Run(&job{owner: o, lane: &lane, run: func() { ran = append(ran, i) }})
			w.Run(&job{owner: others, run: func() { <-release }})
		}
		synctest.Wait()
		require.Empty(t, ran)
		close(release)
		synctest.Wait()
		require.Equal(t, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, ran)
		require.Zero(t, w.Running())
	})
}

// Who holds up a lane is told once, and not who has just begun.
func TestHoldsUp(t *testing.T) {
	testWorkers(t, func(t *testing.T, w *workers.Pool, call func(func()) *job) {
		var lane workers.Lane
		in := func(d time.Duration) *job {
			j := call(func() { time.Sleep(d) })
			j.lane = &lane
			w.Run(j)
			return j
		}
		quick := in(workers.HeldUp * 3 / 4)
		slow := in(time.Minute)
		in(0)
		in(0)
		time.Sleep(2 * time.Minute)
		require.Zero(t, quick.heldUp.Load())
		require.EqualValues(t, 2, slow.heldUp.Load())
	})
}

// edgeOwner is a connection whose output gets room just behind the question whether it has some.
type edgeOwner struct {
	owner
	pool *workers.Pool
	left int
}

func (o *edgeOwner) OutputBusy() bool {
	if o.left == 0 {
		return false
	}
	if o.left--; o.left == 0 && o.queue.PullBytes() > 0 {
		go o.pool.Resume(&o.queue)
	}
	return true
}

// A pull that is held at the moment when there is room runs, and so do those behind it.
func TestRoomJustBehindTheQuestion(t *testing.T) {
	for left := range 4 {
		synctest.Test(t, func(t *testing.T) {
			w := new(workers.Pool)
			w.Init(10, 10, 100)
			defer w.Close()
			o := &edgeOwner{pool: w, left: left}
			o.queue.Init(o)
			var lane workers.Lane
			ran := 0
			for range 5 {
				w.Run(&job{owner: &o.owner, kind: workers.Pull, cost: 1, lane: &lane, run: func() { ran++ }})
				synctest.Wait()
			}
			require.Equal(t, 5, ran)
		})
	}
}
