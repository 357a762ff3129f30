package tp

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
)

type point struct{ X, Y int }

// A function is served at the path of its group and its own, however the slashes
// are written, and at no other.
func TestHandlePaths(t *testing.T) {
	for _, c := range []struct{ group, path, served string }{
		{"", "/add", "/add"},
		{"", "add", "/add"},
		{"", "/math/add", "/math/add"},
		{"", "/add/", "/add"},
		{"", "//math//add", "/math/add"},
		{"", "/math/../add", "/add"},
		{"v1", "/add", "/v1/add"},
		{"v1", "add", "/v1/add"},
		{"/v1", "add", "/v1/add"},
		{"/v1/", "/math/add", "/v1/math/add"},
		{"v1/x", "add", "/v1/x/add"},
		{"", "/Add", "/Add"},
		{"", "/ä b", "/ä b"},
	} {
		t.Run(c.group+"+"+c.path, func(t *testing.T) {
			srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
			pulls, pushes := srv.PullRouter, srv.PushRouter
			if c.group != "" {
				pulls, pushes = pulls.Group(c.group), pushes.Group(c.group)
			}
			HandlePull(pulls, c.path, func(ctx PullCtx, args *[2]int) (string, Xerror) {
				return fmt.Sprint(ctx.Path(), ctx.Query().Get("q"), args[0]+args[1]), nil
			})
			got := make(chan string, 1)
			HandlePush(pushes, c.path, func(ctx PushCtx, args *int) { got <- fmt.Sprint(ctx.Path(), *args) })
			_, sess := connect(t, srv, cli, pipe.Options{})
			var reply string
			cmd := sess.Pull(c.served+"?q=+", []int{1, 2}, &reply)
			require.Nil(t, cmd.Xerror, "%v", cmd.Xerror)
			require.Equal(t, c.served+" 3", reply)
			require.Nil(t, sess.Push(c.served, 7))
			require.Equal(t, c.served+"7", <-got)
			cmd = sess.Pull(c.served+"/more", nil, nil)
			require.Equal(t, StatusNotFound, cmd.Xerror.Code())
			if c.group != "" {
				require.Equal(t, StatusNotFound, sess.Pull("/add", nil, nil).Xerror.Code())
			}
		})
	}
}

// The hooks of the peer, of the groups from the outermost in, and of the route
// run in that order, at each point, and only for what is in the group.
func TestHandlePluginsRunInOrder(t *testing.T) {
	var seen []string
	note := func(name string) Plugin {
		on := map[string]func(interface{}) error{}
		for _, point := range []string{"PreReadBody", "PostReadBody"} {
			on[point] = func(interface{}) error { seen = append(seen, name+" "+point); return nil }
		}
		return &routePlugin{name, on}
	}
	srv, cli := newTestPeer(t, nil, note("peer")), newTestPeer(t, nil)
	pulls := srv.PullRouter.Group("a", note("a")).Group("b", note("b"))
	HandlePull(pulls, "/f", func(PullCtx, *int) (int, Xerror) { seen = append(seen, "pull"); return 1, nil },
		note("own"), note("other"))
	HandlePull(srv.PullRouter, "/f", func(PullCtx, *int) (int, Xerror) {
		seen = append(seen, "root")
		return 1, nil
	})
	pushed := make(chan struct{})
	HandlePush(srv.PushRouter.Group("a", note("a")), "/f", func(PushCtx, *int) {
		seen = append(seen,
			"push")
		close(pushed)
	}, note("own"))
	_, sess := connect(t, srv, cli, pipe.Options{})

	require.Nil(t, sess.Pull("/a/b/f", 1, nil).Xerror)
	require.Equal(t, []string{
		"peer PreReadBody", "a PreReadBody", "b PreReadBody", "own PreReadBody", "other PreReadBody",
		"peer PostReadBody", "a PostReadBody", "b PostReadBody", "own PostReadBody", "other PostReadBody",
		"pull",
	}, seen)
	seen = nil
	require.Nil(t, sess.Pull("/f", 1, nil).Xerror)
	require.Equal(t, []string{"peer PreReadBody", "peer PostReadBody", "root"}, seen)
	seen = nil
	require.Nil(t, sess.Push("/a/f", 1))
	<-pushed
	require.Equal(t, []string{
		"peer PreReadBody", "a PreReadBody", "own PreReadBody",
		"peer PostReadBody", "a PostReadBody", "own PostReadBody", "push",
	}, seen)
}

