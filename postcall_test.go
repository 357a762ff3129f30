package tp

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
)

// overs notes the calls that are over.
type overs struct {
	name string
	mu   sync.Mutex
	all  []string
	fail bool
}

func (o *overs) Name() string { return o.name }

func (o *overs) PostCall(ctx CallCtx) error {
	code, _ := ctx.Status()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all = append(o.all, fmt.Sprintf("%d %s route=%s", code, ctx.Input().Header.Uri, ctx.Route()))
	if o.fail {
		return errors.New("no")
	}
	return nil
}

func (o *overs) take() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := o.all
	o.all = nil
	slices.Sort(all)
	return all
}

// refuser refuses what has the path, before the body is read.
type refuser struct{ path string }

func (refuser) Name() string { return "refuser" }

func (r refuser) PreReadBody(ctx ReadCtx) error {
	if ctx.Input().Header.Uri == r.path {
		return NewXerror(418, "refused")
	}
	return nil
}

// Every call has its end, once, for each plugin, however that was.
func TestPostCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := &overs{name: "first", fail: true}, &overs{name: "second"}
		srv := newTestPeer(t, &PeerConfig{MaxSessionHandlers: 2}, first, second, refuser{"/refused"})
		release := make(chan struct{})
		HandlePull(srv.PullRouter, "/ok", func(_ PullCtx, s *string) (string, Xerror) { return *s, nil })
		HandlePull(srv.PullRouter, "/no", func(PullCtx, *string) (string, Xerror) {
			return "", NewXerror(777, "no")
		})
		HandlePull(srv.PullRouter, "/panic", func(PullCtx, *string) (string, Xerror) { panic("oh") })
		HandlePull(srv.PullRouter, "/goexit", func(PullCtx, *string) (string, Xerror) {
			runtime.Goexit()
			return "", nil
		})
		HandlePull(srv.PullRouter, "/wait", func(PullCtx, *string) (string, Xerror) {
			<-release
			return "", nil
		})
		HandlePull(srv.PullRouter, "/refused", func(PullCtx, *string) (string, Xerror) { return "", nil })
		HandlePush(srv.PushRouter, "/push", func(PushCtx, *string) {})
		HandlePush(srv.PushRouter, "/refused", func(PushCtx, *string) {})
		HandleStream(srv.PullRouter, "/stream", func(_ PullCtx, s *Stream[string, string]) Xerror {
			_, _ = s.Recv()
			return NewXerror(778, "over")
		})
		srv.PullRouter.Group("any").SetUnknown(func(UnknownPullCtx, *[]byte) (interface{}, Xerror) {
			return nil, nil
		})
		_, sess := connect(t, srv, newTestPeer(t, nil), pipe.Options{})
		for _, uri := range []string{"/ok?a=1", "/no", "/panic", "/goexit", "/nosuch", "/refused",
			"/any/thing"} {
			_ = sess.Pull(uri, "", nil)
			synctest.Wait() // the reply comes before the handler has ended, of which there may be two
		}
		require.NotNil(t, sess.Pull("/ok", 5, nil).Xerror) // which does not decode
		for _, uri := range []string{"/push", "/nosuch", "/refused"} {
			require.Nil(t, sess.Push(uri, ""))
		}
		require.Nil(t, sess.Push("/push", 5))
		s, err := OpenStream[string, string](t.Context(), sess, "/stream")
		require.NoError(t, err)
		require.NoError(t, s.CloseSend())
		_, _ = s.Recv()
		synctest.Wait()
		want := []string{"200 /ok?a=1 route=/ok", "777 /no route=/no", "500 /panic route=/panic",
			"500 /goexit route=/goexit", "404 /nosuch route=", "418 /refused route=/refused",
			"200 /any/thing route=/any/*", "400 /ok route=/ok", "200 /push route=/push", "404 /nosuch route=",
			"418 /refused route=/refused", "400 /push route=/push", "778 /stream route=/stream"}
		slices.Sort(want)
		require.Equal(t, want, second.take())
		require.Equal(t, want, first.take())

		a, b := sess.GoPull("/wait", "", nil, nil), sess.GoPull("/wait", "", nil, nil)
		synctest.Wait()
		for range 3 {
			require.Nil(t, sess.Push("/push", "waits"))
		}
		synctest.Wait()
		require.Empty(t, second.take())
		require.NoError(t, sess.Close()) // the replies cannot be sent, and the pushes that wait are handled
		close(release)
		synctest.Wait()
		<-a.Done()
		<-b.Done()
		require.Equal(t, []string{"200 /push route=/push", "200 /push route=/push", "200 /push route=/push",
			"200 /wait route=/wait", "200 /wait route=/wait"}, second.take())
	})
}

