package stress

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/packet"
)

// echoFrame is a pull of /echo.
func echoFrame(id string) []byte {
	return rawFrame(&packet.Header{Id: id, Type: packet.TypePull, Uri: "/echo"}, []byte("j1"))
}

// Many sessions live at once and all of them are used: every pull is answered once,
// with its own reply, and run once.
func TestLiveSessions(t *testing.T) {
	alongside(t)
	holdLoad(t, figure(300, 10_000), 1, 128)
}

// The same for many pulls in flight on each session.
func TestPullsInFlight(t *testing.T) {
	alongside(t)
	holdLoad(t, figure(30, 100), 100, 0)
}

// holdLoad pulls on so many sessions, for a while, with so many pulls in flight on
// each, or with so many callers in all that take turns on the sessions.
func holdLoad(t *testing.T, sessions, inFlight, callers int) {
	duration := figure(2*time.Second, time.Minute)
	srv := start(t, options{})
	cli := options{}.client()
	defer cli.Close()
	all := make([]*tp.Session, sessions)
	begin := time.Now()
	parallel(t, 32, sessions, func(i int) error {
		conn, err := connect(srv.addr)
		if err != nil {
			return err
		}
		all[i], err = cli.ServeConn(conn)
		return err
	})
	dialled := time.Since(begin)
	if callers == 0 {
		callers = sessions * inFlight
	}
	var pulls, wrong atomic.Int64
	perSession := make([]atomic.Int64, sessions)
	end := time.Now().Add(duration)
	begin = time.Now()
	parallel(t, callers, callers, func(caller int) error {
		// Each caller has sessions of its own, or shares one.
		for i, round := caller%sessions, 0; round < 2 || time.Now().Before(end); i,
			round = (i+callers)%sessions, round+1 {
			want := fmt.Sprintf("%d of %d", round, caller)
			var got string
			cmd := all[i].Pull("/echo", want, &got)
			pulls.Add(1)
			perSession[i].Add(1)
			if cmd.Xerror != nil {
				return fmt.Errorf("session %d: %w", i, cmd.Xerror)
			}
			if got != want {
				wrong.Add(1)
			}
		}
		return nil
	})
	took := time.Since(begin)
	least := pulls.Load()
	for i := range perSession {
		least = min(least, perSession[i].Load())
	}
	got := srv.stats(t, true)
	t.Logf("%d sessions (made in %v) with up to %d pulls in flight for %v: %d pulls, %.0f a second, %d at "+
		"least on each; server: heap %.1f MiB, resident %.1f MiB at most, %d goroutines",
		sessions, dialled.Round(time.Millisecond), callers, took.Round(time.Millisecond), pulls.Load(),
		float64(pulls.Load())/took.Seconds(), least,
		inMiB(got.Heap), inMiB(got.PeakRSS), got.Goroutines)
	require.Zero(t, wrong.Load(), "replies of other pulls")
	require.Equal(t, pulls.Load(), got.Echoes-srv.base.Echoes, "pulls that were run")
	require.Equal(t, sessions+1, got.Sessions)
	require.Positive(t, least, "a session was not used")
	require.NoError(t, cli.Close())
	srv.requireBaseline(t, 0)
}
