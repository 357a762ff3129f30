package tp

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
)

// capture is a Logger that keeps what it is given.
type capture struct {
	more chan string
	kept []string // received and not asked for yet
}

func (c *capture) Enabled(context.Context, slog.Level) bool { return true }

func (c *capture) Handle(_ context.Context, r slog.Record) error {
	name, _ := levelName(r.Level)
	c.more <- name + " " + r.Message
	return errors.New("ignored")
}

// next waits for a line that contains all of want. Others are kept for later:
// two sides log in any order.
func (c *capture) next(t *testing.T, want ...string) string {
	t.Helper()
	for i := 0; ; i++ {
		if i == len(c.kept) {
			c.kept = append(c.kept, <-c.more)
		}
		line, all := c.kept[i], true
		for _, w := range want {
			all = all && strings.Contains(line, w)
		}
		if all {
			c.kept = slices.Delete(c.kept, i, i+1)
			return line
		}
	}
}

// take returns what has come and was not asked for.
func (c *capture) take() []string {
	for {
		select {
		case line := <-c.more:
			c.kept = append(c.kept, line)
		default:
			kept := c.kept
			c.kept = nil
			return kept
		}
	}
}

func captureLog(t *testing.T, level slog.Level) *capture {
	c := &capture{more: make(chan string, 10000)}
	old := LogLevel()
	SetLogger(c)
	SetLogLevel(level)
	t.Cleanup(func() { SetLogLevel(old); SetLogger(nil) })
	return c
}

func TestTextLogIsAsAPersonReadsIt(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	defer f.Close()
	l := newTextLogger(f)
	SetLogger(l)
	SetLogLevel(LevelTrace)
	defer func() { SetLogger(nil); SetLogLevel(LevelOff) }()
	Tracef("a %d", 1)
	Debugf("a\nb\n")
	Infof("plain")
	Noticef("n")
	Warnf("w")
	Errorf("e")
	Criticalf("c")
	Printf("p")
	SetLogLevel(LevelError)
	Warnf("not this")
	Printf("but this")
	r := slog.NewRecord(time.Now(), LevelError, "attrs", 0)
	r.Add("k", "v")
	require.NoError(t, l.Handle(context.Background(), r))
	b, err := os.ReadFile(f.Name())
	require.NoError(t, err)
	stamp := regexp.MustCompile(`(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} `)
	require.Equal(t, `[TRACE] a 1
[DEBUG] a
b
[INFO] plain
[NOTICE] n
[WARN] w
[ERROR] e
[CRITICAL] c
[INFO] p
[INFO] but this
[ERROR] attrs k=v
`, stamp.ReplaceAllString(string(b), ""))

	var buf bytes.Buffer
	l = &textLogger{out: &buf, colour: true}
	require.NoError(t, l.Handle(context.Background(), slog.NewRecord(time.Now(), LevelWarn, "x", 0)))
	require.Contains(t, buf.String(), "\x1b[33m[WARN]\x1b[0m x\n")
}

func TestSlogHandlerInItsPlace(t *testing.T) {
	var buf bytes.Buffer
	SetLogger(slog.NewJSONHandler(&buf, &slog.HandlerOptions{Level: slog.LevelWarn}))
	SetLogLevel(LevelTrace)
	defer func() { SetLogger(nil); SetLogLevel(LevelOff) }()
	Infof("no")
	Warnf("yes %q", "x")
	require.Equal(t, 1, strings.Count(buf.String(), "\n"))
	require.Contains(t, buf.String(), `"msg":"yes \"x\""`)
}

func TestPanicfAndFatalf(t *testing.T) {
	c := captureLog(t, LevelInfo)
	require.PanicsWithValue(t, "bad 1", func() { Panicf("bad %d", 1) })
	require.Equal(t, "CRITICAL bad 1", <-c.more)
	var code int
	osExit = func(c int) { code = c }
	defer func() { osExit = os.Exit }()
	Fatalf("worse %d", 2)
	require.Equal(t, "CRITICAL worse 2", <-c.more)
	require.Equal(t, 1, code)
}

