package prometheus_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	lib "github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/contrib/prometheus"
	"github.com/henrylee2cn/teleport/packet"
)

// peers are a server with the plugin, a client of it, and what a scrape returns.
type peers struct {
	srv, cli *tp.Peer
	sess     *tp.Session
	url      string
	addr     string // of the server
}

func newPeers(t testing.TB, options ...prometheus.Option) *peers {
	m := prometheus.New(options...)
	registry := lib.NewPedanticRegistry()
	registry.MustRegister(m)
	web := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	p := &peers{srv: tp.NewPeer(nil, m), cli: tp.NewPeer(nil), url: web.URL}
	t.Cleanup(func() { p.cli.Close(); p.srv.Close(); web.Close() })
	p.sess = dial(t, p.srv, p.cli)
	p.addr = p.sess.RemoteIp()
	tp.HandlePull(p.srv.PullRouter, "/ok", func(_ tp.PullCtx, s *string) (string, tp.Xerror) {
		return *s, nil
	})
	tp.HandlePull(p.srv.PullRouter, "/no", func(_ tp.PullCtx, code *int32) (string, tp.Xerror) {
		return "", tp.NewXerror(*code, "no")
	})
	tp.HandlePush(p.srv.PushRouter, "/push", func(tp.PushCtx, *string) {})
	tp.HandleStream(p.srv.PullRouter, "/stream", func(_ tp.PullCtx, s *tp.Stream[string, string]) tp.Xerror {
		_, _ = s.Recv()
		return nil
	})
	return p
}

// dial connects the two peers.
func dial(t testing.TB, srv, cli *tp.Peer) *tp.Session {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go srv.Serve(ln)
	sess, err := cli.Dial(ln.Addr().String())
	require.NoError(t, err)
	return sess
}

// back is the server's end of sess.
func (p *peers) back(t testing.TB) (sess *tp.Session) {
	require.Eventually(t, func() bool {
		p.srv.RangeSession(func(s *tp.Session) bool {
			sess = s
			return false
		})
		return sess != nil
	}, 20*time.Second, time.Millisecond)
	return sess
}

