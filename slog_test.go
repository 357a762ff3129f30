package tp

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/errno"
	"github.com/henrylee2cn/teleport/internal/pipe"
)

// slogLines is what a slog.JSONHandler makes of the log.
type slogLines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *slogLines) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(b)
}

// take returns the lines with the message.
func (s *slogLines) take(t *testing.T, message string) (found []map[string]interface{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for dec := json.NewDecoder(bytes.NewReader(s.buf.Bytes())); dec.More(); {
		var line map[string]interface{}
		require.NoError(t, dec.Decode(&line))
		if line["msg"] == message {
			delete(line, "time")
			found = append(found, line)
		}
	}
	return found
}

// only keeps the lines about a session: what other tests have left may log too.
func only(lines []map[string]interface{}, sessions ...string) (kept []map[string]interface{}) {
	for _, line := range lines {
		if id, _ := line["session"].(string); slices.Contains(sessions, id) {
			kept = append(kept, line)
		}
	}
	return kept
}

func captureSlog(t *testing.T, level slog.Level) *slogLines {
	s := new(slogLines)
	old := LogLevel()
	SetLogger(slog.NewJSONHandler(s, &slog.HandlerOptions{Level: LevelTrace}))
	SetLogLevel(level)
	t.Cleanup(func() { SetLogLevel(old); SetLogger(nil) })
	return s
}

// With a slog.Handler a line is a constant message with attributes.
func TestLinesHaveAttributes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := captureSlog(t, LevelDebug)
		srv, cli := newTestPeer(t, &PeerConfig{PrintBody: true}), newTestPeer(t, nil)
		HandlePull(srv.PullRouter, "/echo", func(_ PullCtx, args *string) (string, Xerror) {
			time.Sleep(time.Second)
			if *args == "panic" {
				panic("at the disco")
			}
			return *args, nil
		})
		HandlePush(srv.PushRouter, "/said", func(PushCtx, *string) {})
		sess, there := connect(t, cli, srv, pipe.Options{})
		require.NoError(t, there.ChangeId("ann"))
		require.Nil(t, sess.Pull("/echo?token=secret", "hello\n", nil).Xerror)
		synctest.Wait() // the handler's line comes after its reply
		require.Nil(t, sess.Push("/said", "x"))
		require.NotNil(t, sess.Pull("/nope", "x", nil).Xerror)
		require.NotNil(t, sess.Pull("/echo", "panic", nil).Xerror)
		require.Nil(t, sess.Push("/nobody", "x"))
		synctest.Wait()
		remote := there.RemoteIp()
		require.Equal(t, map[string]interface{}{
			"level": "INFO", "msg": "pull handled", "kind": "pull", "uri": "/echo", "session": "ann",
			"remote":   remote,
			"duration": float64(time.Second), "code": 200.0, "status": "", "received": 36.0,
			"received_body": `hello\n`, "sent": 19.0, "sent_body": `hello\n`,
		}, only(log.take(t, "pull handled"), "ann")[0])
		require.Equal(t, map[string]interface{}{
			"level": "DEBUG", "msg": "pull made", "kind": "pull", "uri": "/nope", "session": sess.Id(),
			"remote": sess.RemoteIp(), "duration": 0.0,
			"code": 404.0, "status": `not found: nothing here takes pulls to "/nope"`, "received": 59.0,
			"sent": 17.0,
		}, only(log.take(t, "pull made"), sess.Id())[1])
		require.Equal(t, "/said", only(log.take(t, "push handled"), "ann")[0]["uri"])
		require.Equal(t, "/said", only(log.take(t, "push sent"), sess.Id())[0]["uri"])
		dropped := only(log.take(t, "push dropped"), "ann")[0]
		require.Equal(t, "ann", dropped["session"])
		require.Equal(t, 404.0, dropped["code"])
		panicked := log.take(t, "panic")[0]
		require.Equal(t, "handler of", panicked["where"])
		require.Equal(t, "/echo", panicked["of"])
		require.Equal(t, "at the disco", panicked["panic"])
		require.Contains(t, panicked["stack"], "slog_test.go")
		require.NoError(t, sess.Close())
		synctest.Wait()
		ended := only(log.take(t, "session ended"), "ann", sess.Id())
		require.Len(t, ended, 2)
		for _, line := range ended {
			if line["session"] == "ann" {
				require.Equal(t, map[string]interface{}{"level": "DEBUG", "msg": "session ended",
					"session": "ann", "remote": remote, "error": "the other side has closed the connection"},
					line)
			}
		}
		log.mu.Lock()
		defer log.mu.Unlock()
		require.NotContains(t, log.buf.String(), "token=secret")
	})
}

// Whatever a limit refuses is told at LevelWarn, once a second with a count.
func TestRefusalsByALimitAreLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := captureSlog(t, LevelWarn)
		srv, cli := newTestPeer(t, &PeerConfig{MaxSessionHandlers: 1}), newTestPeer(t, nil)
		release := make(chan struct{})
		HandlePull(srv.PullRouter, "/slow", func(PullCtx, *int) (int, Xerror) { <-release; return 0, nil })
		sess, _ := connect(t, cli, srv, pipe.Options{})
		first := sess.GoPull("/slow", 1, nil, nil)
		synctest.Wait()
		for range 5 {
			require.Equal(t, StatusOverloaded, sess.Pull("/slow", 1, nil).Xerror.Code())
		}
		require.Len(t, log.take(t, "refused for a limit"), 1)
		time.Sleep(time.Second)
		require.Equal(t, StatusOverloaded, sess.Pull("/slow", 1, nil).Xerror.Code())
		lines := log.take(t, "refused for a limit")
		require.Len(t, lines, 2)
		require.Equal(t, 4.0, lines[1]["left_out"])
		require.Equal(t, "WARN", lines[1]["level"])
		require.Equal(t, "/slow", lines[1]["uri"])
		require.Equal(t, 429.0, lines[1]["code"])
		close(release)
		<-first.Done()
	})
}