func TestPrintBody(t *testing.T) {
	srv, cli := newTestPeer(t, &PeerConfig{PrintBody: true}), newTestPeer(t, &PeerConfig{PrintBody: true})
	pullFn(srv, echo)
	pushFn(srv, func(PushCtx, interface{}) {})
	c := captureLog(t, LevelInfo)
	_, sess := connect(t, srv, cli, pipe.Options{})
	sess.Pull("/fn/call", "two\nlines", new(string))
	handle := c.next(t, "pull-handle", "/fn/call")
	require.Regexp(t,
		`^INFO pull-handle pipe-\d+-\w /fn/call 200 OK in \S+; received \d+ bytes: "two\\nlines"; sent \d+ bytes: two\\nlines$`, handle)
	launch := c.next(t, "pull-launch")
	require.Contains(t, launch, `received`)

	sess.Pull("/nowhere\n", strings.Repeat("x", 5000), nil)
	line := c.next(t, "pull-launch", "400 the URI", `/nowhere\n`)
	require.Less(t, len(line), 4096)
	require.NotContains(t, line, "\n")
	require.Contains(t, line, "xxx...")

	require.Nil(t, sess.Push("/fn_push/call", []byte("\x1b[31m\x00\xff")))
	c.next(t, "push-launch", `\x1b[31m\x00\xff`)
	c.next(t, "push-handle", "/fn_push/call")
	require.Nil(t, sess.Push("/nowhere", 1))
	c.next(t, "WARN push /nowhere", "dropped: 404 not found")
}

func TestPacketsAreLoggedAtDebugWithoutBodies(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	pullFn(srv, echo)
	c := captureLog(t, LevelDebug)
	_, sess := connect(t, srv, cli, pipe.Options{})
	sess.Pull("/fn/call", "a secret", nil)
	require.NotContains(t, c.next(t, "DEBUG pull-handle"), "secret")
	require.NoError(t, sess.Close())
	c.next(t, "DEBUG session", "ended: the other side has closed the connection")
}

func TestSlowOperationAlarm(t *testing.T) {
	srv, cli := newTestPeer(t, &PeerConfig{SlowCometDuration: 1}),
		newTestPeer(t, &PeerConfig{SlowCometDuration: time.Hour})
	pullFn(srv, echo)
	c := captureLog(t, LevelInfo)
	_, sess := connect(t, srv, cli, pipe.Options{})
	requireAlive(t, sess)
	c.next(t, "WARN slow pull-handle")
	require.Nil(t, sess.Push("/fn/call", 1)) // logged behind whatever the pull's launch was
	c.next(t, "WARN push /fn/call")
	require.NotContains(t, strings.Join(c.kept, "\n"), "slow pull-launch")
}

func TestLogIsNotBuiltWhenItsLevelIsOff(t *testing.T) {
	srv, cli := newTestPeer(t, &PeerConfig{PrintBody: true}), newTestPeer(t, nil)
	printed := false
	_, sess := connect(t, srv, cli, pipe.Options{})
	pullFn(srv, func(PullCtx, interface{}) (interface{}, Xerror) { return &printer{&printed}, nil })
	require.Nil(t, sess.Pull("/fn/call", nil, nil).Xerror)
	require.False(t, printed)
	c := captureLog(t, LevelInfo)
	require.Nil(t, sess.Pull("/fn/call", nil, nil).Xerror)
	c.next(t, "pull-handle", "printing panicked: no")
}

type printer struct{ printed *bool }

func (p *printer) String() string               { *p.printed = true; panic("no") }
func (p *printer) MarshalJSON() ([]byte, error) { return []byte("1"), nil }

func TestPrintBodyOfEveryKind(t *testing.T) {
	s, b, r := "s\n", []byte("b\n"), packet.RawBody("r\n")
	for _, v := range []interface{}{s, &s} {
		require.Equal(t, `s\n`, printBody(v))
	}
	for _, v := range []interface{}{b, &b} {
		require.Equal(t, `b\n`, printBody(v))
	}
	for _, v := range []interface{}{r, &r} {
		require.Equal(t, `r\n`, printBody(v))
	}
	require.Equal(t, "(not decoded)", printBody(nil))
	require.Equal(t, `{"A":1}`, printBody(struct{ A int }{1}))
	require.Contains(t, printBody(make(chan int)), "0x")
	require.Len(t, printBody(bytes.Repeat([]byte("x"), 1<<20)), maxPrinted)
}

