package tp

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
)

// secret stands in queries, in metadata and in bodies.
const secret = "hunter2"

// The log has no queries, at no level, and without PrintBody no bodies.
func TestQueriesAndMetadataAreNotLogged(t *testing.T) {
	lines := make(lineLog, 1000)
	level := LogLevel()
	SetLogger(lines)
	SetLogLevel(LevelTrace)
	t.Cleanup(func() { SetLogger(nil); SetLogLevel(level) })
	srv, cli := newTestPeer(t, &PeerConfig{SlowCometDuration: 1}),
		newTestPeer(t, &PeerConfig{SlowCometDuration: 1}, hookPlugin("late", "PostWritePush",
			func(interface{}) error { return errHook }))
	pullFn(srv, echo)
	pushFn(srv, func(PushCtx, interface{}) { panic("no") })
	HandlePull(srv.PullRouter, "/chan", func(PullCtx, *string) (chan int, Xerror) {
		return make(chan int), nil
	})
	sess, _ := connect(t, cli, srv, pipe.Options{})
	for _, uri := range []string{"/fn/call", "/fn_push/call", "/chan", "/nowhere", "nowhere", "/a//b", "/a\n",
		"/a%2fb", "/a%zz", "/a\xff"} {
		for _, query := range []string{"?token=" + secret, "%3Ftoken=" + secret, "%3ftoken=" + secret} {
			x := sess.Pull(uri+query, "x", nil, WithMeta("token", secret)).Xerror
			if x != nil {
				require.NotContains(t, x.Error(), secret)
			}
			_ = sess.Push(uri+query, "x", WithMeta("token", secret))
			_ = sess.Push(uri+query, "x", WithMeta("token", secret+"\xff"))
		}
	}
	require.NoError(t, sess.Close())
	require.NoError(t, srv.Shutdown(t.Context()))
	requireNoSecret(t, lines, 80)
}

// requireNoSecret looks at what has been logged, at least n lines.
func requireNoSecret(t *testing.T, lines lineLog, n int) {
	t.Helper()
	// The line of a session's end comes a moment after the end.
	require.Eventually(t, func() bool { return len(lines) > n }, time.Minute, time.Millisecond)
	SetLogger(nil)
	for len(lines) > 0 {
		line := <-lines
		require.NotContains(t, line, secret)
	}
}

// Nor has it pieces of a header that does not decode.
func TestBrokenHeadersAreNotLogged(t *testing.T) {
	lines := make(lineLog, 1000)
	level := LogLevel()
	SetLogger(lines)
	SetLogLevel(LevelTrace)
	t.Cleanup(func() { SetLogger(nil); SetLogLevel(level) })
	for _, header := range []string{
		`{"uri":"/a?token=hunter2","type":"hunter2"}`, `{"uri":"/a?token=hunter2`,
		`{"uri":"/a?token=hunter2",hunter2}`, `["hunter2"]`, `"hunter2"`,
		`hunter2`, `{"id":["hunter2"]}`, `{"meta":{"token":"hunter2","a":1}}`, `{"meta":"hunter2"}`,
	} {
		conn, far := pipe.New(pipe.Options{})
		sess, err := newTestPeer(t, nil).ServeConn(conn)
		require.NoError(t, err)
		_, err = far.Write(rawFrame('j', header))
		require.NoError(t, err)
		<-sess.Done()
		_ = far.Close()
	}
	requireNoSecret(t, lines, 8)
}

type ageOnly struct{ Age int }

// A handler that passes on the error of a pull of its own tells its caller neither what
// the backend has replied nor where it is.
func TestErrorsOfABackendAreNotForItsCallersCaller(t *testing.T) {
	back, gate, cli := newTestPeer(t, nil), newTestPeer(t, &PeerConfig{MaxBodyBytes: 100}),
		newTestPeer(t, nil)
	HandlePull(back.PullRouter, "/user", func(PullCtx, *int) (map[string]string, Xerror) {
		return map[string]string{"Password": secret, "Age": secret}, nil
	})
	HandlePull(back.PullRouter, "/raw", func(ctx PullCtx, _ *int) (packet.RawBody, Xerror) {
		return packet.RawBody("\x07" + secret), nil
	})
	HandlePull(back.PullRouter, "/long", func(ctx PullCtx, _ *int) (string, Xerror) {
		return strings.Repeat(secret, 100), nil
	})
	HandlePull(back.PullRouter, "/own", func(PullCtx, *int) (int, Xerror) {
		return 0, NewXerror(418, "a teapot")
	})
	HandlePull(back.PullRouter, "/ends", func(ctx PullCtx, _ *int) (int, Xerror) {
		_ = ctx.Session().Close()
		return 0, nil
	})
	up, _ := connect(t, gate, back, pipe.Options{})
	pass := func(uri string, how func(Xerror) Xerror) { // the handler's own error, and within another
		HandlePull(gate.PullRouter, uri, func(ctx PullCtx, n *int) (int, Xerror) {
			var user ageOnly
			path := strings.TrimSuffix(ctx.Path(), "/details")
			return user.Age, how(up.PullContext(ctx.Context(), path, n, &user).Xerror)
		})
	}
	for _, uri := range []string{"/user", "/raw", "/long", "/own", "/ends"} {
		pass(uri, func(x Xerror) Xerror { return x })
		pass(uri+"/details", func(x Xerror) Xerror { return WithDetails(x, 1) })
	}
	sess, _ := connect(t, cli, gate, pipe.Options{})
	for _, c := range []struct{ uri, want string }{
		{"/user", "502 bad gateway: bad request"},
		{"/raw", "502 bad gateway: unsupported codec"},
		{"/long", "502 bad gateway: too large"},
		{"/own", "418 a teapot"},
		{"/ends", "502 connection closed"}, // and for the second
	} {
		for _, how := range []string{"", "/details"} {
			require.EqualError(t, sess.Pull(c.uri+how, 1, nil).Xerror, c.want)
		}
	}
}

// A handler's own errors are its own, of whatever code and text.
func TestOwnErrorsAreSentAsTheyAre(t *testing.T) {
	var x Xerror
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	pullFn(srv, func(PullCtx, interface{}) (interface{}, Xerror) { return nil, x })
	sess, _ := connect(t, cli, srv, pipe.Options{})
	for _, want := range []string{"400 age: not a number", "413 at most 5", "502 down", "0 none", "-1 less",
		"7"} {
		code, text, _ := strings.Cut(want, " ")
		x = NewXerror(map[string]int32{"400": 400, "413": 413, "502": 502, "0": 0, "-1": -1, "7": 7}[code],
			text)
		require.EqualError(t, sess.Pull("/fn/call", 1, nil).Xerror, want)
		inner := replyXerror(errHook)
		x = &xerror{code: x.Code(), text: x.Text(), cause: inner} // which has words of its own
		require.EqualError(t, sess.Pull("/fn/call", 1, nil).Xerror, want)
	}
}
