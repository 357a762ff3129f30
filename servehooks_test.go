package tp

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// servePlugin has the hooks about a peer's serving.
type servePlugin struct {
	listen func(ctx ListenCtx) error
	leave  func(ctx ShutdownCtx) error
}

func (*servePlugin) Name() string { return "serve" }

func (s *servePlugin) PostListen(ctx ListenCtx) error {
	if s.listen == nil {
		return nil
	}
	return s.listen(ctx)
}

func (s *servePlugin) PreShutdown(ctx ShutdownCtx) error {
	if s.leave == nil {
		return nil
	}
	return s.leave(ctx)
}

// The hook has the port that the system has chosen, and all listeners are bound when it runs first.
func TestPostListen(t *testing.T) {
	addrs := make(chan net.Addr, 2)
	bound := make(chan int, 2)
	p := newTestPeer(t, &PeerConfig{ListenAddrs: []string{"127.0.0.1:0", "127.0.0.1:0"}},
		&servePlugin{listen: func(ctx ListenCtx) error {
			bound <- len(ctx.Peer().Addrs())
			addrs <- ctx.Addr()
			return nil
		}})
	ended := make(chan error, 1)
	go func() { ended <- p.Listen() }()
	for range 2 {
		require.Equal(t, 2, <-bound)
		addr := <-addrs
		require.NotZero(t, addr.(*net.TCPAddr).Port)
		_, err := newTestPeer(t, nil).Dial(addr.String())
		require.NoError(t, err)
	}
	require.NoError(t, p.Close())
	require.NoError(t, <-ended)
}

// An error of the hook is that of Listen and of Serve, and nothing listens any more.
func TestPostListenFails(t *testing.T) {
	for _, serve := range []bool{false, true} {
		t.Run(map[bool]string{false: "Listen", true: "Serve"}[serve], func(t *testing.T) {
			failed := errors.New("nobody wants this server")
			var addr net.Addr
			p := newTestPeer(t, &PeerConfig{ListenAddrs: []string{"127.0.0.1:0", "127.0.0.1:0"}},
				&servePlugin{listen: func(ctx ListenCtx) error {
					addr = ctx.Addr()
					return failed
				}})
			var err error
			if serve {
				ln, e := net.Listen("tcp", "127.0.0.1:0")
				require.NoError(t, e)
				err = p.Serve(ln)
			} else {
				err = p.Listen()
			}
			require.ErrorIs(t, err, failed)
			require.ErrorContains(t, err, "plugin serve: PostListen: nobody wants this server")
			require.Empty(t, p.Addrs())
			_, err = net.Dial("tcp", addr.String())
			require.Error(t, err)
			require.NoError(t, p.Shutdown(context.Background()), "nothing accepts any more")
		})
	}
}

func TestPostListenTakesTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, &PeerConfig{HookTimeout: 3 * time.Second},
			&servePlugin{listen: func(ctx ListenCtx) error {
				<-ctx.Context().Done()
				return nil
			}})
		begun := time.Now()
		err := p.Serve(make(noListener))
		if err != nil { // both may be seen first
			require.ErrorContains(t, err, "PostListen took longer than 3s")
		}
		require.Equal(t, 3*time.Second, time.Since(begun))
	})
}

// Who shuts down does not wait for a PostListen that hangs, and Serve returns nil as it does otherwise.
func TestShutdownDuringPostListen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := make(chan struct{})
		p := newTestPeer(t, nil, &servePlugin{listen: func(ctx ListenCtx) error {
			close(begun)
			<-ctx.Context().Done()
			return ctx.Context().Err()
		}})
		served := make(chan error)
		go func() { served <- p.Serve(make(noListener)) }()
		<-begun
		require.NoError(t, p.Shutdown(context.Background()))
		require.NoError(t, <-served)
	})
}

// While PreShutdown runs everything is as it was: connections are accepted and calls handled. No listener is
// added any more.
func TestPreShutdownComesFirst(t *testing.T) {
	cli := newTestPeer(t, nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	calls := 0
	srv := newTestPeer(t, nil, &servePlugin{leave: func(ctx ShutdownCtx) error {
		calls++
		sess, err := cli.Dial(ln.Addr().String())
		require.NoError(t, err)
		requireAlive(t, sess)
		require.ErrorIs(t, ctx.Peer().Serve(make(noListener)), ErrPeerClosed)
		return nil
	}})
	pullFn(srv, echo)
	served := make(chan error, 1)
	up := make(chan struct{})
	go func() { close(up); served <- srv.Serve(ln) }()
	<-up
	sess, err := cli.Dial(ln.Addr().String())
	require.NoError(t, err)
	require.NoError(t, srv.Shutdown(context.Background()))
	require.NoError(t, srv.Close())
	require.Equal(t, 1, calls, "once, whatever ends the peer afterwards")
	require.NoError(t, <-served)
	<-sess.Done()
}

// The hook's time is that of Shutdown's context, HookTimeout, or until somebody closes the peer.
func TestPreShutdownTakesTooLong(t *testing.T) {
	tests := map[string]struct {
		timeout time.Duration // of the context
		close   time.Duration // when Close is called; 0 for never
		want    time.Duration
	}{
		"until the context ends": {2 * time.Second, 0, 2 * time.Second},
		"HookTimeout":            {time.Hour, 0, 10 * time.Second},
		"until Close":            {time.Hour, 4 * time.Second, 4 * time.Second},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ended := make(chan struct{})
				p := newTestPeer(t, nil, &servePlugin{leave: func(ctx ShutdownCtx) error {
					defer close(ended)
					<-ctx.Context().Done()
					return ctx.Context().Err()
				}})
				if tt.close > 0 {
					time.AfterFunc(tt.close, func() { _ = p.Close() })
				}
				ctx, cancel := context.WithTimeout(context.Background(), tt.timeout)
				defer cancel()
				begun := time.Now()
				second := make(chan struct{})
				go func() { defer close(second); _ = p.Shutdown(ctx) }() // one of them runs the hook
				_ = p.Shutdown(ctx)
				<-second
				require.Equal(t, tt.want, time.Since(begun))
				<-ended
			})
		})
	}
}

// Close tells too, beside closing everything, and waits for a second at most.
func TestCloseTellsPreShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		ended := make(chan struct{})
		p := newTestPeer(t, nil, &servePlugin{leave: func(ctx ShutdownCtx) error {
			defer close(ended)
			calls.Add(1)
			<-ctx.Peer().closed
			require.NoError(t, ctx.Peer().Close(), "from within")
			require.NoError(t, ctx.Context().Err())
			<-ctx.Context().Done()
			return ctx.Context().Err()
		}})
		begun := time.Now()
		require.NoError(t, p.Close())
		require.Equal(t, time.Second, time.Since(begun))
		<-ended
		require.NoError(t, p.Close())
		require.NoError(t, p.Shutdown(context.Background()))
		require.EqualValues(t, 1, calls.Load())
	})
}

// A hook that panics keeps nobody from ending.
func TestPreShutdownPanics(t *testing.T) {
	p := newTestPeer(t, nil, &servePlugin{leave: func(ShutdownCtx) error { panic("on purpose") }})
	require.NoError(t, p.Shutdown(context.Background()))
	p = newTestPeer(t, nil, &servePlugin{listen: func(ListenCtx) error {
		panic("on purpose")
	}})
	require.ErrorContains(t, p.Serve(make(noListener)), "plugin serve: panic in PostListen")
}
