package tp

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
)

// replySize returns how many bytes the server writes for one pull of the text.
func replySize(t *testing.T, srv, cli *Peer, text string, gzip int32) int {
	t.Helper()
	sess, _ := connect(t, srv, cli, pipe.Options{})
	defer sess.Close()
	counted := make(chan int, 1)
	conn, far := pipe.New(pipe.Options{})
	_, err := srv.ServeConn(&countingConn{Conn: conn, closed: counted})
	require.NoError(t, err)
	other, err := cli.ServeConn(far)
	require.NoError(t, err)
	askForCredit(other)
	var got string
	require.Nil(t, other.Pull("/echo", text, &got, WithGzip(gzip)).Xerror)
	require.Equal(t, text, got)
	require.NoError(t, other.Close())
	return <-counted
}

// askForCredit has the two sides say what they take. Otherwise they do so when there is something large to
// send, and whether that goes in parts already depends on which is faster.
func askForCredit(sess *Session) {
	sess.conn.Load().flow.Ask()
	synctest.Wait()
}

// countingConn tells how much was written when it is closed.
type countingConn struct {
	net.Conn
	n      atomic.Int64
	once   sync.Once
	closed chan int
}

func (c *countingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.n.Add(int64(n))
	return n, err
}

func (c *countingConn) Close() error {
	c.once.Do(func() { c.closed <- int(c.n.Load()) })
	return c.Conn.Close()
}

// A server dies at any byte of its reply: the pull ends, with the right reply if
// all of it came and as one whose connection has closed otherwise. So do others
// that are in flight on the connection. Sessions beside it live.
func TestServerDiesAtEveryByteOfAReply(t *testing.T) {
	for _, header := range []string{"json", "protobuf"} {
		for name, c := range map[string]struct {
			size        int
			gzip        int32
			step, chunk int
		}{
			"empty":        {0, 0, 1, 0},
			"small":        {20, 0, 1, 0},
			"byte by byte": {20, 0, 1, 1},
			"gzip":         {300, 5, 1, 7},
			"larger":       {20_000, 0, 61, 0},
			"in parts":     {200_000, 0, 9973, 0},
		} {
			t.Run(header+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					srv, release, _ := blockedPeer(t, PeerConfig{DefaultHeaderCodec: header})
					HandlePull(srv.PullRouter, "/echo", func(_ PullCtx, text *string) (string, Xerror) {
						return *text, nil
					})
					cli := newTestPeer(t, &PeerConfig{DefaultHeaderCodec: header})
					good, _ := connect(t, cli, srv, pipe.Options{})
					text := strings.Repeat("0123456789", c.size/10)
					whole := replySize(t, srv, cli, text, c.gzip)
					require.Greater(t, whole, c.size/10)
					start, complete := time.Now(), 0
					try := func(at int) {
						// CutAfter 0 means never: a negative number is the first byte.
						o := pipe.Options{CutAfter: at, Chunk: c.chunk}
						if at == 0 {
							o.CutAfter = -1
						}
						_, sess := connect(t, srv, cli, o)
						askForCredit(sess)
						for _, way := range []string{"Pull", "GoPull"} {
							waits := sess.GoPull("/wait", "", nil, nil)
							var got string
							var cmd *PullCmd
							if way == "Pull" {
								cmd = sess.Pull("/echo", text, &got, WithGzip(c.gzip))
							} else {
								cmd = <-sess.GoPull("/echo", text, &got, nil, WithGzip(c.gzip)).Done()
							}
							if at >= whole && way == "Pull" {
								require.Nil(t, cmd.Xerror, "%d of %d bytes: %v", at, whole, cmd.Xerror)
								require.Equal(t, text, got)
								complete++
								continue // the next reply is cut
							}
							require.NotNil(t, cmd.Xerror, "%d of %d bytes", at, whole)
							require.Equal(t, StatusConnClosed, cmd.Xerror.Code(), "%d of %d bytes: %v", at,
								whole, cmd.Xerror)
							require.Empty(t, got)
							require.Equal(t, StatusConnClosed, (<-waits.Done()).Xerror.Code())
							<-sess.Done()
							require.Zero(t, sess.conn.Load().pulls.Len())
						}
					}
					for at := 0; at < whole; at += c.step {
						try(at)
					}
					for at := whole - 3; at < whole+12; at++ { // and into the reply after it
						try(at)
					}
					require.Equal(t, 12, complete)
					require.Equal(t, start, time.Now(), "nothing has waited for a timeout")
					requireAlive(t, good)
					close(release)
					synctest.Wait()
					require.Zero(t, cli.memory())
					require.Zero(t, srv.memory())
				})
			})
		}
	}
}

