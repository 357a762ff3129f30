package accesslog_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/plugin/accesslog"
	"github.com/henrylee2cn/teleport/plugin/internal/plugintest"
)

func TestMain(m *testing.M) {
	tp.SetLogLevel(tp.LevelOff)
	goleak.VerifyTestMain(m)
}

// lines is a writer of JSON lines.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// take returns n lines, for which it waits, and forgets them.
func (l *lines) take(t *testing.T, n int) (all []map[string]any) {
	t.Helper()
	require.Eventually(t, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return bytes.Count(l.buf.Bytes(), []byte("\n")) >= n
	}, 20*time.Second, time.Millisecond)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, text := range strings.Split(strings.TrimSpace(l.buf.String()), "\n") {
		var line map[string]any
		require.NoError(t, json.Unmarshal([]byte(text), &line))
		all = append(all, line)
	}
	l.buf.Reset()
	require.Len(t, all, n)
	return all
}

func join(t testing.TB, out *lines, options ...accesslog.Option) (*tp.Peer, *tp.Session) {
	srv := tp.NewPeer(nil, accesslog.New(slog.New(slog.NewJSONHandler(out, nil)), options...))
	cli := tp.NewPeer(nil)
	t.Cleanup(func() { cli.Close(); srv.Close() })
	ca, cb := pipe.New(pipe.Options{})
	_, err := srv.ServeConn(ca)
	require.NoError(t, err)
	sess, err := cli.ServeConn(cb)
	require.NoError(t, err)
	tp.HandlePull(srv.PullRouter, "/ok", func(_ tp.PullCtx, s *string) (string, tp.Xerror) { return *s, nil })
	tp.HandlePull(srv.PullRouter, "/no", func(tp.PullCtx, *string) (string, tp.Xerror) {
		return "", tp.NewXerror(777, strings.Repeat("long ", 100))
	})
	tp.HandlePush(srv.PushRouter, "/push", func(tp.PushCtx, *string) {})
	tp.HandleStream(srv.PullRouter, "/stream", func(_ tp.PullCtx, s *tp.Stream[string, string]) tp.Xerror {
		_, _ = s.Recv()
		return nil
	})
	return srv, sess
}

// Each call has one line, whatever becomes of it.
func TestLines(t *testing.T) {
	out := new(lines)
	_, sess := join(t, out, accesslog.Who(func(tp.Ctx) string { return "ann" }), accesslog.Query("id"),
		accesslog.Meta("trace", "none"))
	require.Nil(t, sess.Pull("/ok?id=7&token=secret&bad=%zz", "hello", nil,
		tp.WithMeta("trace", "abc"), tp.WithMeta("password", "12345")).Xerror)
	line := out.take(t, 1)[0]
	require.NotContains(t, fmt.Sprint(line), "12345")
	require.NotContains(t, fmt.Sprint(line), "secret")
	require.Equal(t, "call", line["msg"])
	require.Equal(t, "pull", line["kind"])
	require.Equal(t, "/ok", line["path"])
	require.EqualValues(t, 200, line["status"])
	require.Positive(t, line["took"])
	require.Positive(t, line["in"])
	require.Positive(t, line["out"])
	require.Equal(t, "ann", line["who"])
	require.Equal(t, "abc", line["meta.trace"])
	require.Equal(t, map[string]any{"id": "7", "token": accesslog.Redacted}, line["query"])
	require.Contains(t, line["remote"], "pipe-")

	require.NotNil(t, sess.Pull("/no", "", nil).Xerror)
	line = out.take(t, 1)[0]
	require.EqualValues(t, 777, line["status"])
	require.Len(t, line["text"], 256+len("..."))
	require.NotNil(t, sess.Pull("/nosuch", "", nil).Xerror)
	line = out.take(t, 1)[0]
	require.EqualValues(t, 404, line["status"])
	require.Equal(t, "/nosuch", line["path"])
	require.Nil(t, sess.Push("/push", "x"))
	line = out.take(t, 1)[0]
	require.Equal(t, "push", line["kind"])
	require.EqualValues(t, 200, line["status"])
	require.Positive(t, line["took"])
	require.NotContains(t, line, "out")
	require.Nil(t, sess.Push("/nosuch", "x"))
	line = out.take(t, 1)[0]
	require.Equal(t, "push", line["kind"])
	require.EqualValues(t, 404, line["status"])
	require.NotContains(t, line["text"], "x")

	s, err := tp.OpenStream[string, string](t.Context(), sess, "/stream")
	require.NoError(t, err)
	require.NoError(t, s.CloseSend())
	_, _ = s.Recv()
	line = out.take(t, 1)[0]
	require.Equal(t, "stream", line["kind"])
	require.EqualValues(t, 200, line["status"])
}

