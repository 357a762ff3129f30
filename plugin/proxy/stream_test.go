package proxy_test

import (
	"context"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/plugin/proxy"
)

// texts is a stream of texts both ways.
type texts = tp.Stream[string, string]

// throughProxy returns a session by whose proxy the service is reached.
func throughProxy(t *testing.T, service *tp.Peer) *tp.Session {
	middle := tp.NewPeer(nil)
	up, _ := join(t, middle, service)
	middle.PullRouter.SetUnknownStream(proxy.To(up).Stream)
	client, _ := join(t, tp.NewPeer(nil), middle)
	return client
}

func TestStreamThroughAProxy(t *testing.T) {
	service := tp.NewPeer(nil)
	tp.HandleStream(service.PullRouter, "/upper", func(ctx tp.PullCtx, s *texts) tp.Xerror {
		for v, err := range s.All() {
			if err != nil {
				return tp.NewXerror(tp.StatusInternalServerError, err.Error())
			}
			up := strings.ToUpper(*v) + s.Meta()["suffix"]
			if s.Send(&up) != nil {
				return nil
			}
		}
		ctx.SetMeta("hops", ctx.Meta()[proxy.HopsKey])
		return tp.NewXerror(1234, "that was all")
	})
	client := throughProxy(t, service)
	for _, set := range [][]tp.PacketSetting{nil, {tp.WithGzip(5)}, {tp.WithBodyCodec("string")},
		{tp.WithHeaderCodec("json")}} {
		s, err := tp.OpenStream[string, string](t.Context(), client, "/upper",
			append(set, tp.WithMeta("suffix", "!"))...)
		require.NoError(t, err)
		for _, text := range []string{"a", "", strings.Repeat("long ", 10_000)} {
			require.NoError(t, s.Send(&text))
			v, err := s.Recv()
			require.NoError(t, err)
			require.Equal(t, strings.ToUpper(text)+"!", *v)
		}
		require.NoError(t, s.CloseSend())
		_, err = s.Recv()
		require.EqualError(t, err, "1234 that was all")
		<-s.Done()
		require.Equal(t, map[string]string{"hops": "1"}, s.Meta())
	}
	s, err := tp.OpenStream[string, string](t.Context(), client, "/nosuch")
	require.NoError(t, err)
	_, err = s.Recv()
	require.ErrorContains(t, err, "404 not found")
	require.True(t, tp.NotRun(err.(tp.Xerror)))
}

// Who does not receive stops the one who sends, also with a proxy between them, and the end of one side is
// the end of the other.
func TestFlowOfAStreamThroughAProxy(t *testing.T) {
	service := tp.NewPeer(nil)
	var sent atomic.Int64
	ended := make(chan error, 1)
	tp.HandleStream(service.PullRouter, "/feed", func(ctx tp.PullCtx, s *texts) tp.Xerror {
		text := strings.Repeat("x", 1000)
		for {
			if err := s.Send(&text); err != nil {
				ended <- err
				return nil
			}
			sent.Add(1)
		}
	})
	client := throughProxy(t, service)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, err := tp.OpenStream[string, string](ctx, client, "/feed")
	require.NoError(t, err)
	// What may wait at the two receivers, of which each has a window of up to 4 MiB when it has kept up for a
	// while, and in pieces on the way.
	const most = 9 << 20 / 1000
	last := int64(-1)
	require.Eventually(t, func() bool {
		now := sent.Load()
		stopped := now == last && now > 100
		last = now
		return stopped
	}, 20*time.Second, 100*time.Millisecond)
	require.Less(t, last, int64(most))
	for range 3 * most {
		_, err := s.Recv()
		require.NoError(t, err)
	}
	cancel()
	require.ErrorContains(t, <-ended, "given the stream up")
}

// The handler returns while the caller sends: the caller's Send has the handler's status, and not that the
// proxy takes no more.
func TestStatusOfAStreamThroughAProxyWhileItIsSent(t *testing.T) {
	service := tp.NewPeer(nil)
	tp.HandleStream(service.PullRouter, "/refuse", func(ctx tp.PullCtx, s *texts) tp.Xerror {
		_, _ = s.Recv()
		return tp.NewXerror(777, "enough")
	})
	client := throughProxy(t, service)
	text := "x"
	for range 300 {
		s, err := tp.OpenStream[string, string](t.Context(), client, "/refuse")
		require.NoError(t, err)
		for err == nil {
			err = s.Send(&text)
		}
		require.ErrorContains(t, err, "777 enough")
	}
}

// The upstream's connection ends: that is not the caller's.
func TestStreamWhoseUpstreamGoes(t *testing.T) {
	service := tp.NewPeer(nil)
	tp.HandleStream(service.PullRouter, "/wait", func(ctx tp.PullCtx, s *texts) tp.Xerror {
		text := "here"
		_ = s.Send(&text)
		<-ctx.Context().Done()
		return nil
	})
	client := throughProxy(t, service)
	s, err := tp.OpenStream[string, string](t.Context(), client, "/wait")
	require.NoError(t, err)
	v, err := s.Recv()
	require.NoError(t, err)
	require.Equal(t, "here", *v)
	require.NoError(t, service.Close())
	_, err = s.Recv()
	require.ErrorContains(t, err, "502 bad gateway")
	require.NotErrorIs(t, err, io.EOF)
}
