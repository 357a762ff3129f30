package tp

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Connections that are lost one after the other while the hooks of the first still run: each
// has its own hooks, and no connection is used before those of the last have run.
func TestRedialWhileDisconnectHooksRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		n.serve("a", named(t, "A"))
		var running, most, ran atomic.Int32
		var connected atomic.Bool
		var sess *Session
		cli := n.client(t, &PeerConfig{Redial: new(Redial)}, newTestPlugin("p",
			map[string]func(interface{}) error{
				"PostDial": func(interface{}) error { time.Sleep(time.Second); return nil },
				"PostDisconnect": func(interface{}) error {
					ran.Add(1)
					most.Store(max(most.Load(), running.Add(1)))
					defer running.Add(-1)
					time.Sleep(10 * time.Second)
					if sess.conn.Load().usable() {
						connected.Store(true)
					}
					return nil
				},
			}))
		var err error
		sess, err = cli.Dial("a")
		require.NoError(t, err)
		time.Sleep(time.Minute)
		for range 3 {
			sess.conn.Load().heardGoAway(false) // so that it dials
			time.Sleep(500 * time.Millisecond)
			n.cut() // the old connection, and the one that is being made
			time.Sleep(time.Minute)
			require.Equal(t, "A", nameOf(sess))
		}
		require.GreaterOrEqual(t, ran.Load(), int32(3))
		require.EqualValues(t, 1, most.Load())
		require.False(t, connected.Load())
		require.NoError(t, cli.Close())
		time.Sleep(time.Minute)
	})
}

// A session that has given up fails at once, and ends when its last connection has answered.
func TestRedialGivesUpWhileLinksAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		release := make(chan struct{})
		a, b := named(t, "A"), named(t, "B")
		HandlePull(a.PullRouter, "/slow", func(PullCtx, *string) (string, Xerror) {
			<-release
			return "answered", nil
		})
		n.serve("x", a)
		cli := n.client(t, &PeerConfig{Redial: &Redial{Attempts: 2}})
		sess, err := cli.Dial("x")
		require.NoError(t, err)
		var got string
		slow := sess.GoPull("/slow", "", &got, nil)
		synctest.Wait()
		n.serve("x", b)
		go func() { _ = a.Shutdown(t.Context()) }()
		time.Sleep(time.Minute)
		require.Equal(t, "B", nameOf(sess))
		n.serve("x", nil)
		require.NoError(t, b.Close())
		time.Sleep(time.Minute) // all attempts fail
		began := time.Now()
		x := sess.Pull("/name", "", nil).Xerror
		require.True(t, NotRun(x))
		require.Contains(t, x.Text(), "2 attempts in a row to dial again have failed: nobody is there")
		require.Zero(t, time.Since(began))
		require.Empty(t, slow.Done())
		close(release)
		require.Nil(t, (<-slow.Done()).Xerror)
		require.Equal(t, "answered", got)
		<-sess.Done()
		synctest.Wait()
		require.Zero(t, cli.hubSize())
	})
}

// A handler that pulls on a session without a connection does not hold up the drain of
// its peer.
func TestRedialNotWhileItsPeerDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		srv := named(t, "A")
		n.serve("a", srv)
		cli := n.client(t, &PeerConfig{Redial: &Redial{MaxWait: -1}})
		begun, failed := make(chan struct{}), make(chan Xerror, 1)
		HandlePull(cli.PullRouter, "/back", func(ctx PullCtx, _ *string) (string, Xerror) {
			close(begun)
			time.Sleep(time.Second)
			failed <- ctx.Session().Pull("/name", "", nil).Xerror
			return "", nil
		})
		_, err := cli.Dial("a")
		require.NoError(t, err)
		synctest.Wait()
		srv.RangeSession(func(s *Session) bool { s.GoPull("/back", "", nil, nil); return true })
		<-begun
		n.serve("a", nil)
		down := make(chan error, 2)
		go func() { down <- srv.Shutdown(t.Context()) }()
		go func() { down <- cli.Shutdown(t.Context()) }()
		x := <-failed
		require.Equal(t, StatusServiceUnavailable, x.Code())
		require.True(t, NotRun(x))
		require.NoError(t, <-down)
		require.NoError(t, <-down)
	})
}