// A part of the calls is written, and those that fail or are slow in any case.
func TestSample(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // in which nothing is slow by chance
		out := new(lines)
		srv, sess := join(t, out, accesslog.Sample(0), accesslog.Slow(10*time.Millisecond))
		release := make(chan struct{})
		tp.HandlePull(srv.PullRouter, "/slow", func(tp.PullCtx, *string) (string, tp.Xerror) {
			<-release
			return "", nil
		})
		for range 100 {
			require.Nil(t, sess.Pull("/ok", "", nil).Xerror)
			require.Nil(t, sess.Push("/push", ""))
		}
		require.NotNil(t, sess.Pull("/no", "", nil).Xerror)
		require.EqualValues(t, 777, out.take(t, 1)[0]["status"])
		time.AfterFunc(20*time.Millisecond, func() { close(release) })
		require.Nil(t, sess.Pull("/slow", "", nil).Xerror)
		line := out.take(t, 1)[0]
		require.Equal(t, "WARN", line["level"])
		require.GreaterOrEqual(t, line["took"], float64(10*time.Millisecond))
	})

	out := new(lines)
	_, sess := join(t, out, accesslog.Sample(0.5))
	for range 1000 {
		require.Nil(t, sess.Pull("/ok", "", nil).Xerror)
	}
	require.Nil(t, sess.Push("/nosuch", ""))
	require.NotNil(t, sess.Pull("/no", "", nil).Xerror)
	require.Eventually(t, func() bool {
		out.mu.Lock()
		defer out.mu.Unlock()
		return strings.Contains(out.buf.String(), `"status":777`)
	}, 20*time.Second, time.Millisecond)
	out.mu.Lock()
	defer out.mu.Unlock()
	require.InDelta(t, 500, strings.Count(out.buf.String(), `"status":200`), 150)
}

// What is shown can be changed, and one key of many can be all.
func TestRedact(t *testing.T) {
	out := new(lines)
	_, sess := join(t, out, accesslog.Query("*"), accesslog.Meta("card"),
		accesslog.Redact(func(key, value string) string {
			if key == "card" {
				return value[:4] + "..."
			}
			return strings.ToUpper(value)
		}))
	require.Nil(t, sess.Pull("/ok?a=x&a=y&b=%0Az", "", nil, tp.WithMeta("card", "4111111111111111")).Xerror)
	line := out.take(t, 1)[0]
	require.Equal(t, map[string]any{"a": "X,Y", "b": "\nZ"}, line["query"])
	require.Equal(t, "4111...", line["meta.card"])
}

// An escaped question mark begins a query too.
func TestNoQueryInThePath(t *testing.T) {
	out := new(lines)
	_, sess := join(t, out)
	require.NotNil(t, sess.Pull("/ok%3Ftoken=secret", "hello", nil).Xerror)
	line := out.take(t, 1)[0]
	require.Equal(t, "/ok", line["path"])
	require.NotContains(t, fmt.Sprint(line), "secret")
}

func TestMistakes(t *testing.T) {
	require.PanicsWithValue(t, "accesslog: New: option 1 of 1 is nil.", func() { accesslog.New(nil, nil) })
	require.PanicsWithValue(t, "accesslog: Sample: 2 is not between 0 and 1.", func() { accesslog.Sample(2) })
	require.PanicsWithValue(t, "accesslog: Slow: 0s is not positive.", func() { accesslog.Slow(0) })
}

// A line of a pull, and what is left out of it.
func Example() {
	handler := slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: func(_ []string,
		a slog.Attr) slog.Attr {
		switch a.Key {
		case "time", "took", "session", "remote":
			return slog.Attr{} // which differ from run to run
		}
		return a
	}})
	srv := tp.NewPeer(nil, accesslog.New(slog.New(handler), accesslog.Query("id")))
	cli := tp.NewPeer(nil)
	defer cli.Close()
	tp.HandlePull(srv.PullRouter, "/order", func(_ tp.PullCtx, s *string) (string, tp.Xerror) {
		return *s, nil
	})
	ca, cb := net.Pipe()
	_, _ = srv.ServeConn(ca)
	sess, err := cli.ServeConn(cb)
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = tp.Call[string](context.Background(), sess, "/order?id=7&token=s3cret", "two of each")
	if err != nil {
		fmt.Println(err)
	}
	_ = srv.Shutdown(context.Background()) // which waits until the line is written
	// Output:
	// level=INFO msg=call kind=pull path=/order status=200 in=46 out=23 query.id=7 query.token=[redacted]
}

// BenchmarkCall measures what the plugin adds to a call.
func BenchmarkCall(b *testing.B) {
	for _, name := range []string{"none", "sample=0", "sample=1"} {
		b.Run(name, func(b *testing.B) {
			srv, cli := tp.NewPeer(nil), tp.NewPeer(nil)
			log := slog.New(slog.NewJSONHandler(new(discard), nil))
			switch name {
			case "sample=0":
				srv = tp.NewPeer(nil, accesslog.New(log, accesslog.Sample(0)))
			case "sample=1":
				srv = tp.NewPeer(nil, accesslog.New(log))
			}
			plugintest.BenchmarkPulls(b, "/who", srv, cli)
		})
	}
}

type discard struct{}

func (*discard) Write(p []byte) (int, error) { return len(p), nil }