// Replies of every kind arrive, and what the caller gave for the reply is as the
// codec leaves it.
func TestHandleReplyTypes(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	r := srv.PullRouter
	HandlePull(r, "/pointer", func(_ PullCtx, a *point) (*point, Xerror) { return &point{a.Y, a.X}, nil })
	HandlePull(r, "/args", func(_ PullCtx, a *point) (*point, Xerror) { return a, nil })
	HandlePull(r, "/value", func(_ PullCtx, a *point) (point, Xerror) { return point{a.Y, a.X}, nil })
	HandlePull(r, "/string", func(_ PullCtx, a *point) (string, Xerror) { return fmt.Sprint(*a), nil })
	HandlePull(r, "/slice", func(_ PullCtx, a *point) ([]int, Xerror) { return []int{a.X, a.Y}, nil })
	HandlePull(r, "/map", func(_ PullCtx, a *point) (map[string]int, Xerror) {
		return map[string]int{"x": a.X}, nil
	})
	HandlePull(r, "/nil-pointer", func(PullCtx, *point) (*point, Xerror) { return nil, nil })
	HandlePull(r, "/nil-interface", func(PullCtx, *point) (interface{}, Xerror) { return nil, nil })
	HandlePull(r, "/interface", func(_ PullCtx, a *interface{}) (interface{}, Xerror) { return *a, nil })
	_, sess := connect(t, srv, cli, pipe.Options{})
	for _, c := range []struct {
		uri  string
		want interface{}
	}{
		{"/pointer", map[string]interface{}{"X": 2., "Y": 1.}},
		{"/args", map[string]interface{}{"X": 1., "Y": 2.}},
		{"/value", map[string]interface{}{"X": 2., "Y": 1.}},
		{"/string", "{1 2}"},
		{"/slice", []interface{}{1., 2.}},
		{"/map", map[string]interface{}{"x": 1.}},
		{"/nil-pointer", nil},
		{"/nil-interface", "untouched"}, // there is no body
		{"/interface", map[string]interface{}{"X": 1., "Y": 2.}},
	} {
		for range 2 { // each call has arguments of its own
			var got interface{} = "untouched"
			cmd := sess.Pull(c.uri, point{1, 2}, &got)
			require.Nil(t, cmd.Xerror, "%s: %v", c.uri, cmd.Xerror)
			require.Equal(t, c.want, got, c.uri)
		}
	}
	// The arguments of the next call are zero again.
	var got string
	require.Nil(t, sess.Pull("/string", nil, &got).Xerror)
	require.Equal(t, "{0 0}", got)
	cmd := sess.Pull("/string", "no point", &got)
	require.Equal(t, StatusBadRequest, cmd.Xerror.Code())
}

// The function's Xerror reaches the caller without the reply, and of a panic only
// the status does.
func TestHandleFailures(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	HandlePull(srv.PullRouter, "/fail", func(_ PullCtx, how *string) (*point, Xerror) {
		switch *how {
		case "xerror":
			return &point{1, 2}, NewXerror(1234, "as it is")
		case "panic":
			panic("a secret")
		case "nil":
			var p *point
			return &point{p.X, 0}, nil
		}
		return &point{3, 4}, nil
	})
	pushed := make(chan string, 2)
	HandlePush(srv.PushRouter, "/fail", func(_ PushCtx, how *string) {
		pushed <- *how
		if *how == "panic" {
			panic("a secret")
		}
	})
	_, sess := connect(t, srv, cli, pipe.Options{})
	for _, c := range []struct{ how, want string }{
		{"xerror", "1234 as it is"},
		{"panic", "500 internal server error"},
		{"nil", "500 internal server error"},
	} {
		reply := point{8, 9}
		cmd := sess.Pull("/fail", c.how, &reply)
		require.NotNil(t, cmd.Xerror, c.how)
		require.Equal(t, c.want, cmd.Xerror.Error())
		require.Equal(t, point{8, 9}, reply)
		require.Zero(t, cmd.Input().BodyLength)
		require.Nil(t, sess.Pull("/fail", "not", &reply).Xerror)
		require.Equal(t, point{3, 4}, reply)
	}
	for _, how := range []string{"panic", "not"} {
		require.Nil(t, sess.Push("/fail", how))
		require.Equal(t, how, <-pushed)
	}
}