// What the log shows of a body is made before the handler has it: later it may
// be changed at any time.
func TestPrintedBodiesAreTheHandlersOwn(t *testing.T) {
	srv, cli := newTestPeer(t, &PeerConfig{PrintBody: true}), newTestPeer(t, nil)
	stop := make(chan struct{})
	var changing sync.WaitGroup
	change := func(m map[string]interface{}) {
		changing.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					m[strconv.Itoa(i%10)] = i
				}
			}
		})
	}
	pullFn(srv, func(_ PullCtx, args interface{}) (interface{}, Xerror) {
		change(args.(map[string]interface{}))
		return nil, nil
	})
	srv.PushRouter.SetUnknown(func(ctx UnknownPushCtx, body *[]byte) {
		changing.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					var v interface{}
					_, _ = ctx.Unmarshal(*body, &v, true)
				}
			}
		})
	})
	c := captureLog(t, LevelInfo)
	_, sess := connect(t, srv, cli, pipe.Options{})
	require.Nil(t, sess.Pull("/fn/call", map[string]int{"a": 1}, nil).Xerror)
	c.next(t, "pull-handle", `{"a":1}`)
	require.Nil(t, sess.Push("/x", map[string]int{"a": 1}))
	c.next(t, "push-handle", "/x")
	close(stop)
	changing.Wait()
}

// Whatever a stranger sends, wherever it ends up in the log: it is one line of at
// most 4 KiB, and nothing in it speaks to a terminal.
func TestHostileTextInTheLog(t *testing.T) {
	const evil = "a\nb\r\x1b[31m\x00\xff\xfe\u202e\u2028c"
	huge := strings.Repeat(evil, 1<<20) // 16 MiB and more
	lines := make(lineLog, 100_000)
	level := LogLevel()
	SetLogger(lines)
	SetLogLevel(LevelTrace)
	t.Cleanup(func() { SetLogger(nil); SetLogLevel(level) })

	hook := hookPlugin("hook", "PostReadBody", func(c interface{}) error {
		if c.(ReadCtx).Input().Header.Uri == "/hook" {
			return errors.New(huge)
		}
		return nil
	})
	srv := newTestPeer(t, &PeerConfig{PrintBody: true, MaxBodyBytes: 64 << 20}, hook)
	cli := newTestPeer(t, &PeerConfig{PrintBody: true, MaxBodyBytes: 64 << 20, DefaultBodyCodec: "string"})
	HandlePull(srv.PullRouter, "/echo", func(_ PullCtx, s *string) (string, Xerror) { return *s, nil })
	HandlePull(srv.PullRouter, "/hook", func(_ PullCtx, s *string) (string, Xerror) { return *s, nil })
	HandlePull(srv.PullRouter, "/fail", func(_ PullCtx, s *string) (string, Xerror) {
		return "", NewXerror(1, *s)
	})
	HandlePull(srv.PullRouter, "/panic", func(_ PullCtx, s *string) (string, Xerror) { panic(*s) })
	srv.PullRouter.Group("/un").SetUnknown(func(ctx UnknownPullCtx, b *[]byte) (interface{}, Xerror) {
		var v string
		_, _ = ctx.Unmarshal(*b, &v, true)
		return v, nil
	})
	sess, _ := connect(t, cli, srv, pipe.Options{})
	for _, text := range []string{evil, huge} {
		for _, path := range []string{"/echo", "/hook", "/fail", "/panic", "/un/known", "/none"} {
			_ = sess.Pull(path, text, new(string))
			_ = sess.Push(path, text)
		}
		if text = strings.ToValidUTF8(text, "?"); len(text) > 60_000 {
			text = text[:60_000]
		}
		text = strings.ToValidUTF8(text, "?")
		_ = sess.Pull("/"+text, "", new(string))
		_ = sess.Push("/"+text, "")
		_ = sess.Pull("/none?"+text, "", new(string))
		_ = sess.ChangeId(text)
		_ = sess.Pull("/none", "", new(string))
	}
	require.NoError(t, sess.Close())
	require.NoError(t, srv.Shutdown(t.Context()))
	SetLogger(nil)
	n := 0
	for ; len(lines) > 0; n++ {
		line := <-lines
		line, _, _ = strings.Cut(line, "\ngoroutine ") // a stack, which is ours
		require.LessOrEqual(t, len(line), 4096, "%.200s", line)
		require.True(t, utf8.ValidString(line))
		for _, r := range line {
			require.True(t, unicode.IsPrint(r), "%q in %q", r, line)
		}
	}
	require.Greater(t, n, 40)
}

// lineLog keeps every message.
type lineLog chan string

func (lineLog) Enabled(context.Context, slog.Level) bool { return true }

func (l lineLog) Handle(_ context.Context, r slog.Record) error {
	l <- r.Message
	return nil
}