func (p *peers) scrape(t testing.TB) string {
	res, err := http.Get(p.url)
	require.NoError(t, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return string(text)
}

// requireSeries requires that a scrape has the lines, sooner or later: some are counted after the reply was
// sent.
func (p *peers) requireSeries(t *testing.T, lines ...string) {
	t.Helper()
	var text string
	for _, line := range lines {
		require.Eventually(t, func() bool {
			text = p.scrape(t)
			return regexp.MustCompile("(?m)^" + line + "$").MatchString(text)
		}, 20*time.Second, 5*time.Millisecond, "%s", line)
	}
}

// What is counted, as it is scraped.
func TestSeries(t *testing.T) {
	p := newPeers(t)
	require.Nil(t, p.sess.Pull("/ok", "hello", nil).Xerror)
	require.Nil(t, p.sess.Pull("/ok", "hello", nil).Xerror)
	for _, code := range []int32{777, 5000, -3, 429} {
		require.NotNil(t, p.sess.Pull("/no", code, nil).Xerror)
	}
	require.NotNil(t, p.sess.Pull("/nosuch", "", nil).Xerror)
	require.Nil(t, p.sess.Push("/push", "x"))
	require.Nil(t, p.sess.Push("/push", 5))
	s, err := tp.OpenStream[string, string](t.Context(), p.sess, "/stream")
	require.NoError(t, err)
	p.requireSeries(t, `teleport_calls_running\{kind="stream"\} 1`, `teleport_sessions 1`,
		`teleport_output_waiting_bytes 0`, `teleport_connections_total 1`)
	require.NoError(t, s.CloseSend())
	_, _ = s.Recv()
	p.requireSeries(t,
		`teleport_calls_total\{kind="pull",route="/ok",status="200"\} 2`,
		`teleport_calls_total\{kind="pull",route="/no",status="777"\} 1`,
		`teleport_calls_total\{kind="pull",route="/no",status="other"\} 2`,
		`teleport_calls_total\{kind="pull",route="none",status="404"\} 1`,
		`teleport_calls_total\{kind="push",route="/push",status="200"\} 1`,
		`teleport_calls_total\{kind="push",route="/push",status="400"\} 1`,
		`teleport_calls_total\{kind="stream",route="/stream",status="200"\} 1`,
		`teleport_limited_total\{kind="pull",route="/no"\} 1`,
		`teleport_pushes_dropped_total 1`,
		`teleport_calls_running\{kind="stream"\} 0`,
		`teleport_calls_running\{kind="pull"\} 0`,
		`teleport_calls_running\{kind="push"\} 0`,
		`teleport_call_duration_seconds_count\{route="/ok"\} 2`,
		`teleport_received_bytes_total\{kind="pull",route="/ok"\} [1-9]\d*`,
		`teleport_sent_bytes_total\{kind="pull",route="/ok"\} [1-9]\d*`,
	)
	require.NoError(t, p.sess.Close())
	p.requireSeries(t, `teleport_sessions 0`, `teleport_disconnects_total 1`)
}

// What this side calls is counted too.
func TestClientSeries(t *testing.T) {
	p := newPeers(t, prometheus.ClientRoutes(func(path string) string {
		return strings.TrimRight(path, "0123456789")
	}))
	back := p.back(t)
	release := make(chan struct{})
	tp.HandlePull(p.cli.PullRouter, "/user/7", func(tp.PullCtx, *string) (string, tp.Xerror) {
		return "", nil
	})
	tp.HandlePull(p.cli.PullRouter, "/wait", func(tp.PullCtx, *string) (string, tp.Xerror) {
		<-release
		return "", nil
	})
	tp.HandleStream(p.cli.PullRouter, "/stream", func(_ tp.PullCtx, s *tp.Stream[string, string]) tp.Xerror {
		_, _ = s.Recv()
		return nil
	})
	require.Nil(t, back.Pull("/user/7?a=b", "", nil).Xerror)
	require.NotNil(t, back.Pull("/user/8", "", nil).Xerror)
	require.NotNil(t, back.Pull("/user/9", make(chan int), nil).Xerror, "it cannot be encoded")
	require.Nil(t, back.Push("/note", ""))
	wait := back.GoPull("/wait", "", nil, nil)
	s, err := tp.OpenStream[string, string](t.Context(), back, "/stream")
	require.NoError(t, err)
	p.requireSeries(t, `teleport_client_calls_running\{kind="pull"\} 1`,
		`teleport_client_calls_running\{kind="stream"\} 1`)
	close(release)
	<-wait.Done()
	require.NoError(t, s.CloseSend())
	_, _ = s.Recv()
	p.requireSeries(t,
		`teleport_client_calls_running\{kind="pull"\} 0`,
		`teleport_client_calls_running\{kind="stream"\} 0`,
		`teleport_client_calls_total\{kind="pull",route="/user/",status="200"\} 1`,
		`teleport_client_calls_total\{kind="pull",route="/user/",status="404"\} 1`,
		`teleport_client_calls_total\{kind="pull",route="/user/",status="[^"24]\d*"\} 1`,
		`teleport_client_calls_total\{kind="push",route="/note",status="200"\} 1`,
		`teleport_client_calls_total\{kind="stream",route="/stream",status="200"\} 1`,
		`teleport_client_call_duration_seconds_count\{route="/wait"\} 1`,
	)
}

// Calls that wait for a handler are seen.
func TestWaiting(t *testing.T) {
	m := prometheus.New()
	registry := lib.NewPedanticRegistry()
	registry.MustRegister(m)
	waiting := func() float64 {
		families, err := registry.Gather()
		require.NoError(t, err)
		for _, f := range families {
			if f.GetName() == "teleport_calls_waiting" {
				return f.GetMetric()[1].GetGauge().GetValue() // push, pull, stream: by the alphabet
			}
		}
		return -1
	}
	srv, cli := tp.NewPeer(&tp.PeerConfig{MaxHandlers: 1}, m), tp.NewPeer(nil)
	defer cli.Close()
	defer srv.Close()
	release := make(chan struct{})
	tp.HandlePush(srv.PushRouter, "/push", func(tp.PushCtx, *string) { <-release })
	sess := dial(t, srv, cli)
	for range 5 {
		require.Nil(t, sess.Push("/push", ""))
	}
	require.Eventually(t, func() bool { return waiting() == 4 }, 20*time.Second, time.Millisecond)
	close(release)
	require.Eventually(t, func() bool { return waiting() == 0 }, 20*time.Second, time.Millisecond)
}

var uris = flag.Int("uris", 50_000, "how many unknown URIs a stranger calls")

// A stranger who calls as many URIs as it likes, and sends what it likes, adds three series at most.
func TestStrangersAddNoSeries(t *testing.T) {
	p := newPeers(t)
	require.NotNil(t, p.sess.Pull("/nosuch", "", nil).Xerror)
	p.requireSeries(t, `teleport_calls_total\{kind="pull",route="none",status="404"\} 1`)
	before := strings.Count(p.scrape(t), "\n")
	conn, err := net.Dial("tcp", p.addr)
	require.NoError(t, err)
	defer conn.Close()
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	var out []byte
	for i := range *uris {
		h := &packet.Header{Id: fmt.Sprint(i), Type: packet.TypePull, Uri: fmt.Sprintf("/no/%d?x=%d", i, i),
			Meta: map[string]string{fmt.Sprint(i): "x"}}
		out, err = packet.Append(out, &packet.Packet{Header: h, BodyCodec: "json", Body: i}, packet.Limits{})
		require.NoError(t, err)
		if len(out) > 32<<10 || i == *uris-1 {
			_, err = conn.Write(out)
			require.NoError(t, err)
			out = out[:0]
		}
	}
	p.requireSeries(t, fmt.Sprintf(`teleport_calls_total\{kind="pull",route="none",status="404"\} %s`,
		regexp.QuoteMeta(strconv.FormatFloat(float64(*uris+1), 'g', -1, 64))))
	after := p.scrape(t)
	t.Logf("%d URIs: %d lines more", *uris, strings.Count(after, "\n")-before)
	require.LessOrEqual(t, strings.Count(after, "\n"), before+3)
}

// The dashboard asks for nothing that is not there.
func TestDashboard(t *testing.T) {
	file, err := os.ReadFile("dashboard.json")
	require.NoError(t, err)
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	require.NoError(t, json.Unmarshal(file, &board))
	require.Greater(t, len(board.Panels), 9)
	p := newPeers(t)
	require.Nil(t, p.sess.Pull("/ok", "", nil).Xerror)
	require.NotNil(t, p.sess.Pull("/no", 429, nil).Xerror)
	require.Nil(t, p.sess.Push("/push", ""))
	require.NotNil(t, p.back(t).Pull("/nosuch", "", nil).Xerror)
	p.requireSeries(t, `teleport_calls_total\{kind="push",route="/push",status="200"\} 1`,
		`teleport_client_calls_total\{kind="pull",route="any",status="404"\} 1`)
	text := p.scrape(t)
	for _, panel := range board.Panels {
		require.NotEmpty(t, panel.Targets, panel.Title)
		for _, target := range panel.Targets {
			names := regexp.MustCompile(`teleport_\w+`).FindAllString(target.Expr, -1)
			require.NotEmpty(t, names, panel.Title)
			for _, name := range names {
				require.Regexp(t, "(?m)^"+name+"[ {]", text, panel.Title)
			}
		}
	}
}

// The names and the help follow the conventions.
func TestLint(t *testing.T) {
	m := prometheus.New(prometheus.Namespace("x"), prometheus.Labels(lib.Labels{"peer": "a"}))
	problems, err := testutil.CollectAndLint(m)
	require.NoError(t, err)
	require.Empty(t, problems)
}

// Options that make no sense panic.
func TestMistakes(t *testing.T) {
	for says, f := range map[string]func(){
		"New: option 1 of 1 is nil":         func() { prometheus.New(nil) },
		"ClientRoutes: the function is nil": func() { prometheus.ClientRoutes(nil) },
		"Buckets([1 0.1]): expected bounds": func() { prometheus.Buckets(1, 0.1) },
		"Buckets([1 1]): expected bounds":   func() { prometheus.Buckets(1, 1) },
		"Buckets([]): expected bounds":      func() { prometheus.Buckets() },
	} {
		func() {
			defer func() { require.Contains(t, fmt.Sprint(recover()), says) }()
			f()
		}()
	}
}

// Calls whose connection ends within their bodies do not run for ever.
func TestHalfABody(t *testing.T) {
	p := newPeers(t)
	frame, err := packet.Append(nil, &packet.Packet{Header: &packet.Header{Id: "1", Type: packet.TypePull,
		Uri: "/ok"}, Body: "a text"}, packet.Limits{})
	require.NoError(t, err)
	for range 5 {
		conn, err := net.Dial("tcp", p.addr)
		require.NoError(t, err)
		_, err = conn.Write(frame[:len(frame)-3])
		require.NoError(t, err)
		require.NoError(t, conn.Close())
	}
	p.requireSeries(t, `teleport_calls_total\{kind="pull",route="/ok",status="101"\} 5`,
		`teleport_calls_running\{kind="pull"\} 0`, `teleport_calls_waiting\{kind="pull"\} 0`)
}

// BenchmarkCall measures what the plugin adds to a call.
func BenchmarkCall(b *testing.B) {
	for _, with := range []bool{false, true} {
		b.Run(fmt.Sprintf("plugin=%v", with), func(b *testing.B) {
			var plugins []tp.Plugin
			if with {
				plugins = append(plugins, prometheus.New())
			}
			srv, cli := tp.NewPeer(nil, plugins...), tp.NewPeer(nil)
			defer srv.Close()
			defer cli.Close()
			tp.HandlePull(srv.PullRouter, "/ok", func(_ tp.PullCtx, s *string) (string, tp.Xerror) {
				return *s, nil
			})
			sess := dial(b, srv, cli)
			b.ReportAllocs()
			for b.Loop() {
				if x := sess.Pull("/ok", "x", nil).Xerror; x != nil {
					b.Fatal(x)
				}
			}
		})
	}
}
