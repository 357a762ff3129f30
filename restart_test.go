//go:build unix

package tp

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var (
	killedClients = flag.Int("killed-clients", 100, "how many sessions redial in TestKilledAndStartedAgain")
	killedFor     = flag.Duration("killed-for", time.Second, "how long the server is away")
	killedCheck   = flag.Bool("killed-check", false,
		"check how long it takes, and how evenly dials are spread")
)

// freePort is a port that no connection of somebody else's has by chance while nobody
// listens there.
func freePort(t *testing.T) string {
	for range 1000 {
		addr := fmt.Sprint("127.0.0.1:", 20000+rand.N(10000)) // below the ports that the system gives
		if ln, err := net.Listen("tcp", addr); err == nil {
			require.NoError(t, ln.Close())
			return addr
		}
	}
	t.Fatal("no port is free")
	return ""
}

// A server is killed and started again. All sessions come back, spread over time, and
// what was answered has run once; nothing has run twice.
func TestKilledAndStartedAgain(t *testing.T) {
	addr := freePort(t)
	dir := t.TempDir()
	notes, log := filepath.Join(dir, "notes"), openLog(t, filepath.Join(dir, "log"))
	start := func() *program {
		p := prepareProgram(t, "reboot", "TP_TEST_ADDRS="+addr, "TP_TEST_NOTES="+notes)
		p.cmd.Stderr = log
		require.NoError(t, p.cmd.Start())
		require.Equal(t, addr, p.line())
		return p
	}
	p := start()
	cli := newTestPeer(t, &PeerConfig{Redial: &Redial{MaxWait: -1}})
	var mu sync.Mutex
	var dials []time.Duration
	began := time.Now()
	realDial := cli.dialConn
	cli.dialConn = func(ctx context.Context, network, address string) (net.Conn, error) {
		mu.Lock()
		dials = append(dials, time.Since(began))
		mu.Unlock()
		return realDial(ctx, network, address)
	}
	clients := *killedClients
	sessions := make([]*Session, clients)
	for i := range sessions {
		var err error
		sessions[i], err = cli.Dial(addr)
		require.NoError(t, err)
	}
	var wg sync.WaitGroup
	var ending atomic.Bool
	var answered sync.Map
	var calls, unknown, back atomic.Int64
	second := make(chan struct{}) // the second process serves
	var pid2, last atomic.Int64
	var returned time.Time
	for i, sess := range sessions {
		wg.Go(func() {
			isBack := false
			for n := 0; !ending.Load(); n++ {
				id := fmt.Sprint(i, "-", n)
				var by int64
				switch x := sess.Pull("/call", id, &by).Xerror; {
				case x == nil:
					answered.Store(id, true)
					calls.Add(1)
				case x.Code() == StatusConnClosed && !NotRun(x):
					unknown.Add(1)
				default:
					t.Errorf("call %s: %v", id, x)
					return
				}
				select {
				case <-second:
					if !isBack && by == pid2.Load() {
						isBack = true
						last.Store(int64(time.Since(returned)))
						back.Add(1)
					}
				default:
				}
				time.Sleep(time.Duration(clients) * time.Millisecond) // 1,000 calls a second in all
			}
		})
	}
	for calls.Load() < int64(2*clients) {
		time.Sleep(time.Millisecond)
	}
	mu.Lock()
	dials, began = nil, time.Now()
	mu.Unlock()
	require.NoError(t, p.cmd.Process.Kill())
	_ = p.exitCode()
	time.Sleep(*killedFor) // the outage, which is a part of what is tested
	p = start()
	pid2.Store(int64(p.cmd.Process.Pid))
	returned = time.Now()
	downFor := time.Since(began)
	close(second)
	require.Eventually(t, func() bool { return back.Load() == int64(clients) || t.Failed() }, 5*time.Minute,
		time.Millisecond)
	ending.Store(true)
	wg.Wait()
	require.NoError(t, cli.Close())
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(dials)
	worst, later, worstLater := 0, 0, 0
	for i, at := range dials {
		n, _ := slices.BinarySearch(dials, at+100*time.Millisecond)
		worst = max(worst, n-i)
		if at >= downFor {
			later++
			worstLater = max(worstLater, n-i)
		}
	}
	t.Logf("%d sessions, %v without a server: all back %v after its return; %d calls answered, of %d the "+
		"outcome unknown; "+
		"%d dials, %d of them in the worst 100 ms; %d since the return, %d in the worst 100 ms",
		clients, downFor.Round(time.Millisecond), time.Duration(last.Load()).Round(time.Millisecond),
		calls.Load(), unknown.Load(),
		len(dials), worst, later, worstLater)
	if *killedCheck {
		require.Less(t, time.Duration(last.Load()), 15*time.Second)
		require.LessOrEqual(t, worst, len(dials)/10)
	}
	requireRanOnce(t, notes, &answered)
}

// requireRanOnce requires that of the calls whose ids the servers have written into the file none has run
// twice, and each one has run that was answered.
func requireRanOnce(t *testing.T, notes string, answered *sync.Map) {
	t.Helper()
	text, err := os.ReadFile(notes)
	require.NoError(t, err)
	ran := map[string]int{}
	for id := range strings.Lines(string(text)) {
		ran[strings.TrimSpace(id)]++
	}
	for id, n := range ran {
		require.Equal(t, 1, n, "call %s", id)
	}
	answered.Range(func(id, _ any) bool {
		require.Equal(t, 1, ran[id.(string)], "call %s", id)
		return true
	})
}
