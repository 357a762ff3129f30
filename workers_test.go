package tp

import (
	"bytes"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
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
		if strings.Contains(stack, "synctest bubble") && strings.Contains(stack, "(*workers).work(") {
			n++
		}
	}
	return n
}

// testWorkers runs f in a bubble with workers that nobody closes, and a function
// that makes calls to run on them. In the end all of them have been swept, or
// else the bubble does not end.
func testWorkers(t *testing.T, f func(t *testing.T, w *workers, call func(handler func()) *packetCtx)) {
	synctest.Test(t, func(t *testing.T) {
		a, b := NewPeer(nil), NewPeer(nil)
		defer a.Close()
		defer b.Close()
		sess, _ := connect(t, a, b, pipe.Options{})
		w := &workers{most: -1, mostOfOne: -1, mostWaiting: -1}
		defer func() {
			time.Sleep(2 * sweepWorkers)
			synctest.Wait()
			require.Zero(t, w.idleNow())
			require.Zero(t, workersNow())
			require.False(t, w.sweepingNow(), "no timer is left")
		}()
		f(t, w, func(handler func()) *packetCtx {
			c := newReadCtx(sess.link.Load())
			c.typ = packet.TypePush
			c.handler = &Handler{
				path:   "/test",
				chain:  a.chain,
				newArg: func() interface{} { return new(int) },
				call:   func(*packetCtx, interface{}) (interface{}, Xerror) { handler(); return nil, nil },
			}
			sess.link.Load().running.Add(1)
			return c
		})
	})
}

func (w *workers) idleNow() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.idle)
}

func (w *workers) sweepingNow() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sweeping
}

// The goroutine that was used last runs the next call, and there are as many as
// calls run at once.
func TestWorkersAreUsedAgain(t *testing.T) {
	testWorkers(t, func(t *testing.T, w *workers, call func(func()) *packetCtx) {
		ids := map[string]int{}
		for range 20 {
			w.run(call(func() { ids[goroutineId()]++ }))
			synctest.Wait()
			require.Equal(t, 1, w.idleNow())
		}
		require.Len(t, ids, 1)

		release, got := make(chan struct{}), make(chan string, 3)
		for range 3 {
			w.run(call(func() { got <- goroutineId(); <-release }))
		}
		synctest.Wait()
		require.Zero(t, w.idleNow(), "busy ones are not idle")
		for range 3 {
			ids[<-got]++
		}
		require.Len(t, ids, 3, "one of them is the old one")
		close(release)
		synctest.Wait()
		require.Equal(t, 3, w.idleNow())
		w.run(call(func() { got <- goroutineId() }))
		require.Contains(t, ids, <-got)
		synctest.Wait()
		require.Equal(t, 3, w.idleNow())
	})
}

// Workers that were idle for a whole period of the sweep end, no sooner, and then
// the sweep does too.
func TestIdleWorkersEnd(t *testing.T) {
	testWorkers(t, func(t *testing.T, w *workers, call func(func()) *packetCtx) {
		for range 2 { // after an end it begins again
			release := make(chan struct{})
			for range 5 {
				w.run(call(func() { <-release }))
			}
			synctest.Wait()
			require.False(t, w.sweepingNow(), "nobody is idle")
			close(release)
			synctest.Wait()
			require.Equal(t, 5, w.idleNow())
			require.True(t, w.sweepingNow())
			time.Sleep(2*sweepWorkers - 1)
			synctest.Wait()
			require.Equal(t, 5, workersNow())
			require.Equal(t, 5, w.idleNow(), "not yet idle from one sweep to the next")
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			require.Zero(t, w.idleNow())
			require.Zero(t, workersNow())
			require.False(t, w.sweepingNow())
		}
	})
}