// A client dies at any byte of its pull: it is not handled, unless all of it came,
// and then once.
func TestClientDiesAtEveryByteOfAPull(t *testing.T) {
	for _, header := range []string{"json", "protobuf"} {
		t.Run(header, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var handled atomic.Int32
				srv, cli := newTestPeer(t, nil), newTestPeer(t, &PeerConfig{DefaultHeaderCodec: header})
				pullFn(srv, func(_ PullCtx, args interface{}) (interface{}, Xerror) {
					handled.Add(1)
					return args, nil
				})
				good, _ := connect(t, cli, srv, pipe.Options{})
				whole := 0
				for at := 0; whole == 0; at++ {
					o := pipe.Options{CutAfter: at}
					if at == 0 {
						o.CutAfter = -1
					}
					handled.Store(0)
					sess, other := connect(t, cli, srv, o)
					cmd := sess.Pull("/fn/call", "0123456789", nil)
					if cmd.Xerror == nil {
						whole = at
						require.EqualValues(t, 1, handled.Load())
						require.NoError(t, sess.Close())
					} else {
						require.Contains(t, []int32{StatusConnClosed, StatusWriteFailed}, cmd.Xerror.Code())
						<-sess.Done()
						<-other.Done()
						synctest.Wait()
						require.Zero(t, handled.Load(), "%d bytes", at)
					}
				}
				require.Greater(t, whole, 20)
				requireAlive(t, good)
			})
		})
	}
}

func init() {
	// A peer that listens, and tells on standard output when it handles. It never
	// answers /wait, and answers /back only after a pull of its own, which the other
	// side does not answer.
	testPrograms["victim"] = func() {
		SetLogLevel(LevelOff)
		p := NewPeer(nil)
		forever := make(chan struct{})
		pullFn(p, echo)
		HandlePull(p.PullRouter, "/wait", func(PullCtx, *string) (string, Xerror) {
			fmt.Println("handling")
			<-forever
			return "", nil
		})
		if addr := os.Getenv("TP_TEST_DIAL"); addr != "" {
			sess, err := p.Dial(addr)
			if err != nil {
				panic(err)
			}
			for range victimPulls {
				sess.GoPull("/wait", "", nil, nil)
			}
			<-forever
		}
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		fmt.Println(ln.Addr())
		_ = p.Serve(ln)
	}
}

const victimPulls = 500

// resetWithin is when pulls whose connection is reset have ended: a second is promised,
// the rest is for a busy machine.
const resetWithin = 6 * time.Second

// requireEnd waits until n pulls have ended, all as ones whose connection has
// closed, and returns how long that took.
func requireEnd(t *testing.T, done <-chan *PullCmd, n int) time.Duration {
	t.Helper()
	start := time.Now()
	for i := range n {
		select {
		case cmd := <-done:
			require.NotNil(t, cmd.Xerror)
			require.Equal(t, StatusConnClosed, cmd.Xerror.Code())
		case <-time.After(resetWithin):
			t.Fatalf("only %d of %d pulls have ended after %v", i, n, resetWithin)
		}
	}
	return time.Since(start)
}

