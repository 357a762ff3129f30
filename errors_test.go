package tp

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
)

// SecretArgs has a name that is nobody else's business.
type SecretArgs struct {
	Count int64            `json:"count"`
	When  time.Time        `json:"when"`
	Names []string         `json:"names"`
	Inner struct{ A bool } `json:"inner"`
	Bytes []byte           `json:"bytes"`
	Ratio float64          `json:"ratio"`
	Small uint8            `json:"small"`
}

// What can become of a call: which side has made the error, whether it has run, and whether
// another attempt is worth while.
func TestWhoseErrorAndWhetherAgain(t *testing.T) {
	srv, cli := newTestPeer(t, &PeerConfig{MaxBodyBytes: 1 << 20}), newTestPeer(t, nil)
	HandlePull(srv.PullRouter, "/echo", func(_ PullCtx, args *string) (string, Xerror) { return *args, nil })
	HandlePull(srv.PullRouter, "/huge", func(PullCtx, *int) (string, Xerror) {
		return strings.Repeat("x", 2<<20), nil
	})
	HandlePull(srv.PullRouter, "/args", func(PullCtx, *SecretArgs) (string, Xerror) { return "", nil })
	HandlePush(srv.PushRouter, "/said", func(PushCtx, *int) {})
	fails := func(path string, x Xerror) {
		HandlePull(srv.PullRouter, path, func(PullCtx, *int) (int, Xerror) { return 0, x })
	}
	fails("/mine", NewXerror(1001, "mine"))
	fails("/later", WithRetryAfter(NewXerror(StatusOverloaded, "later"), 1500*time.Microsecond))
	fails("/overloaded", NewXerror(StatusOverloaded, "ran"))
	fails("/forwarded", WithNotRun(NewXerror(StatusServiceUnavailable, "not run there")))
	fails("/forwarded-later", WithDetails(WithRetryAfter(WithNotRun(NewXerror(StatusServiceUnavailable,
		"not run there")), time.Second), "details"))
	fails("/forwarded-401", WithNotRun(NewXerror(StatusUnauthorized, "not run there")))
	_, sess := connect(t, srv, cli, pipe.Options{})
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx          context.Context
		uri          string
		args, reply  interface{}
		settings     []PacketSetting
		code         int32
		text         string
		local, unrun bool
		again        bool
		after        time.Duration
	}{
		"no route": {uri: "/nope?secret", code: 404,
			text: `not found: nothing here takes pulls to "/nope"`, unrun: true},
		"a push's route": {uri: "/said", code: 404,
			text: `not found: nothing here takes pulls to "/said", it is a route for pushes`, unrun: true},
		"wrong argument": {uri: "/echo", args: 1, code: 400,
			text: "the body does not decode: json: the number at byte 1 is not a string", unrun: true},
		"wrong field": {uri: "/args", args: map[string]interface{}{"count": "1"}, code: 400,
			text: "the body does not decode: json: the string at byte 12 is not a whole number of 64 bits " +
				"of field count", unrun: true},
		"does not encode": {uri: "/echo", args: func() {}, code: 100,
			text:  "nothing was sent: codec json: encoding func(): json: unsupported type: func()",
			local: true, unrun: true},
		"too large here": {uri: "/echo", args: strings.Repeat("x", 17<<20), code: 413,
			text:  "nothing was sent: packet: too large: body length 17825795 exceeds limit 16777216",
			local: true, unrun: true},
		"too large there": {uri: "/echo", args: strings.Repeat("x", 2<<20), code: 413,
			text: "packet: too large: body length 2097155 exceeds limit 1048576", unrun: true},
		"header too large": {uri: "/" + strings.Repeat("x", 70000), code: 413,
			text: "" /* its length depends on the id and the time left */, local: true, unrun: true},
		"reply too large": {uri: "/huge", code: 413,
			text: "the reply was not sent: packet: too large: body length 2097155 exceeds limit 1048576"},
		"bad URI": {uri: "echo", code: 400, text: `the URI "echo" does not begin with a slash`,
			unrun: true},
		"no pointer": {uri: "/echo", args: "x", reply: "", code: 400,
			text:  "nothing was sent: the reply cannot be decoded into a string; expected a pointer, or nil",
			local: true, unrun: true},
		"a nil pointer": {uri: "/echo", args: "x", reply: (*string)(nil), code: 400,
			text: "nothing was sent: the reply cannot be decoded into a nil *string", local: true,
			unrun: true},
		"wrong reply": {uri: "/echo", args: "x", reply: new(int), code: 400,
			text: "this side cannot take the reply: codec json: decoding into *int: the string at byte 3 " +
				"is no value for the Go type int", local: true},
		"no codec here": {uri: "/echo", args: "x", settings: []PacketSetting{WithBodyCodec("none")},
			code: 100, local: true, unrun: true},
		"canceled": {ctx: canceled, uri: "/echo", args: "x", code: 103,
			text: "canceled, nothing was sent", local: true, unrun: true},
		"the handler's": {uri: "/mine", code: 1001, text: "mine"},
		"with a wait": {uri: "/later", code: 429, text: "later", again: true,
			after: 2 * time.Millisecond},
		"overloaded and ran": {uri: "/overloaded", code: 429, text: "ran"},
		"forwarded":          {uri: "/forwarded", code: 503, text: "not run there", unrun: true, again: true},
		"forwarded, wait": {uri: "/forwarded-later", code: 503, text: "not run there", unrun: true,
			again: true, after: time.Second},
		"forwarded, 401": {uri: "/forwarded-401", code: 401, text: "not run there", unrun: true},
	} {
		t.Run(name, func(t *testing.T) {
			if c.ctx == nil {
				c.ctx = t.Context()
			}
			if c.args == nil {
				c.args = 1
			}
			x := sess.PullContext(c.ctx, c.uri, c.args, c.reply, c.settings...).Xerror
			require.NotNil(t, x)
			require.Equal(t, c.code, x.Code(), "%v", x)
			if c.text != "" {
				require.Equal(t, c.text, x.Text())
			}
			for _, err := range []error{x, fmt.Errorf("wrapped: %w", x)} {
				require.Equal(t, c.local, Local(err))
				require.Equal(t, c.unrun, NotRun(err), "%v", x)
				after, again := Retryable(err)
				require.Equal(t, c.again, again)
				require.Equal(t, c.after, after)
			}
			if c.reply != "" { // GoPull is told the same
				done := sess.GoPullContext(c.ctx, c.uri, c.args, c.reply, nil, c.settings...)
				told := (<-done.Done()).Xerror
				require.Equal(t, x.Code(), told.Code())
				if c.text != "" {
					require.Equal(t, x.Text(), told.Text())
				}
			}
		})
	}
	require.False(t, Local(nil))
	require.True(t, Local(errors.New("x")))
	_, again := Retryable(errors.New("x"))
	require.False(t, again)
	require.PanicsWithValue(t, "tp: WithRetryAfter: 0s is not positive.", func() {
		WithRetryAfter(NewXerror(1, ""), 0)
	})
	require.NoError(t, cli.Close())
	x := sess.Pull("/echo", "x", nil).Xerror
	after, again := Retryable(x)
	require.True(t, again && NotRun(x) && Local(x) && after == 0, "%v", x)
}

