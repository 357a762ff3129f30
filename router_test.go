package tp

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
)

type Base struct{ PullCtx }

func (b *Base) Who() string { return b.Ip() } // promoted into Deep: not a route of Base's own

type Math struct {
	PullCtx
	Offset int
}

func (m *Math) Add(args *[2]int) (int, Xerror) { return args[0] + args[1] + m.Offset, nil }
func (m *Math) TestUnknown(args *struct{}) (string, Xerror) {
	m.Offset++ // of this call's copy
	return fmt.Sprint(m.Offset), nil
}

type baseCtl struct{ PullCtx }
type Deep struct {
	name string
	baseCtl
}

func (d *Deep) Name(args *string) (string, Xerror) { return d.name + *args + d.Path(), nil }

func TestRoutes(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	srv.PullRouter.Reg(&Math{Offset: 10})
	srv.PullRouter.Group("v1").Group("/x/").Reg(new(Math))
	srv.PullRouter.Reg(&Deep{name: "deep "})
	_, sess := connect(t, srv, cli, pipe.Options{})
	for _, c := range []struct {
		uri  string
		args interface{}
		want interface{}
		code int32
	}{
		{"/math/add", []int{1, 2}, 13., 200},
		{"/math/add?a=b", []int{1, 2}, 13., 200},
		{"/math/%61dd", []int{1, 2}, 13., 200},
		{"/v1/x/math/add", []int{1, 2}, 3., 200},
		{"/math/test_unknown", nil, "11", 200},
		{"/deep/name", "x ", "deep x /deep/name", 200},
		{"/math/offset", nil, nil, 404},
		{"/math/ip", nil, nil, 404},
		{"/Math/Add", nil, nil, 404},
		{"/math/add/", nil, nil, 404},
		{"/v1", nil, nil, 404},
		{"/", nil, nil, 404},
		{"", nil, nil, 400},
		{"math/add", nil, nil, 400},
		{"?a=b", nil, nil, 400},
		{"/math/%zz", nil, nil, 400},
		{"http://host/math/add", nil, nil, 400},
	} {
		for range 2 { // the second call finds nothing of the first's
			var got interface{}
			cmd := sess.Pull(c.uri, c.args, &got)
			if c.code != 200 {
				require.NotNil(t, cmd.Xerror, c.uri)
				require.Equal(t, c.code, cmd.Xerror.Code(), c.uri)
				continue
			}
			require.Nil(t, cmd.Xerror, c.uri)
			require.Equal(t, c.want, got, c.uri)
		}
	}
}

// What hooks see of a URI is what is routed: one that lets only /open pass cannot
// be led by the nose.
func TestHooksSeeTheCanonicalURI(t *testing.T) {
	var secret atomic.Int32
	var seen []string
	srv := newTestPeer(t, nil, hookPlugin("guard", "PostReadHeader", func(c interface{}) error {
		uri := c.(ReadCtx).Input().Header.Uri
		seen = append(seen, uri)
		if !strings.HasPrefix(uri, "/open/") {
			return errHook
		}
		return nil
	}))
	HandlePull(srv.PullRouter, "/open/a", func(ctx PullCtx, _ *string) (string, Xerror) {
		return ctx.Uri() + " " + ctx.Path(), nil
	})
	HandlePull(srv.PullRouter, "/secret", func(PullCtx, *string) (string, Xerror) {
		secret.Add(1)
		return "", nil
	})
	srv.PullRouter.Group("/secrets").SetUnknown(func(UnknownPullCtx, *[]byte) (interface{}, Xerror) {
		secret.Add(1)
		return "", nil
	})
	sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
	var got string
	require.Nil(t, sess.Pull("/open/%61?x=%20", "", &got).Xerror)
	require.Equal(t, "/open/a?x=%20 /open/a", got)
	require.Equal(t, []string{"/open/a?x=%20"}, seen)
	for _, uri := range []string{
		"/secret", "/open/../secret", "/open/%2e%2e/secret", "/open%2f..%2fsecret", "//open/secret",
		"/open//../secret", "/%73ecret", "/secrets/open/",
		"/secrets/../open/a", "/open/..%2f..%2fsecrets/a", "/secret?/open/", "/secret%3f/open/",
		"/open/\x00/../secret",
	} {
		require.NotNil(t, sess.Pull(uri, "", nil).Xerror, uri)
	}
	require.Zero(t, secret.Load())
}

type noCtx struct{}

func (*noCtx) A(*int) (int, Xerror) { return 0, nil }

type noMethods struct{ PullCtx }
type badIn struct{ PullCtx }

func (*badIn) A(int) (int, Xerror) { return 0, nil }