// A server process is killed while many pulls are in flight: all end at once, and
// other servers' sessions live.
func TestServerProcessIsKilled(t *testing.T) {
	p := startProgram(t, "victim")
	survivor := newTestPeer(t, nil)
	pullFn(survivor, echo)
	cli := newTestPeer(t, nil)
	good := dial(t, cli, survivor)
	addr := p.line()
	const sessions = 10
	done := make(chan *PullCmd, victimPulls)
	var all []*Session
	for range sessions {
		sess, err := cli.Dial(addr)
		require.NoError(t, err)
		all = append(all, sess)
		for range victimPulls / sessions {
			sess.GoPull("/wait", "", nil, done)
		}
	}
	for range victimPulls {
		require.Equal(t, "handling", p.line())
	}
	var busy sync.WaitGroup
	var answered atomic.Int32
	for _, sess := range all { // while others come and go
		busy.Go(func() {
			for {
				cmd := sess.Pull("/fn/call", "x", nil)
				if cmd.Xerror != nil {
					code := cmd.Xerror.Code()
					if code != StatusConnClosed && code != StatusWriteFailed {
						t.Errorf("%v", cmd.Xerror)
					}
					return
				}
				answered.Add(1)
			}
		})
	}
	for answered.Load() < 1000 {
		requireAlive(t, good)
	}
	require.NoError(t, p.cmd.Process.Kill())
	took := requireEnd(t, done, victimPulls)
	busy.Wait()
	t.Logf("FIGURE server killed: %d pulls ended after %v", victimPulls, took)
	for _, sess := range all {
		<-sess.Done()
		require.Zero(t, sess.conn.Load().pulls.Len())
	}
	requireAlive(t, good)
	require.Equal(t, 1, cli.CountSession())
}

// A client process is killed while its pulls are being handled and the handlers
// pull back: those pulls end, the handlers can end, nothing of the session stays.
func TestClientProcessIsKilled(t *testing.T) {
	srv := newTestPeer(t, nil)
	pullFn(srv, echo)
	done := make(chan *PullCmd, victimPulls)
	var ended sync.WaitGroup
	ended.Add(victimPulls)
	sessions := make(chan *Session, victimPulls)
	HandlePull(srv.PullRouter, "/wait", func(ctx PullCtx, _ *string) (string, Xerror) {
		defer ended.Done()
		sessions <- ctx.Session()
		cmd := ctx.Session().Pull("/wait", "", nil)
		done <- cmd
		return "", cmd.Xerror
	})
	addr := serve(t, srv)
	good, err := newTestPeer(t, nil).Dial(addr)
	require.NoError(t, err)
	p := startProgram(t, "victim", "TP_TEST_DIAL="+addr)
	for range victimPulls { // each handler's own pull has arrived
		require.Equal(t, "handling", p.line())
	}
	sess := <-sessions
	require.Equal(t, victimPulls, sess.conn.Load().pulls.Len())
	require.NoError(t, p.cmd.Process.Kill())
	took := requireEnd(t, done, victimPulls)
	t.Logf("FIGURE client killed: %d pulls of the server's ended after %v", victimPulls, took)
	<-sess.Done()
	ended.Wait()
	requireAlive(t, good)
	require.Equal(t, 1, srv.CountSession())
	ctx, cancel := context.WithTimeout(t.Context(), resetWithin)
	defer cancel()
	require.NoError(t, good.Close())
	require.NoError(t, srv.Shutdown(ctx), "nothing is counted as running any more")
}

// What the other side has sent before it went is handled, whether this side has
// tried to write meanwhile or not.
func TestPushesOfAPeerThatHasGone(t *testing.T) {
	for _, write := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			reading := make(chan struct{})
			srv := newTestPeer(t, nil, hookPlugin("slow", "PreReadHeader",
				func(interface{}) error { <-reading; return nil }))
			var handled atomic.Int32
			pushFn(srv, func(PushCtx, interface{}) { handled.Add(1) })
			sess, far := connect(t, srv, newTestPeer(t, nil), pipe.Options{})
			for range 3 {
				require.Nil(t, far.Push("/fn_push/call", 1))
			}
			synctest.Wait()
			require.NoError(t, far.Close())
			if write {
				require.Equal(t, StatusConnClosed, sess.Pull("/x", nil, nil).Xerror.Code())
				require.True(t, NotRun(sess.Push("/x", nil)))
			}
			close(reading)
			<-sess.Done()
			synctest.Wait()
			require.EqualValues(t, 3, handled.Load())
		})
	}
}

// A session that cannot write ends in a few seconds, even if nothing reads from it.
func TestSessionThatCannotWriteEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reading := make(chan struct{})
		srv := newTestPeer(t, nil, hookPlugin("stuck", "PreReadHeader",
			func(interface{}) error { <-reading; return nil }))
		sess, far := connect(t, srv, newTestPeer(t, nil), pipe.Options{})
		synctest.Wait()
		require.NoError(t, far.Close())
		began := time.Now()
		require.NotNil(t, sess.Pull("/x", nil, nil).Xerror)
		<-sess.Done()
		require.Equal(t, drainLinger, time.Since(began))
		close(reading)
	})
}
