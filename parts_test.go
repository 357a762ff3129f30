package tp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
)

// sendsParts makes a pair of peers and a session that sends large packets in parts, in both directions.
func sendsParts(t *testing.T, srv *Peer, o pipe.Options) (*Session, *Session) {
	t.Helper()
	cli := newTestPeer(t, nil)
	there, sess := connect(t, srv, cli, o)
	HandlePull(srv.PullRouter, "/first", func(_ PullCtx, b *[]byte) (string, Xerror) { return "", nil })
	require.Nil(t, sess.Pull("/first", make([]byte, 100_000), new(string), WithBodyCodec("string")).Xerror)
	return there, sess
}

var partsPipe = pipe.Options{Buffer: 100_000}

// A call passes a large body that is on its way, in both directions.
func TestCallsPassLargeBodies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, nil)
		HandlePull(srv.PullRouter, "/echo", func(_ PullCtx, b *[]byte) ([]byte, Xerror) { return *b, nil })
		HandlePull(srv.PullRouter, "/small", func(_ PullCtx, s *string) (string, Xerror) { return *s, nil })
		_, sess := sendsParts(t, srv, pipe.Options{Buffer: 10_000})
		body := bytes.Repeat([]byte("0123456789"), 500_000)
		var got []byte
		large := sess.GoPull("/echo", body, &got, nil, WithBodyCodec("string"))
		calls := 0
		for {
			var text string
			require.Nil(t, sess.Pull("/small", "x", &text).Xerror)
			calls++
			select {
			case <-large.Done():
				require.Nil(t, large.Xerror)
				require.True(t, bytes.Equal(body, got))
				require.Greater(t, calls, 5) // without passing it would be one or two
				return
			default:
			}
		}
	})
}

// Pushes are handled in the order in which they were sent, large ones and small ones.
func TestLargePushesKeepTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := NewPeer(&PeerConfig{MaxSessionHandlers: 1})
		t.Cleanup(func() { srv.Close() })
		var got []int
		HandlePush(srv.PushRouter, "/p", func(_ PushCtx, b *[]byte) { got = append(got, len(*b)) })
		_, sess := sendsParts(t, srv, partsPipe)
		var want []int
		for i := range 20 {
			size := 1 + i*71_777%400_000
			if i%3 == 0 {
				size = i + 1
			}
			want = append(want, size)
			require.Nil(t, sess.Push("/p", make([]byte, size), WithBodyCodec("string")))
		}
		synctest.Wait()
		require.Equal(t, want, got)
	})
}

// The values of a stream stay in order, and its end comes behind them.
func TestLargeValuesKeepTheirOrder(t *testing.T) {
	srv := newTestPeer(t, nil)
	HandleStream(srv.PullRouter, "/s", func(_ PullCtx, s *Stream[string, string]) Xerror {
		for v, err := range s.All() {
			if err != nil {
				return NewXerror(500, err.Error())
			}
			if err := s.Send(v); err != nil {
				return NewXerror(501, err.Error())
			}
		}
		last := strings.Repeat("z", 150_000)
		_ = s.Send(&last)
		return NewXerror(777, "the end")
	})
	_, sess := sendsParts(t, srv, pipe.Options{})
	s, err := OpenStream[string, string](t.Context(), sess, "/s")
	require.NoError(t, err)
	var texts []string
	for i := range 30 {
		texts = append(texts, strings.Repeat(string(rune('a'+i%20)), 1+i%3*90_000))
	}
	go func() {
		for i := range texts {
			if err := s.Send(&texts[i]); err != nil {
				t.Error(err)
			}
		}
		_ = s.CloseSend()
	}()
	for i := range texts {
		got, err := s.Recv()
		require.NoError(t, err)
		require.True(t, texts[i] == *got, "value %d", i)
	}
	got, err := s.Recv()
	require.NoError(t, err)
	require.Len(t, *got, 150_000)
	_, err = s.Recv()
	require.ErrorContains(t, err, "777 the end")
}

// heldConn does not read while there is a gate.
type heldConn struct {
	net.Conn
	gate atomic.Pointer[chan struct{}]
}

func (c *heldConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if gate := c.gate.Load(); gate != nil {
		<-*gate
	}
	return n, err
}

// A pull that is given up before all of it was sent does not run, and says so; its place is free again.
func TestLargePullGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := NewPeer(nil)
		t.Cleanup(func() { srv.Close() })
		ran := 0
		HandlePull(srv.PullRouter, "/a", func(_ PullCtx, b *[]byte) (string, Xerror) {
			ran++
			return strconv.Itoa(len(*b)), nil
		})
		near, far := pipe.New(pipe.Options{Buffer: 10_000})
		held := &heldConn{Conn: near}
		_, err := srv.ServeConn(held)
		require.NoError(t, err)
		sess, err := newTestPeer(t, nil).ServeConn(far)
		require.NoError(t, err)
		var n string
		require.Nil(t, sess.Pull("/a", make([]byte, 100_000), &n, WithBodyCodec("string")).Xerror)
		gate := make(chan struct{})
		held.gate.Store(&gate)
		for _, way := range []string{"cancelled", "overdue"} {
			ctx, cancel := context.WithCancel(t.Context())
			if way == "overdue" {
				ctx, cancel = context.WithTimeout(t.Context(), 5*time.Second)
			}
			cmd := sess.GoPullContext(ctx, "/a", make([]byte, 3_000_000), &n, nil, WithBodyCodec("string"))
			synctest.Wait()
			if way == "cancelled" {
				cancel()
			}
			<-cmd.Done()
			cancel()
			require.True(t, NotRun(cmd.Xerror), "%v", cmd.Xerror)
			require.ErrorContains(t, cmd.Xerror, "nothing was sent")
		}
		close(gate)
		require.Nil(t, sess.Pull("/a", make([]byte, 1_000_000), &n, WithBodyCodec("string")).Xerror)
		require.Equal(t, "1000000", n)
		require.Equal(t, 2, ran)
		synctest.Wait()
		require.Zero(t, sess.conn.Load().flow.Pulls.Unanswered())
		require.Zero(t, srv.memory())
	})
}