// A handler that passes on what it was told itself does not promise anything.
func TestRetryAfterOfAnUpstream(t *testing.T) {
	up, mid, cli := newTestPeer(t, nil), newTestPeer(t, nil), newTestPeer(t, nil)
	HandlePull(up.PullRouter, "/later", func(PullCtx, *int) (int, Xerror) {
		return 0, WithRetryAfter(NewXerror(StatusOverloaded, "later"), time.Second)
	})
	_, toUp := connect(t, up, mid, pipe.Options{})
	HandlePull(mid.PullRouter, "/pass", func(PullCtx, *int) (int, Xerror) {
		return 0, toUp.Pull("/later", 1, nil).Xerror
	})
	HandlePull(mid.PullRouter, "/nope", func(PullCtx, *int) (int, Xerror) {
		return 0, toUp.Pull("/nope", 1, nil).Xerror
	})
	_, sess := connect(t, mid, cli, pipe.Options{})
	for _, uri := range []string{"/pass", "/nope"} {
		x := sess.Pull(uri, 1, nil).Xerror
		_, again := Retryable(x)
		require.False(t, again)
		require.False(t, NotRun(x))
		require.False(t, Local(x))
	}
}

// What a hook says before the handler is not run, and a drain is worth another attempt.
func TestRetryableRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, nil, hookPlugin("limit", "PreReadBody", func(interface{}) error {
			return WithRetryAfter(NewXerror(StatusOverloaded, "slowly"), time.Minute)
		}))
		release := make(chan struct{})
		HandlePull(srv.PullRouter, "/slow", func(PullCtx, *int) (int, Xerror) { <-release; return 0, nil })
		sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		x := sess.Pull("/slow", 1, nil).Xerror
		after, again := Retryable(x)
		require.True(t, again)
		require.Equal(t, time.Minute, after)
		require.True(t, NotRun(x))
		close(release)
	})
	t.Run("drain", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			srv := newTestPeer(t, nil)
			release := make(chan struct{})
			HandlePull(srv.PullRouter, "/slow", func(PullCtx, *int) (int, Xerror) {
				<-release
				return 0, nil
			})
			sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
			slow := sess.GoPull("/slow", 1, nil, nil)
			synctest.Wait()
			over := beginShutdown(srv)
			synctest.Wait()
			x := sess.Pull("/slow", 1, nil).Xerror
			require.Equal(t, StatusServiceUnavailable, x.Code())
			_, again := Retryable(x)
			require.True(t, again)
			close(release)
			require.Nil(t, (<-slow.Done()).Xerror)
			require.NoError(t, <-over)
		})
	})
}

// No 400 names a type of this side's, in any codec; what this side logs of a reply does.
func TestErrorsForOthersNameNoTypes(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	HandlePull(srv.PullRouter, "/args", func(PullCtx, *SecretArgs) (string, Xerror) { return "", nil })
	HandlePull(srv.PullRouter, "/list", func(PullCtx, *[]map[string]*SecretArgs) (string, Xerror) {
		return "", nil
	})
	_, sess := connect(t, srv, cli, pipe.Options{})
	for _, text := range []string{
		`"x"`, `[]`, `{"count":1.5}`, `{"count":"a"}`, `{"when":"soon"}`, `{"when":1}`, `{"names":{}}`,
		`{"names":[1]}`, `{"inner":[]}`,
		`{"inner":{"A":1}}`, `{"bytes":1}`, `{"bytes":"?"}`, `{"ratio":"1"}`, `{"small":256}`, `{"count":`,
		`{"count":1}}`, ``, `nul`,
	} {
		for _, uri := range []string{"/args", "/list"} {
			for _, codecId := range []string{"j", "p", "s"} {
				x := sess.Pull(uri, packet.RawBody(codecId+text), nil).Xerror
				if x == nil { // an empty list
					continue
				}
				require.Equal(t, StatusBadRequest, x.Code())
				for _, no := range []string{"Secret", "tp.", "[]", "map", "*", "struct", "int", "time.",
					"interface", "uint8"} {
					require.NotContains(t, strings.ReplaceAll(x.Text(), "pointer", ""), no, "%s %s", codecId,
						text)
				}
			}
		}
	}
}