// pullOvers notes the pulls that are over.
type pullOvers struct {
	name string
	mu   sync.Mutex
	all  []string
}

func (o *pullOvers) Name() string { return o.name }

func (o *pullOvers) PostPull(ctx PullCallCtx) error {
	code := StatusOK
	if x := ctx.Failure(); x != nil {
		code = x.Code()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all = append(o.all, fmt.Sprintf("%d %s", code, ctx.Output().Header.Uri))
	return errors.New("no")
}

// failing refuses to send a pull of its path.
type failing struct{ path string }

func (failing) Name() string { return "failing" }

func (f failing) PreWritePull(ctx WriteCtx) error {
	if ctx.Output().Header.Uri == f.path {
		return errors.New("not sent")
	}
	return nil
}

// Every pull that this side makes has its end, once, for each plugin, however that was.
func TestPostPull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := &pullOvers{name: "first"}, &pullOvers{name: "second"}
		srv, cli := newTestPeer(t, nil), newTestPeer(t, nil, first, second, failing{"/refused"})
		HandlePull(srv.PullRouter, "/ok", func(_ PullCtx, s *string) (string, Xerror) { return *s, nil })
		release := make(chan struct{})
		HandlePull(srv.PullRouter, "/wait", func(PullCtx, *string) (string, Xerror) {
			<-release
			return "", nil
		})
		HandleStream(srv.PullRouter, "/stream", func(_ PullCtx, s *Stream[string, string]) Xerror {
			_, _ = s.Recv()
			return NewXerror(778, "over")
		})
		_, sess := connect(t, srv, cli, pipe.Options{})
		require.Nil(t, sess.Pull("/ok", "", new(string)).Xerror)
		require.NotNil(t, sess.Pull("/ok", "", new(int)).Xerror)
		require.NotNil(t, sess.Pull("/ok", func() {}, nil).Xerror)
		require.NotNil(t, sess.Pull("/nosuch", "", nil).Xerror)
		require.NotNil(t, sess.Pull("/refused", "", nil).Xerror)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		require.NotNil(t, sess.PullContext(ctx, "/wait", "", nil).Xerror)
		cancel()
		<-sess.GoPull("/ok", "", nil, nil).Done()
		s, err := OpenStream[string, string](t.Context(), sess, "/stream")
		require.NoError(t, err)
		require.NoError(t, s.CloseSend())
		_, _ = s.Recv()
		lost := sess.GoPull("/wait", "", nil, nil)
		synctest.Wait()
		require.NoError(t, sess.Close())
		<-lost.Done()
		require.NotNil(t, sess.Pull("/ok", "", nil).Xerror)
		close(release)
		synctest.Wait()
		want := []string{"200 /ok", "400 /ok", "100 /ok", "404 /nosuch", "424 /refused", "102 /wait",
			"200 /ok",
			"778 /stream", "101 /wait", "101 /ok"}
		slices.Sort(want)
		for _, o := range []*pullOvers{first, second} {
			slices.Sort(o.all)
			require.Equal(t, want, o.all)
		}
	})
}

// A call whose connection ends within its body is over too.
func TestPostCallOfHalfABody(t *testing.T) {
	for _, typ := range []int32{packet.TypePull, packet.TypePush} {
		synctest.Test(t, func(t *testing.T) {
			over := &overs{name: "over"}
			srv := newTestPeer(t, nil, over)
			HandlePull(srv.PullRouter, "/a", func(_ PullCtx, s *string) (string, Xerror) { return *s, nil })
			HandlePush(srv.PushRouter, "/a", func(PushCtx, *string) {})
			near, far := pipe.New(pipe.Options{})
			_, err := srv.ServeConn(near)
			require.NoError(t, err)
			frame, err := packet.Append(nil, &packet.Packet{Header: &packet.Header{Id: "1", Type: typ,
				Uri: "/a"}, Body: "a text"}, packet.Limits{})
			require.NoError(t, err)
			_, err = far.Write(frame[:len(frame)-2])
			require.NoError(t, err)
			synctest.Wait()
			require.Empty(t, over.take())
			require.NoError(t, far.Close())
			synctest.Wait()
			require.Equal(t, []string{"101 /a route=/a"}, over.take())
		})
	}
}