// Shutdown waits until large replies have been sent as a whole.
func TestShutdownSendsLargeReplies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := NewPeer(nil)
		var running atomic.Int32
		HandlePull(srv.PullRouter, "/a", func(_ PullCtx, n *int) ([]byte, Xerror) {
			running.Add(1)
			return make([]byte, *n), nil
		})
		_, sess := sendsParts(t, srv, pipe.Options{Buffer: 10_000})
		const pulls = 8
		replies := make([][]byte, pulls)
		var cmds []*PullCmd
		for i := range pulls {
			cmds = append(cmds, sess.GoPull("/a", 900_000+i, &replies[i], nil))
		}
		for running.Load() < pulls {
			synctest.Wait()
		}
		ended := make(chan error, 1)
		go func() { ended <- srv.Shutdown(context.Background()) }()
		for i, cmd := range cmds {
			<-cmd.Done()
			require.Nil(t, cmd.Xerror)
			require.Len(t, replies[i], 900_000+i)
		}
		require.NoError(t, <-ended)
		<-sess.Done()
	})
}

// A peer that does not know parts gets packets as a whole.
func TestLargeBodiesToAnOlderPeer(t *testing.T) {
	srv := newTestPeer(t, nil)
	srv.noCredit = true
	HandlePull(srv.PullRouter, "/echo", func(_ PullCtx, b *[]byte) ([]byte, Xerror) { return *b, nil })
	_, sess := connect(t, srv, newTestPeer(t, nil), pipe.Options{})
	for range 3 {
		var got []byte
		require.Nil(t, sess.Pull("/echo", make([]byte, 1_000_000), &got, WithBodyCodec("string")).Xerror)
		require.Len(t, got, 1_000_000)
	}
}

// Both sides send large bodies in all ways at the same time, by small buffers: all come, and nothing is left.
func TestLargeBodiesBothWays(t *testing.T) {
	a, b := newTestPeer(t, nil), newTestPeer(t, nil)
	for _, p := range []*Peer{a, b} {
		HandlePull(p.PullRouter, "/echo", func(_ PullCtx, b *[]byte) ([]byte, Xerror) { return *b, nil })
		HandlePush(p.PushRouter, "/p", func(PushCtx, *[]byte) {})
		HandleStream(p.PullRouter, "/copy", func(_ PullCtx, s *Stream[[]byte, []byte]) Xerror {
			if _, err := io.Copy(s.Writer(), s.Reader()); err != nil {
				return NewXerror(500, err.Error())
			}
			return nil
		})
	}
	one, two := connect(t, a, b, pipe.Options{Buffer: 3_000})
	var wg sync.WaitGroup
	failed := make(chan error, 100)
	for _, sess := range []*Session{one, two} {
		for i := range 6 {
			wg.Go(func() {
				for n := range 5 {
					body := bytes.Repeat([]byte{byte(n)}, 50_000*(i+1))
					var got []byte
					if x := sess.Pull("/echo", body, &got, WithBodyCodec("string")).Xerror; x != nil {
						failed <- x
					} else if !bytes.Equal(body, got) {
						failed <- errors.New("another body came back")
					}
					if x := sess.Push("/p", body, WithBodyCodec("string")); x != nil {
						failed <- x
					}
				}
			})
		}
		wg.Go(func() {
			s, err := OpenStream[[]byte, []byte](t.Context(), sess, "/copy")
			if err != nil {
				failed <- err
				return
			}
			go func() {
				w := s.Writer()
				_, _ = io.Copy(w, bytes.NewReader(make([]byte, 2_000_000)))
				_ = w.Close()
			}()
			n, err := io.Copy(io.Discard, s.Reader())
			if err != nil || n != 2_000_000 {
				failed <- fmt.Errorf("%d bytes came back: %w", n, err)
			}
		})
	}
	wg.Wait()
	close(failed)
	for err := range failed {
		t.Error(err)
	}
}

// Pulls that were held back while the output was full begin when it is not, although the handlers before them
// wait for what they do.
func TestHeldPullsBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const pulls = 300
		srv := NewPeer(&PeerConfig{MaxSessionOutput: 100_000, DefaultWriteTimeout: -1})
		t.Cleanup(func() { srv.Close() })
		HandlePull(srv.PullRouter, "/a", func(ctx PullCtx, text *string) (string, Xerror) {
			return "", ctx.Session().PullContext(ctx.Context(), "/back", text, nil).Xerror
		})
		near, far := pipe.New(pipe.Options{Buffer: 10_000})
		held := &heldConn{Conn: far}
		_, err := srv.ServeConn(near)
		require.NoError(t, err)
		cli := newTestPeer(t, nil)
		all := make(chan struct{})
		var arrived atomic.Int32
		HandlePull(cli.PullRouter, "/back", func(PullCtx, *string) (string, Xerror) {
			if arrived.Add(1) == pulls {
				close(all)
			}
			<-all
			return "", nil
		})
		sess, err := cli.ServeConn(held)
		require.NoError(t, err)
		askForCredit(sess)
		gate := make(chan struct{})
		held.gate.Store(&gate)
		done := make(chan *PullCmd, pulls)
		for range pulls {
			sess.GoPull("/a", strings.Repeat("x", 2000), nil, done)
		}
		synctest.Wait() // the output is full, and others wait for it
		close(gate)
		for range pulls {
			require.Nil(t, (<-done).Xerror)
		}
	})
}