// Of the workers those stay that were needed since the last sweep.
func TestWorkersThatAreNeededStay(t *testing.T) {
	testWorkers(t, func(t *testing.T, w *workers, call func(func()) *packetCtx) {
		run := func(n int) {
			release := make(chan struct{})
			for range n {
				w.run(call(func() { <-release }))
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
		require.Equal(t, 3, w.idleNow())
		for range 50 {
			time.Sleep(sweepWorkers / 10)
			run(1)
		}
		require.Equal(t, 1, w.idleNow())
	})
}

// Close ends idle workers at once and busy ones when they have finished, whose
// calls run to their end.
func TestWorkersClose(t *testing.T) {
	testWorkers(t, func(t *testing.T, w *workers, call func(func()) *packetCtx) {
		const n = 4
		all := make(chan struct{}) // so that no worker is used twice
		release, began, ended := make(chan struct{}), make(chan struct{}, n), make(chan struct{}, n)
		for i := range n {
			w.run(call(func() {
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
		require.Equal(t, 1, w.idleNow())
		require.Equal(t, n, workersNow())
		w.close()
		synctest.Wait()
		require.Zero(t, w.idleNow())
		require.Equal(t, n-1, workersNow(), "only the idle one has ended")
		close(release)
		synctest.Wait()
		require.Len(t, ended, n)
		require.Zero(t, w.idleNow())
		require.Zero(t, workersNow())
		// What still comes is run, on a goroutine that does not stay.
		w.run(call(func() { ended <- struct{}{} }))
		for range n + 1 {
			<-ended
		}
		synctest.Wait()
		require.Zero(t, workersNow())
		w.close()
	})
}

// A handler that ends its goroutine ends a worker, and a panic does not.
func TestWorkersAndGoexit(t *testing.T) {
	testWorkers(t, func(t *testing.T, w *workers, call func(func()) *packetCtx) {
		var last string
		run := func(then func()) string {
			w.run(call(func() { last = goroutineId(); then() }))
			synctest.Wait()
			return last
		}
		first := run(func() {})
		require.Equal(t, first, run(func() { panic("of the handler") }))
		require.Equal(t, 1, w.idleNow())
		require.Equal(t, first, run(runtime.Goexit))
		require.Zero(t, w.idleNow())
		second := run(func() {})
		require.NotEqual(t, first, second)
		require.Equal(t, second, run(func() {}))
		require.Equal(t, 1, w.idleNow())
	})
}

// After a burst no more than so many wait for another.
func TestWorkersKeepNoMoreThanTheyMay(t *testing.T) {
	testWorkers(t, func(t *testing.T, w *workers, call func(func()) *packetCtx) {
		release := make(chan struct{})
		for range maxIdleWorkers + 100 {
			w.run(call(func() { <-release }))
		}
		synctest.Wait()
		require.Equal(t, maxIdleWorkers+100, workersNow())
		close(release)
		synctest.Wait()
		require.Equal(t, maxIdleWorkers, w.idleNow())
		require.Equal(t, maxIdleWorkers, workersNow())
	})
}

// The calls of a peer run on its workers, which end with it.
func TestPeerUsesItsWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, cli := NewPeer(nil), NewPeer(nil)
		defer cli.Close()
		defer srv.Close()
		HandlePull(srv.PullRouter, "/id", func(_ PullCtx, block *bool) (string, Xerror) {
			if *block {
				time.Sleep(100 * time.Millisecond)
			}
			return goroutineId(), nil
		})
		HandlePull(srv.PullRouter, "/exit", func(PullCtx, *int) (string, Xerror) { runtime.Goexit(); return "", nil })
		_, sess := connect(t, srv, cli, pipe.Options{})
		pull := func() string {
			var id string
			require.Nil(t, sess.Pull("/id", false, &id).Xerror)
			synctest.Wait()
			return id
		}
		first := pull()
		require.Equal(t, first, pull())
		require.Equal(t, StatusInternalServerError, sess.Pull("/exit", 1, nil).Xerror.Code())
		synctest.Wait()
		require.NotEqual(t, first, pull())

		const n = 10
		done := make(chan *PullCmd, n)
		for range n {
			sess.GoPull("/id", true, new(string), done)
		}
		ids := map[string]bool{}
		for range n {
			cmd := <-done
			require.Nil(t, cmd.Xerror)
			reply, _ := cmd.Result()
			ids[*reply.(*string)] = true
		}
		require.Len(t, ids, n)
		synctest.Wait()
		require.Equal(t, n, srv.workers.idleNow())
		time.Sleep(3 * sweepWorkers)
		require.Zero(t, srv.workers.idleNow())
		pull()
		require.Equal(t, 1, srv.workers.idleNow())
		require.NoError(t, srv.Close())
		require.Zero(t, srv.workers.idleNow())
	})
}

// A sweep that is due when the workers are closed finds nothing to end.
func TestSweepAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, nil)
		release := make(chan struct{})
		HandlePull(srv.PullRouter, "/wait", func(PullCtx, *int) (int, Xerror) { <-release; return 0, nil })
		sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		done := make(chan *PullCmd, 10)
		for range 10 {
			sess.GoPull("/wait", 1, nil, done)
		}
		synctest.Wait()
		close(release)
		for range 10 {
			require.Nil(t, (<-done).Xerror)
		}
		time.Sleep(sweepWorkers + 1) // of the bubble's time: all ten are spare now
		require.NoError(t, srv.Close())
		time.Sleep(2 * sweepWorkers)
		require.Zero(t, srv.workers.idleNow())
		require.False(t, srv.workers.sweepingNow())
	})
}