type noIn struct{ PullCtx }

func (*noIn) A() (int, Xerror) { return 0, nil }

type badOut struct{ PullCtx }

func (*badOut) A(*int) (int, error) { return 0, nil }

type oneOut struct{ PullCtx }

func (*oneOut) A(*int) Xerror { return nil }

type hidden struct{ A int }
type hiddenIn struct{ PullCtx }

func (*hiddenIn) A(*hidden) (int, Xerror) { return 0, nil }

type hiddenOut struct{ PullCtx }

func (*hiddenOut) A(*int) (*hidden, Xerror) { return nil, nil }

type pushOut struct{ PushCtx }

func (*pushOut) A(*int) int { return 0 }

type shadow struct{ PullCtx }

// Query is the program's own and does not fit.
func (*shadow) Query(*int) int { return 0 }

func TestRegistrationPanicsWithAWholeSentence(t *testing.T) {
	p := newTestPeer(t, nil)
	for _, c := range []struct {
		reg  func()
		want []string
	}{
		{func() { p.PullRouter.Reg(nil) }, []string{"Reg(<nil>)", "pointer to a struct", "tp.PullCtx"}},
		{func() { p.PullRouter.Reg(Math{}) }, []string{"Reg(tp.Math)", "pointer"}},
		{func() { p.PullRouter.Reg((*Math)(nil)) }, []string{"Reg(*tp.Math)", "non-nil"}},
		{func() { p.PullRouter.Reg(new(noCtx)) }, []string{"*tp.noCtx", "embed tp.PullCtx"}},
		{func() { p.PushRouter.Reg(new(Math)) }, []string{"*tp.Math", "embed tp.PushCtx"}},
		{func() { p.PullRouter.Reg(&struct{ PullCtx }{}) }, []string{"no name"}},
		{func() { p.PullRouter.Reg(new(noMethods)) }, []string{"*tp.noMethods", "no exported method"}},
		{func() { p.PullRouter.Reg(new(badIn)) }, []string{"*tp.badIn", "method A", "exactly one pointer",
			"func(*Args) (Reply, tp.Xerror)"}},
		{func() { p.PullRouter.Reg(new(noIn)) }, []string{"*tp.noIn", "method A", "exactly one pointer"}},
		{func() { p.PullRouter.Reg(new(badOut)) }, []string{"*tp.badOut", "method A", "tp.Xerror"}},
		{func() { p.PullRouter.Reg(new(oneOut)) }, []string{"*tp.oneOut", "method A", "tp.Xerror"}},
		{func() { p.PullRouter.Reg(new(hiddenIn)) }, []string{"*tp.hiddenIn", "method A", "*tp.hidden",
			"not exported"}},
		{func() { p.PullRouter.Reg(new(hiddenOut)) }, []string{"*tp.hiddenOut", "returns *tp.hidden"}},
		{func() { p.PushRouter.Reg(new(pushOut)) }, []string{"*tp.pushOut", "method A", "returns something",
			"func(*Args)."}},
		{func() { p.PullRouter.Reg(new(shadow)) }, []string{"*tp.shadow", "method Query"}},
		{func() { p.PullRouter.Reg(new(Math)); p.PullRouter.Reg(new(Math)) }, []string{"/math/add", "twice"}},
		{func() { p.PullRouter.SetUnknown(nil) }, []string{"SetUnknown", "nil"}},
		{func() { p.PushRouter.SetUnknown(nil) }, []string{"SetUnknown", "nil"}},
		{func() { p.PullRouter.Group("a?b") }, []string{`Group("a?b")`}},
		{func() { p.PushRouter.Group("a%20b") }, []string{`Group("a%20b")`}},
	} {
		func() {
			defer func() {
				v := recover()
				require.NotNil(t, v)
				msg := fmt.Sprint(v)
				require.True(t, strings.HasPrefix(msg, "tp: ") && strings.HasSuffix(msg, "."), msg)
				for _, w := range c.want {
					require.Contains(t, msg, w)
				}
			}()
			c.reg()
		}()
	}
	// A registration that panicked has left nothing behind but what was complete.
	require.NotNil(t, p.PullRouter.routes.table.Load().find("/math/add"))
	require.Nil(t, p.PullRouter.routes.table.Load().find("/bad_in/a"))
}

