package tp

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

type listedCtrl struct{ PullCtx }

func (*listedCtrl) Ask(*string) (string, Xerror) { return "", nil }

// leaf has no frame of its own and begins with what it inlines, and Func must not take that for the name.
func leaf(_ PullCtx, a *[2]int) (int, Xerror) { return leafSum(a), nil }

func leafSum(a *[2]int) int { return a[0] + a[1] }

func generic[A any](PushCtx, *A) {}

// A router names what is registered in it, with the Go functions and the plugins.
func TestHandlers(t *testing.T) {
	peers := hookPlugin("peer's", "PostReg", func(interface{}) error { return nil })
	routes := hookPlugin("route's", "PostReg", func(interface{}) error { return nil })
	p := newTestPeer(t, nil, peers)
	sub := p.PullRouter.Group("sub")
	sub.Reg(new(listedCtrl))
	HandlePull(p.PullRouter, "/leaf", leaf, routes)
	HandlePull(p.PullRouter, "/subs", func(PullCtx, *int) (int, Xerror) { return 0, nil })
	HandleStream(sub, "/flow", func(PullCtx, *Stream[int, int]) Xerror { return nil })
	sub.SetUnknown(func(UnknownPullCtx, *[]byte) (interface{}, Xerror) { return nil, nil })
	HandlePush(p.PushRouter, "/generic", generic[int])

	const pkg = "github.com/henrylee2cn/teleport."
	for _, tc := range []struct {
		name   string
		router *group
		want   [][2]string
	}{
		{"pulls", &p.PullRouter.group, [][2]string{
			{"/sub/listed_ctrl/ask", pkg + "(*listedCtrl).Ask"}, {"/leaf", pkg + "leaf"},
			{"/subs", pkg + "TestHandlers.func3"}, {"/sub/flow", pkg + "TestHandlers.func4"},
			{"/sub/*", pkg + "TestHandlers.func5"}}},
		{"a group's pulls", &sub.group, [][2]string{
			{"/sub/listed_ctrl/ask", pkg + "(*listedCtrl).Ask"}, {"/sub/flow", pkg + "TestHandlers.func4"},
			{"/sub/*", pkg + "TestHandlers.func5"}}},
		{"pushes", &p.PushRouter.group, [][2]string{{"/generic", pkg + "generic[...]"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got [][2]string
			for h := range tc.router.Handlers() {
				got = append(got, [2]string{h.Name(), h.Func()})
			}
			require.Equal(t, tc.want, got)
		})
	}
	for h := range p.PullRouter.Handlers() {
		if h.Name() == "/leaf" {
			require.Equal(t, []Plugin{peers, routes}, h.Plugins())
			clear(h.Plugins())
			require.Equal(t, []Plugin{peers, routes}, h.Plugins())
			break // and the rest is left alone
		}
	}
	before := p.PullRouter.Handlers()
	HandlePull(p.PullRouter, "/later", leaf)
	require.Len(t, slices.Collect(before), 6, "a loop sees what is there when it begins")
	require.Empty(t, new(Handler).Func())
}
