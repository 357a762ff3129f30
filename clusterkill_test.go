//go:build unix

package tp

import (
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// One of three processes is killed while a cluster pulls from them, and another takes its place later. What
// was under way there fails, with an error that says that it may have run, and nothing else does: each caller
// has one call under way at a time, so it has one such failure at most. What was answered has run once, and
// nothing has run twice.
func TestClusterProcessKilled(t *testing.T) {
	dir := t.TempDir()
	notes, log := filepath.Join(dir, "notes"), openLog(t, filepath.Join(dir, "log"))
	start := func() (*program, Server) {
		p := prepareProgram(t, "reboot", "TP_TEST_ADDRS=127.0.0.1:0", "TP_TEST_NOTES="+notes)
		p.cmd.Stderr = log
		require.NoError(t, p.cmd.Start())
		return p, Server{Addr: p.line()}
	}
	a, atA := start()
	_, atB := start()
	_, atC := start()
	resolver := servers(atA, atB, atC)
	c := NewCluster(newTestPeer(t, nil), resolver)
	t.Cleanup(func() { _ = c.Close() })
	require.Eventually(t, func() bool { return len(connected(c)) == 3 }, time.Minute, time.Millisecond)
	const callers = 20
	var (
		wg       sync.WaitGroup
		ending   atomic.Bool
		answered sync.Map
		calls    atomic.Int64
		lost     [callers]int
		by       sync.Map // pids that have answered
	)
	for i := range callers {
		wg.Go(func() {
			for n := 0; !ending.Load(); n++ {
				id, pid := fmt.Sprint(i, "-", n), 0
				switch x := c.Pull("/call", id, &pid).Xerror; {
				case x == nil:
					answered.Store(id, true)
					by.Store(pid, true)
					calls.Add(1)
				case x.Code() == StatusConnClosed && !NotRun(x):
					lost[i]++
				default:
					t.Errorf("call %s: %v", id, x)
					return
				}
			}
		})
	}
	answers := func(n int64) {
		n += calls.Load()
		require.Eventually(t, func() bool { return calls.Load() >= n || t.Failed() }, time.Minute,
			time.Millisecond)
	}
	answers(2000)
	require.NoError(t, a.cmd.Process.Kill())
	answers(2000)
	d, atD := start()
	resolver.set(atB, atC, atD)
	serves := func() bool { _, ok := by.Load(d.cmd.Process.Pid); return ok || t.Failed() }
	require.Eventually(t, serves, time.Minute, time.Millisecond, "the new server has answered nothing")
	ending.Store(true)
	wg.Wait()
	inFlight := 0
	for i, n := range lost {
		require.LessOrEqual(t, n, 1, "caller %d", i)
		inFlight += n
	}
	requireRanOnce(t, notes, &answered)
	t.Logf("%d pulls answered, %d were under way at the server that was killed", calls.Load(), inFlight)
}