// A Logger that is no slog.Handler gets the line for people.
func TestLoggersOfTwoMethodsGetTheLine(t *testing.T) {
	log := captureLog(t, LevelWarn)
	srv := newTestPeer(t, nil)
	_, sess := connect(t, srv, newTestPeer(t, nil), pipe.Options{})
	require.Nil(t, sess.Push("/nobody", 1))
	log.next(t, "WARN push /nobody from ", " dropped: 404 not found")
}

// Each line has as many attributes as its format has verbs, and a message that is constant.
func TestLinesFitTheirFormats(t *testing.T) {
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	seen := 0
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") || file == "lines.go" {
			continue
		}
		set := token.NewFileSet()
		tree, err := parser.ParseFile(set, file, nil, 0)
		require.NoError(t, err)
		ast.Inspect(tree, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			first := map[string]int{"logf": 1, "rarely": 1, "rarelyAbout": 2}[lastName(call.Fun)]
			if first == 0 {
				return true
			}
			seen++
			at := set.Position(call.Pos())
			message, format := text(call.Args[first]), text(call.Args[first+1])
			require.NotEmpty(t, message, at)
			require.NotContains(t, message, "%", at)
			attrs := len(call.Args) - first - 2
			if call.Ellipsis.IsValid() {
				attrs = 2 // a session's, or more
			}
			require.GreaterOrEqual(t, attrs, strings.Count(format, "%")-1, at)
			if !call.Ellipsis.IsValid() {
				require.GreaterOrEqual(t, attrs, strings.Count(format, "%"), at)
			}
			return true
		})
	}
	require.Greater(t, seen, 20)
}

func lastName(x ast.Expr) string {
	switch x := x.(type) {
	case *ast.Ident:
		return x.Name
	case *ast.SelectorExpr:
		return x.Sel.Name
	}
	return ""
}

func text(x ast.Expr) string {
	lit, ok := x.(*ast.BasicLit)
	if !ok {
		return ""
	}
	s, _ := strconv.Unquote(lit.Value)
	return s
}

// Why a session has ended is said in words.
func TestEndsInPlainWords(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  PeerConfig
		do   func(sess *Session, far *rawPeer)
		want string
	}{
		"nothing is read": {PeerConfig{DefaultWriteTimeout: 3 * time.Second}, func(sess *Session,
			_ *rawPeer) {
			_ = sess.Push("/x", strings.Repeat("x", 1<<20))
		}, "the other side has not read for 3s"},
		"no room": {PeerConfig{DefaultWriteTimeout: 3 * time.Second, MaxSessionOutput: 100},
			func(sess *Session, _ *rawPeer) {
				for range 3 {
					go sess.Push("/x", strings.Repeat("x", 1<<20))
				}
			}, "the other side has not read for 3s"},
		"nothing is said": {PeerConfig{DefaultReadTimeout: time.Minute}, func(*Session, *rawPeer) {},
			"the other side has said nothing for 1m0s, the read timeout"},
		"half a packet": {PeerConfig{}, func(_ *Session, far *rawPeer) {
			_, _ = far.sock.Conn().Write([]byte{0, 0, 0, 9, 'p'})
		}, "a packet was not complete after 30s"},
		"the end of half": {PeerConfig{}, func(_ *Session, far *rawPeer) {
			_, _ = far.sock.Conn().Write([]byte{0, 0, 0, 9, 'p'})
			_ = far.sock.Conn().Close()
		}, "the other side has closed the connection in the middle of a packet"},
		"the end": {PeerConfig{}, func(_ *Session, far *rawPeer) { _ = far.sock.Close() },
			"the other side has closed the connection"},
		"own end": {PeerConfig{}, func(sess *Session, _ *rawPeer) { _ = sess.Close() },
			"closed by this side"},
		"peer end": {PeerConfig{}, func(sess *Session, _ *rawPeer) { _ = sess.Peer().Close() },
			"closed by this side"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := captureSlog(t, LevelDebug)
				a, b := pipe.New(pipe.Options{Buffer: 100})
				p := withoutCredit(newTestPeer(t, &c.cfg))
				sess, err := p.ServeConn(a)
				require.NoError(t, err)
				c.do(sess, newRawPeer(t, b))
				<-sess.Done()
				synctest.Wait()
				lines := only(log.take(t, "session ended"), sess.Id())
				require.Len(t, lines, 1)
				require.Contains(t, lines[0]["error"], c.want)
			})
		})
	}
	cn := new(conn)
	for _, err := range []error{errno.Reset, errno.Pipe, errno.TimedOut} {
		require.Contains(t, plain(&packetError{err}, cn.sock).Error(), "the other side")
		require.ErrorIs(t, plain(&packetError{err}, cn.sock), err)
	}
	require.Equal(t, "x", plain(errors.New("x"), cn.sock).Error())
}

type packetError struct{ error }

func (e *packetError) Unwrap() error { return e.error }

// Listen's error is the caller's to log.
func TestListenDoesNotLogItsError(t *testing.T) {
	log := captureSlog(t, LevelDebug)
	require.Error(t, newTestPeer(t, nil).Listen())
	log.mu.Lock()
	defer log.mu.Unlock()
	require.NotContains(t, log.buf.String(), "ListenAddrs")
}