func TestHandlePanicsWithAWholeSentence(t *testing.T) {
	p := newTestPeer(t, nil, hookPlugin("picky", "PostReg", func(h interface{}) error {
		if h.(*Handler).Name() == "/refused" {
			return fmt.Errorf("not this one")
		}
		return nil
	}))
	p.PullRouter.Reg(new(Math))
	pull := func(PullCtx, *int) (int, Xerror) { return 0, nil }
	push := func(PushCtx, *int) {}
	HandlePull(p.PullRouter, "/f", pull)
	HandlePush(p.PushRouter, "/f", push) // another tree
	twice := hookPlugin("twice", "", nil)
	for _, c := range []struct {
		name string
		reg  func()
		want []string
	}{
		{"as a controller", func() { HandlePull(p.PullRouter, "/math/add", pull) }, []string{"/math/add",
			"twice"}},
		{"as a controller in a group", func() { HandlePull(p.PullRouter.Group("math"), "add", pull) },
			[]string{"/math/add", "twice"}},
		{"as a function", func() { HandlePull(p.PullRouter, "/f", pull) }, []string{"the route /f", "twice"}},
		{"as a function's", func() { HandlePush(p.PushRouter, "f/", push) }, []string{"the route /f",
			"twice"}},
		{"controller after function", func() {
			HandlePull(p.PullRouter, "/g/math/add", pull)
			p.PullRouter.Group("g").Reg(new(Math))
		}, []string{"/g/math/add", "twice"}},
		{"empty", func() { HandlePull(p.PullRouter, "", pull) }, []string{`HandlePull("")`, "no name"}},
		{"empty in a group", func() { HandlePull(p.PullRouter.Group("g"), "", pull) },
			[]string{`HandlePull("")`, "no name"}},
		{"slash", func() { HandlePush(p.PushRouter, "/", push) }, []string{`HandlePush("/")`, "no name"}},
		{"slashes", func() { HandlePush(p.PushRouter.Group("g"), "//", push) }, []string{`HandlePush("//")`,
			"no name"}},
		{"query", func() { HandlePull(p.PullRouter, "/a?b", pull) }, []string{`HandlePull("/a?b")`, "no ?"}},
		{"escaped", func() { HandlePush(p.PushRouter, "/a%20b", push) }, []string{`HandlePush("/a%20b")`,
			"no %"}},
		{"nil pull", func() { HandlePull[int, int](p.PullRouter, "/nil", nil) },
			[]string{`HandlePull("/nil")`, "function is nil"}},
		{"nil push", func() { HandlePush[int](p.PushRouter, "/nil", nil) }, []string{`HandlePush("/nil")`,
			"function is nil"}},
		{"refused", func() { HandlePull(p.PullRouter, "/refused", pull) },
			[]string{"the route /refused is refused", "not this one"}},
		{"plugin twice", func() { HandlePull(p.PullRouter, "/twice", pull, twice, twice) },
			[]string{`"twice"`, "twice in one chain"}},
		{"nil plugin", func() { HandlePull(p.PullRouter, "/nil-plugin", pull, nil) },
			[]string{"plugin is nil"}},
	} {
		t.Run(c.name, func(t *testing.T) {
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
		})
	}
	// What panicked has left no route behind.
	for _, path := range []string{"/", "/g", "/a", "/a b", "/nil", "/refused", "/twice", "/nil-plugin"} {
		require.Nil(t, p.PullRouter.routes.table.Load().find(path), path)
		require.Nil(t, p.PushRouter.routes.table.Load().find(path), path)
	}
}

func TestHandlerAsPostRegSeesIt(t *testing.T) {
	var seen []*Handler
	see := func(name string) Plugin {
		return hookPlugin(name, "PostReg", func(h interface{}) error {
			seen = append(seen, h.(*Handler))
			return nil
		})
	}
	p := newTestPeer(t, nil, see("peer"))
	HandlePull(p.PullRouter.Group("g"), "/pull", func(PullCtx, *point) (map[string]*point,
		Xerror) {
		return nil, nil
	}, see("own"))
	HandlePull(p.PullRouter, "/any", func(PullCtx, *interface{}) (fmt.Stringer, Xerror) { return nil, nil })
	HandlePush(p.PushRouter.Group("g"), "push", func(PushCtx, *[]string) {})
	require.Len(t, seen, 4)
	require.Same(t, seen[0], seen[1])
	for i, c := range []struct {
		h           *Handler
		name        string
		pull        bool
		arg, answer reflect.Type
	}{
		{seen[0], "/g/pull", true, reflect.TypeFor[point](), reflect.TypeFor[map[string]*point]()},
		{seen[2], "/any", true, reflect.TypeFor[interface{}](), reflect.TypeFor[fmt.Stringer]()},
		{seen[3], "/g/push", false, reflect.TypeFor[[]string](), nil},
	} {
		require.Equal(t, c.name, c.h.Name(), i)
		require.Equal(t, c.pull, c.h.IsPull(), i)
		require.Equal(t, !c.pull, c.h.IsPush(), i)
		require.False(t, c.h.IsUnknown(), i)
		require.Equal(t, c.arg, c.h.ArgType(), i)
		require.Equal(t, c.answer, c.h.ReplyType(), i)
	}
}

// A path of dots has no name in it once it is cleaned, and dots do not lead out of
// the group.
func TestHandlePathOfDots(t *testing.T) {
	p := newTestPeer(t, nil)
	pull := func(PullCtx, *int) (int, Xerror) { return 0, nil }
	for _, path := range []string{".", "/.", "..", "/..", "/a/.."} {
		require.Panics(t, func() { HandlePull(p.PullRouter.Group("g"), path, pull) }, path)
	}
	HandlePull(p.PullRouter.Group("g"), "../b", pull)
	HandlePull(p.PullRouter.Group("../h"), "/../b", pull)
	table := p.PullRouter.routes.table.Load()
	require.NotNil(t, table.find("/g/b"))
	require.NotNil(t, table.find("/h/b"))
	require.Len(t, table.all, 2)
}
