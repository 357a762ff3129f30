package tp

import (
	"bytes"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
)

// goroutineId returns the number of the goroutine that calls it.
func goroutineId() string {
	b := make([]byte, 64)
	return string(bytes.Fields(b[:runtime.Stack(b, false)])[1])
}

// sweepWorkers is how often workers that are not needed are ended.
const sweepWorkers = time.Second

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
		HandlePull(srv.PullRouter, "/exit", func(PullCtx, *int) (string, Xerror) {
			runtime.Goexit()
			return "", nil
		})
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
		require.Equal(t, n, srv.workers.Idle())
		time.Sleep(3 * sweepWorkers)
		require.Zero(t, srv.workers.Idle())
		pull()
		require.Equal(t, 1, srv.workers.Idle())
		require.NoError(t, srv.Close())
		require.Zero(t, srv.workers.Idle())
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
		require.Zero(t, srv.workers.Idle())
	})
}
