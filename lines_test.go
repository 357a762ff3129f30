package tp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
)

// Only lines.go hands the library's own lines on, escaped; what is the program's own,
// Infof and its kin, the library does not use.
func TestNoLineOfTheLibraryIsUnescaped(t *testing.T) {
	raw := map[string][]string{"output": {"log.go", "lines.go", "printf.go"}, "userf": {"printf.go"},
		"logTarget": {"log.go"}}
	for _, name := range []string{"Tracef", "Debugf", "Infof", "Noticef", "Warnf", "Errorf", "Criticalf",
		"Printf", "Panicf", "Fatalf"} {
		raw[name] = []string{"printf.go"}
	}
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	seen := 0
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		tree, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		require.NoError(t, err)
		ast.Inspect(tree, func(n ast.Node) bool {
			if of, ok := n.(*ast.SelectorExpr); ok {
				if _, pkg := of.X.(*ast.Ident); pkg { // fmt.Printf, t.Errorf
					return false
				}
			}
			if id, ok := n.(*ast.Ident); ok {
				if allowed, is := raw[id.Name]; is {
					seen++
					if !slices.Contains(allowed, file) {
						t.Errorf("%s uses %s: the library logs with logf and its kin", file, id.Name)
					}
				}
			}
			return true
		})
	}
	require.NotZero(t, seen)
	plugins, err := filepath.Glob("plugin/*/*.go")
	require.NoError(t, err)
	for _, file := range plugins {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		fset := token.NewFileSet()
		tree, err := parser.ParseFile(fset, file, nil, 0)
		require.NoError(t, err)
		ast.Inspect(tree, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			f, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if pkg, ok := f.X.(*ast.Ident); !ok || pkg.Name != "tp" || raw[f.Sel.Name] == nil {
				return true
			}
			if len(call.Args) == 2 {
				if made, ok := call.Args[1].(*ast.CallExpr); ok {
					if by, ok := made.Fun.(*ast.SelectorExpr); ok && by.Sel.Name == "Text" {
						return true
					}
				}
			}
			t.Errorf("%s: a line that is not printable.Text", fset.Position(call.Pos()))
			return true
		})
	}
}

// rawFrame is a frame with any header.
func rawFrame(codec byte, header string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(1+len(header)))
	return append(append(append(b, codec), header...), 0, 0, 0, 0)
}

// forged is a line that never was.
const forged = "\n2026-01-01 00:00:00.000 [CRITICAL] \x1b[31mthe disk is full\u2028"

// Before anybody has authenticated, in a header, a name or an error: nothing ends the line
// that it stands in.
func TestLogLinesCannotBeForged(t *testing.T) {
	// In a bubble, so that all lines have come before the next test has the log.
	synctest.Test(t, func(t *testing.T) {
		lines := make(lineLog, 1000)
		level := LogLevel()
		SetLogger(lines)
		SetLogLevel(LevelTrace)
		t.Cleanup(func() { SetLogger(nil); SetLogLevel(level) })
		refuse := hookPlugin("refuse"+forged, "PreReadBody", func(interface{}) error {
			return errors.New(forged)
		})
		srv, cli := newTestPeer(t, nil, refuse), newTestPeer(t, nil)
		pullFn(srv, echo)
		for _, frame := range [][]byte{
			rawFrame('j', `{"id":`+forged), rawFrame('j', `{"`+forged+`":1`), rawFrame('j', forged),
			rawFrame('p', forged), rawFrame('\n', forged),
			rawFrame('j', `{"type":"`+strings.ReplaceAll(forged, "\n", `\n`)+`"}`),
			[]byte("GET /" + forged),
		} {
			conn, far := pipe.New(pipe.Options{})
			sess, err := newTestPeer(t, nil).ServeConn(conn) // each its own line
			require.NoError(t, err)
			_, err = far.Write(frame)
			require.NoError(t, err)
			<-sess.Done()
			_ = far.Close()
		}
		sess, _ := connect(t, cli, srv, pipe.Options{})
		require.NotNil(t, sess.Pull("/fn/call", 1, nil).Xerror)
		require.Nil(t, sess.Push("/fn/"+forged, 1))
		require.NoError(t, sess.ChangeId("id"+forged))
		require.NoError(t, sess.Close())
		require.NoError(t, srv.Shutdown(t.Context()))
		synctest.Wait()
		n := 0
		for ; len(lines) > 0; n++ {
			for _, r := range <-lines {
				require.True(t, unicode.IsPrint(r), "%q", r)
			}
		}
		require.GreaterOrEqual(t, n, 8)
	})
}

// What the program itself logs it logs as it likes.
func TestLinesOfTheProgramStayAsTheyAre(t *testing.T) {
	c := captureLog(t, LevelTrace)
	long := strings.Repeat("x", 2*maxLine)
	for _, f := range []func(string, ...interface{}){Tracef, Debugf, Infof, Noticef, Warnf, Errorf, Criticalf,
		Printf} {
		f("a table:\n\t%s\n\t%s", "\x1b[31mred", long)
		_, message, _ := strings.Cut(<-c.more, " ")
		require.Equal(t, "a table:\n\t\x1b[31mred\n\t"+long, message)
	}
}

// A panic's value is one line; its stack follows.
func TestStackBehindAPanicsLine(t *testing.T) {
	c := captureLog(t, LevelInfo)
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	pullFn(srv, func(_ PullCtx, args interface{}) (interface{}, Xerror) { panic(args) })
	sess, _ := connect(t, cli, srv, pipe.Options{})
	require.NotNil(t, sess.Pull("/fn/call", "value"+forged, nil).Xerror)
	line, stack, _ := strings.Cut(c.next(t, "handler of /fn/call"), "\n")
	require.Equal(t,
		`ERROR handler of /fn/call: panic: value\n2026-01-01 00:00:00.000 [CRITICAL] \x1b[31mthe disk is full\u2028`, line)
	require.Contains(t, stack, "goroutine ")
	require.Contains(t, stack, "\n\t")
	require.Contains(t, stack, "lines_test.go")
}

