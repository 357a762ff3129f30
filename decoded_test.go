package tp

import (
	"bytes"
	"compress/gzip"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/henrylee2cn/teleport/packet"
)

type wide struct {
	A [32]int64
	B string
}

func gzipped(t testing.TB, text string) packet.RawBody {
	var b bytes.Buffer
	b.WriteByte('j')
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	require.NoError(t, err)
	_, err = w.Write([]byte(text))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.Bytes()
}

// A body that would take much memory once it is decoded costs its call, and nothing else,
// before it is decoded.
func TestDecodedBytes(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	many := "[{}" + strings.Repeat(",{}", 4_000_000) + "]" // a gigabyte
	HandlePull(srv.PullRouter, "/json", func(_ PullCtx, args *[]wide) (int, Xerror) {
		return len(*args), nil
	})
	HandlePull(srv.PullRouter, "/any", func(_ PullCtx, args *interface{}) (int, Xerror) { return 1, nil })
	HandlePull(srv.PullRouter, "/protobuf", func(_ PullCtx, args *structpb.ListValue) (int, Xerror) {
		return len(args.Values), nil
	})
	srv.PullRouter.SetUnknown(func(ctx UnknownPullCtx, raw *[]byte) (interface{}, Xerror) {
		var list []wide
		if _, err := ctx.Unmarshal(*raw, &list); err != nil {
			return nil, NewXerror(StatusTooLarge, err.Error())
		}
		return len(list), nil
	})
	HandlePull(srv.PullRouter, "/back", func(PullCtx, *int) (packet.RawBody, Xerror) {
		return packet.RawBody("j" + many), nil
	})
	HandlePull(srv.PullRouter, "/ok", func(_ PullCtx, args *string) (string, Xerror) { return *args, nil })
	sess := dial(t, cli, srv)
	for _, tc := range []struct {
		uri  string
		body packet.RawBody
		gzip int32
	}{
		{"/json", packet.RawBody("j" + many), 0},
		{"/json", gzipped(t, many), 9},
		{"/any", packet.RawBody("j[{}" + strings.Repeat(`,{"":0}`, 200_000) + "]"), 0},
		{"/protobuf", packet.RawBody("p" + strings.Repeat("\n\x00", 2_000_000)), 0},
		{"/unmarshalled", packet.RawBody("j" + many), 0},
	} {
		var n int
		x := sess.Pull(tc.uri, tc.body, &n, WithGzip(tc.gzip)).Xerror
		require.NotNil(t, x, tc.uri)
		require.Equal(t, StatusTooLarge, x.Code(), "%v", x)
		require.Contains(t, x.Text(), "decoded body would exceed the limit of 67108864 bytes")
	}
	var list []wide
	x := sess.Pull("/back", 1, &list).Xerror
	require.Equal(t, StatusTooLarge, x.Code(), "%v", x)
	require.Empty(t, list)

	var wg sync.WaitGroup
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if x := sess.Pull("/json", gzipped(t, many), nil,
				WithGzip(9)).Xerror; x.Code() != StatusTooLarge && x.Code() != StatusOverloaded {
				t.Error(x)
			}
		}()
	}
	wg.Wait()
	var got string
	require.Nil(t, sess.Pull("/ok", "x", &got).Xerror)
	require.Equal(t, "x", got)
}

// A body within the limit is decoded, and is paid for while its handler runs.
func TestDecodedBytesAreChargedWhileTheHandlerRuns(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	entered, release := make(chan struct{}), make(chan struct{})
	HandlePull(srv.PullRouter, "/json", func(_ PullCtx, args *[]wide) (int, Xerror) {
		close(entered)
		<-release
		return len(*args), nil
	})
	sess := dial(t, cli, srv)
	const n = 50_000 // of 272 bytes
	cmd := sess.GoPull("/json", packet.RawBody("j[{}"+strings.Repeat(",{}", n-1)+"]"), new(int), nil)
	<-entered
	require.GreaterOrEqual(t, srv.inPool.Lent(), int64(n*272))
	close(release)
	<-cmd.Done()
	require.Nil(t, cmd.Xerror)
	require.Equal(t, n, *cmd.reply.(*int))
}
