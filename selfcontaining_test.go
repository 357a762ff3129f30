package tp

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/henrylee2cn/teleport/internal/pipe"
)

// endless are values that contain themselves. Whatever follows one to its end overflows
// the stack, which no recover can help.
func endless() map[string]interface{} {
	m := map[string]interface{}{}
	m["self"] = m
	s := make([]interface{}, 1)
	s[0] = s
	var p interface{}
	p = &p
	r := &ring{Name: "r"}
	r.Next = r
	msg := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	msg.Fields["self"] = structpb.NewStructValue(msg)
	return map[string]interface{}{"map": m, "slice": s, "pointer": p, "ring": r, "message": msg}
}

type ring struct {
	Name string
	Next *ring
}

// panickingBody panics with a value when it is printed and when it is encoded.
type panickingBody struct{ value interface{} }

func (b panickingBody) String() string               { panic(b.value) }
func (b panickingBody) MarshalJSON() ([]byte, error) { panic(b.value) }

func TestPanicWithAValueThatContainsItself(t *testing.T) {
	c := captureLog(t, LevelInfo)
	for name, v := range endless() {
		t.Run(name, func(t *testing.T) {
			plugin := hookPlugin("hook", "PreReadBody", func(ctx interface{}) error {
				if ctx.(ReadCtx).Input().Header.Uri == "/hook" {
					panic(v)
				}
				return nil
			})
			srv, cli := newTestPeer(t, nil, plugin), newTestPeer(t, &PeerConfig{PrintBody: true})
			HandlePull(srv.PullRouter, "/handler", func(PullCtx, *int) (int, Xerror) { panic(v) })
			HandlePull(srv.PullRouter, "/hook", func(PullCtx, *int) (int, Xerror) { return 0, nil })
			HandlePull(srv.PullRouter, "/body", func(PullCtx, *int) (interface{}, Xerror) {
				return panickingBody{v}, nil
			})
			sess, _ := connect(t, cli, srv, pipe.Options{})
			require.EqualError(t, sess.Pull("/handler", 1, nil).Xerror, "500 internal server error")
			require.LessOrEqual(t, len(strings.SplitN(c.next(t, "handler of /handler: panic: "), "\n", 2)[0]),
				maxPrinted+100)
			require.EqualError(t, sess.Pull("/hook", 1, nil).Xerror, "424 failed plugin")
			c.next(t, "plugin hook, PreReadBody: panic: ")
			require.EqualError(t, sess.Pull("/body", 1, nil).Xerror, "500 the reply could not be encoded")
			c.next(t, "reply to /body")
			require.NotNil(t, sess.Push("/body", panickingBody{v}))
		})
	}
}

// With PrintBody the log shows how such a body begins. (It cannot be sent.)
func TestPrintBodyOfWhatContainsItself(t *testing.T) {
	for name, v := range endless() {
		for _, v := range []interface{}{v, &v, struct{ V interface{} }{v}, panickingBody{v}} {
			got := printBody(v)
			require.NotEmpty(t, got, name)
			require.LessOrEqual(t, len(got), maxPrinted)
		}
	}
	deep := interface{}(1)
	for range 100_000 {
		deep = []interface{}{deep}
	}
	require.NotEmpty(t, printBody(deep))
	require.Equal(t, `{"a<b":[1,null,"é"]}`, printBody(map[string]interface{}{"a<b": []interface{}{1, nil,
		"é"}}), "as it is sent")
	require.Equal(t, "(printing panicked)", printBody((*string)(nil)))
}