// PostReconnect hooks that fail, or hang, count as failed attempts however long they take.
func TestRedialWhenHooksFail(t *testing.T) {
	for name, hook := range map[string]func() error{
		"slowly": func() error { time.Sleep(time.Second); return errors.New("no") },
		"hangs":  func() error { time.Sleep(time.Hour); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNet()
				n.serve("a", named(t, "A"))
				var ran atomic.Int32
				cli := n.client(t, &PeerConfig{Redial: &Redial{Attempts: 3}}, hookPlugin("p", "PostReconnect",
					func(interface{}) error {
						ran.Add(1)
						return hook()
					}))
				sess, err := cli.Dial("a")
				require.NoError(t, err)
				n.cut()
				<-sess.Done()
				require.EqualValues(t, 3, ran.Load())
				time.Sleep(2 * time.Hour)
			})
		})
	}
}

// MaxWait bounds all that a pull waits for, and old connections do not pile up, where every
// connection goes away at once.
func TestRedialToASideThatDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		srv := named(t, "A")
		n.serve("a", srv)
		cli := n.client(t, &PeerConfig{Redial: &Redial{MaxWait: time.Minute,
			MaxBackoff: 100 * time.Millisecond}})
		sess, err := cli.Dial("a")
		require.NoError(t, err)
		srv.setState(peerDraining) // and nothing else of Shutdown
		srv.RangeSession(func(s *Session) bool { s.conn.Load().goAway(false); return true })
		synctest.Wait()
		began := time.Now()
		x := sess.Pull("/name", "", nil).Xerror
		require.Equal(t, StatusConnClosed, x.Code())
		require.Equal(t, time.Minute, time.Since(began))
		require.Greater(t, len(n.dialled()), 100)
		require.Less(t, cli.hubSize(), maxOldConns+5)
		require.NoError(t, cli.Close())
	})
}

// A hook that ends the goroutine of a pull that waited for a connection leaves the pull
// to its reply.
func TestRedialAndGoexit(t *testing.T) {
	for _, point := range []string{"PreWritePull", "PostWritePull"} {
		synctest.Test(t, func(t *testing.T) {
			n := newNet()
			srv := newTestPeer(t, nil)
			HandlePull(srv.PullRouter, "/slow", func(PullCtx, *string) (string, Xerror) {
				time.Sleep(time.Second)
				return "late", nil
			})
			n.serve("a", srv)
			cli := n.client(t, &PeerConfig{Redial: new(Redial)}, hookPlugin("p", point,
				func(interface{}) error {
					runtime.Goexit()
					return nil
				}))
			sess, err := cli.Dial("a")
			require.NoError(t, err)
			n.cut()
			synctest.Wait()
			var got string
			cmd := <-sess.GoPull("/slow", "", &got, nil).Done()
			if point == "PreWritePull" {
				require.Equal(t, StatusFailedPlugin, cmd.Xerror.Code())
			} else {
				require.Nil(t, cmd.Xerror)
				require.Equal(t, "late", got)
			}
			require.Zero(t, sess.conn.Load().pulls.Len())
			time.Sleep(time.Minute)
		})
	}
}

// Timeouts that are set while a connection is made hold for it.
func TestTimeoutsWhileRedialling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		n.serve("a", named(t, "A"))
		cli := n.client(t, &PeerConfig{Redial: new(Redial)}, hookPlugin("p", "PostDial",
			func(interface{}) error {
				time.Sleep(time.Second)
				return nil
			}))
		sess, err := cli.DialContext(context.Background(), "a")
		require.NoError(t, err)
		n.cut()
		time.Sleep(500 * time.Millisecond)
		sess.SetReadTimeout(time.Hour)
		sess.SetWriteTimeout(2 * time.Hour)
		require.Equal(t, "A", nameOf(sess))
		require.Equal(t, time.Hour, sess.ReadTimeout())
		require.Equal(t, 2*time.Hour, sess.WriteTimeout())
	})
}
