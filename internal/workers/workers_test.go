package workers_test

import (
	"bytes"
	"runtime"
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
}

func (j *job) Run()                  { j.run() }
func (j *job) Drop()                 { j.dropped.Store(true) }
func (j *job) Waits()                { j.waits.Store(true) }
func (j *job) Kind() workers.Kind    { return j.kind }
func (j *job) Cost() int64           { return j.cost }
func (j *job) Queue() *workers.Queue { return &j.owner.queue }

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
		w.Adopt(&o.queue)
		ran := make(chan struct{}, 1)
		j := &job{owner: o, run: func() { ran <- struct{}{} }}
		require.Equal(t, workers.Accepted, w.Run(j))
		require.True(t, j.waits.Load())
		w.Ended(&o.queue)
		<-ran
	})
}