func TestUnknownHandlersOfGroups(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	unknown := func(name string) func(UnknownPullCtx, *[]byte) (interface{}, Xerror) {
		return func(ctx UnknownPullCtx, body *[]byte) (interface{}, Xerror) {
			var v interface{}
			codecName, err := ctx.Unmarshal(*body, &v, true)
			if err != nil {
				return nil, NewXerror(0, err.Error())
			}
			return fmt.Sprint(name, " ", ctx.Path(), " ", codecName, " ", v, " ",
				ctx.Input().Body == interface{}(&v)), nil
		}
	}
	a := srv.PullRouter.Group("a")
	ab := a.Group("b")
	a.Reg(&Fn{F: echo})
	_, sess := connect(t, srv, cli, pipe.Options{})
	pull := func(uri string) string {
		var got string
		cmd := sess.Pull(uri, 5, &got)
		if cmd.Xerror != nil {
			return cmd.Xerror.Error()
		}
		return got
	}
	require.Equal(t, `404 not found: nothing here takes pulls to "/a/b/c"`, pull("/a/b/c"))
	ab.SetUnknown(unknown("ab"))
	require.Equal(t, "ab /a/b/c json 5 true", pull("/a/b/c?x=1"))
	require.Equal(t, "ab /a/b json 5 true", pull("/a/b"))
	require.Equal(t, `404 not found: nothing here takes pulls to "/a/bc"`, pull("/a/bc"))
	require.Equal(t, `404 not found: nothing here takes pulls to "/a/c"`, pull("/a/c"))
	a.SetUnknown(unknown("a"))
	require.Equal(t, "a /a/bc json 5 true", pull("/a/bc"))
	require.Equal(t, "ab /a/b/c json 5 true", pull("/a/b/c"))
	srv.PullRouter.SetUnknown(unknown("root"))
	require.Equal(t, "root /x json 5 true", pull("/x"))
	require.Equal(t, "root / json 5 true", pull("/"))
	require.Equal(t, "a /a/c json 5 true", pull("/a/c"))
	a.SetUnknown(unknown("again"))
	require.Equal(t, "again /a/c json 5 true", pull("/a/c"))

	var got interface{}
	require.Nil(t, sess.Pull("/a/fn/call", 5, &got).Xerror)
	require.Equal(t, 5., got)

	var seen []*Handler
	p := newTestPeer(t, nil, hookPlugin("see", "PostReg", func(h interface{}) error {
		seen = append(seen, h.(*Handler))
		return nil
	}))
	p.PullRouter.Group("g").SetUnknown(unknown(""))
	p.PushRouter.SetUnknown(func(UnknownPushCtx, *[]byte) {})
	p.PullRouter.Reg(new(Math))
	require.Equal(t, "/g/*", seen[0].Name())
	require.True(t, seen[0].IsPull() && seen[0].IsUnknown() && seen[0].ArgType() == nil)
	require.Equal(t, "/*", seen[1].Name())
	require.True(t, seen[1].IsPush() && seen[1].IsUnknown() && seen[1].ReplyType() == nil)
	require.Equal(t, "/math/add", seen[2].Name())
	require.Equal(t, "[2]int", seen[2].ArgType().String())
	require.Equal(t, "int", seen[2].ReplyType().String())
}

func TestUnknownPush(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	type push struct {
		uri, codec string
		v          interface{}
		err        error
		raw        string
	}
	got := make(chan push, 1)
	srv.PushRouter.SetUnknown(func(ctx UnknownPushCtx, body *[]byte) {
		var v interface{}
		name, err := ctx.Unmarshal(*body, &v)
		if ctx.Input().Body != nil {
			err = fmt.Errorf("assigned without being asked")
		}
		got <- push{ctx.Uri(), name, v, err, string(*body)}
	})
	_, sess := connect(t, srv, cli, pipe.Options{})
	require.Nil(t, sess.Push("/any?tag=from home", "hello", WithBodyCodec("string")))
	p := <-got
	require.Equal(t, push{"/any?tag=from home", "string", "hello", nil, "shello"}, p)
	require.Nil(t, sess.Push("/any", []int{1}, WithGzip(9)))
	p = <-got
	require.NoError(t, p.err)
	require.Equal(t, []interface{}{1.}, p.v)
	require.Equal(t, "j\x1f\x8b", p.raw[:3], "the raw body is still compressed")
	require.Nil(t, sess.Push("/any", nil))
	require.Equal(t, push{uri: "/any"}, <-got)
}

func TestRoutesAddedWhileServing(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	pullFn(srv, echo)
	_, sess := connect(t, srv, cli, pipe.Options{})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 50 {
				prefix := fmt.Sprintf("g%d-%d", g, i)
				srv.PullRouter.Group(prefix).Reg(&Fn{F: echo})
				cmd := sess.Pull("/"+prefix+"/fn/call", i, nil)
				if cmd.Xerror != nil {
					t.Error(cmd.Xerror)
				}
			}
		})
	}
	wg.Wait()
}