// What others can cause as often as they like is a line a second, with a count.
func TestFloodsAreOneLineASecond(t *testing.T) {
	const n = 200
	type side struct {
		srv, cli *Peer
		sess     *Session
	}
	hook := func(point string, f func()) []Plugin {
		return []Plugin{hookPlugin("hook", point, func(interface{}) error { f(); return errHook })}
	}
	dead := func(s *side, frame []byte) {
		conn, far := pipe.New(pipe.Options{})
		sess, err := s.srv.ServeConn(conn)
		if err != nil {
			panic(err)
		}
		_, _ = far.Write(frame)
		<-sess.Done()
		_ = far.Close()
	}
	for name, c := range map[string]struct {
		plugins []Plugin
		cause   func(s *side)
		lines   []string // one of each
	}{
		"push without a route": {nil, func(s *side) { s.sess.Push("/nowhere", 1) },
			[]string{"WARN push /nowhere"}},
		"push with a bad URI": {nil, func(s *side) { s.sess.Push("nowhere", 1) },
			[]string{"WARN push nowhere"}},
		"push with a bad body": {nil, func(s *side) { s.sess.Push("/push", packet.RawBody(`j{`)) },
			[]string{"WARN push /push from"}},
		"a hook's error": {hook("PreReadBody", func() {}), func(s *side) { s.sess.Push("/push", 1) },
			[]string{"WARN push /push from"}},
		"a hook's panic": {hook("PostReadHeader", func() { panic("no") }), func(s *side) {
			s.sess.Push("/push", 1)
		},
			[]string{"ERROR plugin hook, PostReadHeader: panic: no", "WARN push /push from"}},
		"a hook of replies": {hook("PreWriteReply", func() {}), func(s *side) {
			s.sess.Pull("/pull", 1,
				nil)
		}, []string{"WARN reply to /pull"}},
		"a hook after replies": {hook("PostWriteReply", func() {}), func(s *side) {
			s.sess.Pull("/pull", 1, nil)
		},
			[]string{"WARN reply to /pull"}},
		"a handler's panic": {nil, func(s *side) { s.sess.Pull("/panic", 1, nil) },
			[]string{"ERROR handler of /panic: panic: no"}},
		"a reply that does not encode": {nil, func(s *side) { s.sess.Pull("/chan", 1, nil) },
			[]string{"ERROR reply to /chan"}},
		"a bad header": {nil, func(s *side) { dead(s, rawFrame('j', "{")) }, []string{"WARN session"}},
		"not a frame": {nil, func(s *side) { dead(s, []byte("GET / HTTP/1.1\r\n\r\n")) },
			[]string{"WARN session"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := captureLog(t, LevelInfo)
				s := &side{srv: newTestPeer(t, nil, c.plugins...), cli: newTestPeer(t, nil)}
				HandlePush(s.srv.PushRouter, "/push", func(PushCtx, *int) {})
				HandlePull(s.srv.PullRouter, "/pull", func(PullCtx, *int) (int, Xerror) { return 1, nil })
				HandlePull(s.srv.PullRouter, "/panic", func(PullCtx, *int) (int, Xerror) { panic("no") })
				HandlePull(s.srv.PullRouter, "/chan", func(PullCtx, *int) (chan int, Xerror) {
					return make(chan int), nil
				})
				s.sess, _ = connect(t, s.cli, s.srv, pipe.Options{})
				expect := func(more string) {
					t.Helper()
					synctest.Wait()
					var got []string
					for len(log.more) > 0 {
						line, _, _ := strings.Cut(<-log.more, "\n")
						got = append(got, line)
					}
					require.Len(t, got, len(c.lines), "%q", got)
					for i, line := range got {
						require.Contains(t, line, c.lines[i])
						require.Equal(t, more != "", strings.HasSuffix(line, more) && strings.Contains(line,
							"more like it"), line)
					}
				}
				for range n {
					c.cause(s)
				}
				expect("")
				time.Sleep(time.Second)
				c.cause(s)
				expect(fmt.Sprintf(" (and %d more like it)", n-1))
				time.Sleep(time.Second)
				c.cause(s)
				expect("")
			})
		})
	}
}

// A flood of one line hides no other, nor does one level's threshold lose a count.
func TestFloodsHideNoOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := captureLog(t, LevelInfo)
		p := newTestPeer(t, nil)
		for range 10 {
			p.log.rarely(LevelWarn, "one", "one %d", slog.Int("n", 1))
			p.log.rarely(LevelWarn, "other", "other %d", slog.Int("n", 1))
			p.log.rarelyAbout("/a", LevelWarn, "one", "one %d", slog.Int("n", 2))
			p.log.rarely(LevelDebug, "quiet", "quiet")
		}
		require.Len(t, c.more, 3)
		require.Equal(t, "WARN one 1", <-c.more)
		require.Equal(t, "WARN other 1", <-c.more)
		require.Equal(t, "WARN one 2", <-c.more)
		newTestPeer(t, nil).log.rarely(LevelWarn, "one", "one %d", slog.Int("n", 3))
		require.Equal(t, "WARN one 3", <-c.more, "another peer's")
		SetLogLevel(slog.LevelDebug)
		p.log.rarely(LevelDebug, "quiet", "quiet")
		require.Equal(t, "DEBUG quiet", <-c.more)
	})
}
