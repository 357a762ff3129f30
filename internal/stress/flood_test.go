package stress

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
)

// So many connect at once that not all can be served: the caps hold, those that have
// a session keep it, and afterwards others come in again soon.
func TestFloodOfConnects(t *testing.T) {
	n := figure(1000, 20_000)
	most := maxFiles / 5 * 4
	if !*long {
		most = 500
	}
	srv := start(t, options{Config: tp.PeerConfig{MaxSessions: most}})
	ctl := srv.control(t, options{})
	room := make(chan struct{}, min(n, maxFiles-1000)) // this process has its own limit
	var mu sync.Mutex                                  // guards conns
	var conns []net.Conn
	var refused atomic.Int64
	begin := time.Now()
	parallel(t, 256, n, func(int) error {
		conn, err := connect(srv.addr)
		if err != nil {
			refused.Add(1) // by the kernel
			return nil
		}
		select {
		case room <- struct{}{}:
			mu.Lock()
			defer mu.Unlock()
			conns = append(conns, conn)
		default:
			return conn.Close()
		}
		return nil
	})
	took := time.Since(begin)
	// Who was accepted before the caps were reached answers; the others are cut.
	var alive, cut atomic.Int64
	pull := echoFrame("1")
	parallel(t, 64, len(conns), func(i int) error {
		if err := conns[i].SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if _, err := conns[i].Write(pull); err != nil {
			cut.Add(1)
			return nil
		}
		h, _, err := readReply(conns[i])
		var ne net.Error
		switch {
		case errors.As(err, &ne) && ne.Timeout():
			return errors.New("neither served nor cut")
		case err != nil:
			cut.Add(1)
		case h.StatusCode != tp.StatusOK:
			return fmt.Errorf("%d %s", h.StatusCode, h.Status)
		default:
			alive.Add(1)
		}
		return nil
	})
	held := srv.stats(t, true)
	t.Logf("%d connects in %v: %d held and served, %d cut, %d refused by the system; the server has %d "+
		"sessions of %d, heap %.1f MiB",
		n, took.Round(time.Millisecond), alive.Load(), cut.Load(), refused.Load(), held.Sessions, most,
		inMiB(held.Heap))
	require.LessOrEqual(t, held.Sessions, most)
	require.EqualValues(t, held.Sessions, alive.Load()+2)
	require.Positive(t, cut.Load(), "the cap was not reached")
	for _, conn := range conns {
		_ = conn.Close()
	}
	begin = time.Now()
	cli := options{}.client()
	defer cli.Close()
	for {
		sess, err := cli.Dial(srv.addr)
		if err == nil && sess.Pull("/echo", 1, nil).Xerror == nil {
			break
		}
		require.Less(t, time.Since(begin), patience, "accepts do not recover")
	}
	t.Logf("%v after the flood a new connection was served", time.Since(begin).Round(time.Microsecond))
	require.NoError(t, cli.Close())
	ctl.finish()
	srv.requireBaseline(t, 0)
	srv.requireGrowth(t, 64*mib+int64(most)*(16<<10))
}

// Of many pulls at once no more run than may, the others wait, and each is answered exactly once.
func TestFloodOfPulls(t *testing.T) {
	alongside(t)
	n := figure(10_000, 100_000)
	srv := start(t, options{})
	ctl := srv.control(t, options{})
	cli := options{}.client()
	for _, uri := range []string{"/wait", "/echo"} {
		sess := srv.dial(t, cli)
		begin := time.Now()
		done := make(chan *tp.PullCmd, n)
		for i := range n {
			go func() { done <- sess.Pull(uri, i, new(int)) }()
		}
		if uri == "/wait" {
			const cap = 4096
			require.Eventually(t, func() bool { return srv.stats(t, false).Waiting == cap }, patience,
				10*time.Millisecond)
			require.Empty(t, done)
			require.EqualValues(t, cap, srv.stats(t, false).MostWaiting)
		}
		seen := make([]bool, n)
		for left := n; left > 0; left-- {
			if uri == "/wait" && (n-left)%4096 == 0 { // all that run have waited long enough
				run := int64(min(left, 4096))
				require.Eventually(t, func() bool { return srv.stats(t, false).Waiting == run }, patience,
					10*time.Millisecond)
				require.Nil(t, srv.sess.Pull("/release", nil, nil).Xerror)
			}
			cmd := receive(t, done)
			require.Nil(t, cmd.Xerror)
			reply, _ := cmd.Result()
			i := *reply.(*int)
			require.False(t, seen[i], "answered twice")
			seen[i] = true
		}
		require.Empty(t, done)
		t.Logf("%s: %d pulls at once, all answered after %v", uri, n,
			time.Since(begin).Round(time.Millisecond))
		require.NoError(t, sess.Close())
	}
	ctl.finish()
	srv.requireBaseline(t, 0)
	srv.requireGrowth(t, 128*mib) // 4,096 handlers have their stacks
}

// receive waits for a value.
func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	default:
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case v := <-from:
		return v
	case <-timer.C:
		require.FailNow(t, "nothing came")
		panic("not reached")
	}
}

// Connections that come, pull once and go leave nothing behind.
func TestChurn(t *testing.T) {
	alongside(t)
	n := figure(2000, 50_000)
	srv := start(t, options{})
	ctl := srv.control(t, options{})
	cli := options{}.client()
	defer cli.Close()
	begin := time.Now()
	parallel(t, 32, n, func(i int) error {
		conn, err := connect(srv.addr)
		if err != nil {
			return err
		}
		sess, err := cli.ServeConn(conn, fmt.Sprint(i))
		if err != nil {
			return err
		}
		var got int
		if cmd := sess.Pull("/echo", i, &got); cmd.Xerror != nil || got != i {
			return fmt.Errorf("%d, %v", got, cmd.Xerror)
		}
		return sess.Close()
	})
	took := time.Since(begin)
	t.Logf("%d times connect, pull and close in %v, %.0f a second", n, took.Round(time.Millisecond),
		float64(n)/took.Seconds())
	require.Zero(t, cli.CountSession())
	ctl.finish()
	srv.requireBaseline(t, 0)
	srv.requireGrowth(t, 64*mib)
}
