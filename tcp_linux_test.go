package tp

import (
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/henrylee2cn/teleport/internal/race"
)

// The kernel is told when to give a connection up, on both ends.
func TestTCPOptions(t *testing.T) {
	const idle, interval, count = 4, 5, 6 // TCP_KEEPIDLE and so on, tcp(7)
	for _, c := range []struct {
		cfg                               PeerConfig
		on, idle, interval, count, userMs int
	}{
		{PeerConfig{}, 1, 15, 5, 3, 30_000},
		{PeerConfig{KeepAlive: 6 * time.Second, UserTimeout: time.Second}, 1, 6, 2, 3, 1000},
		{PeerConfig{KeepAlive: -1, UserTimeout: -1}, 0, -1, -1, -1, 0},
	} {
		srv, cli := newTestPeer(t, &c.cfg), newTestPeer(t, &c.cfg)
		pullFn(srv, echo)
		sess := dial(t, cli, srv)
		requireAlive(t, sess)
		other, ok := srv.GetSession(sess.Socket().LocalAddr().String())
		require.True(t, ok)
		for _, s := range []*Session{sess, other} {
			var got []int
			require.NoError(t, s.Socket().Control(func(fd uintptr) {
				for _, o := range [][2]int{
					{syscall.SOL_SOCKET, syscall.SO_KEEPALIVE}, {syscall.IPPROTO_TCP, idle},
					{syscall.IPPROTO_TCP, interval}, {syscall.IPPROTO_TCP, count}, {syscall.IPPROTO_TCP,
						unix.TCP_USER_TIMEOUT},
				} {
					n, err := syscall.GetsockoptInt(int(fd), o[0], o[1])
					require.NoError(t, err)
					got = append(got, n)
				}
			}))
			want := []int{c.on, c.idle, c.interval, c.count, c.userMs}
			if c.on == 0 { // then the others are the system's
				copy(want[1:4], got[1:4])
			}
			require.Equal(t, want, got)
		}
	}
}

// A goroutine begins with a stack of 2 KiB. A reader that waits for a packet fits into that, so that a
// session that does nothing costs no more.
func TestIdleReadersHaveSmallStacks(t *testing.T) {
	if race.Enabled {
		t.Skip("the race detector makes frames larger")
	}
	const sessions, first = 300, 2 << 10
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	pullFn(srv, echo)
	addr := serve(t, srv)
	stacks := func() int64 {
		runtime.GC() // frees the stacks of goroutines that have ended
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.StackInuse)
	}
	before := stacks()
	for range sessions {
		sess, err := cli.Dial(addr)
		require.NoError(t, err)
		requireAlive(t, sess)
	}
	// The readers of a session that was quiet for a second are new goroutines.
	require.Eventually(t, func() bool { return (stacks()-before)/(2*sessions) < first+first/4 }, time.Minute,
		100*time.Millisecond)
}
