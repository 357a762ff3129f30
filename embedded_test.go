//lint:file-ignore U1000 the fields are there to be found by reflection

package tp

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
)

// SharedBase is what several controllers share.
type SharedBase struct{ PullCtx }

func (b *SharedBase) Shared(*int) (string, Xerror) { return b.Path(), nil }

// OwnBehind has a context of its own behind the shared one's.
type OwnBehind struct {
	SharedBase
	PullCtx
}

func (b *OwnBehind) Own(*int) (string, Xerror) { return b.Path(), nil }

// OwnInFront has it in front.
type OwnInFront struct {
	n int
	PullCtx
	SharedBase
}

func (b *OwnInFront) Own(*int) (string, Xerror) { return b.Path(), nil }

type otherBase struct {
	text string
	PullCtx
}

// TwoBases has two, and neither is in front.
type TwoBases struct {
	SharedBase
	otherBase
}

func (b *TwoBases) One(*int) (string, Xerror)   { return b.SharedBase.Path(), nil }
func (b *TwoBases) Other(*int) (string, Xerror) { return b.otherBase.Path(), nil }

// pathOf works for pulls and pushes.
type pathOf struct{ PushCtx }

func (b *pathOf) path() string { return b.Path() }

type ForBoth struct {
	PullCtx
	pathOf
}

func (b *ForBoth) Own(*int) (string, Xerror) { return b.pathOf.path(), nil }

type PushTwice struct {
	pathOf
	PushCtx
	paths chan string
}

func (b *PushTwice) Own(*int) { b.paths <- b.Path() + b.pathOf.path() }

func TestEveryEmbeddedContextIsSet(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	for _, ctrl := range []interface{}{new(OwnBehind), new(OwnInFront), new(TwoBases), new(ForBoth)} {
		srv.PullRouter.Reg(ctrl)
	}
	paths := make(chan string, 1)
	srv.PushRouter.Reg(&PushTwice{paths: paths})
	sess, _ := connect(t, cli, srv, pipe.Options{})
	for _, uri := range []string{
		"/own_behind/own", "/own_behind/shared", "/own_in_front/own", "/own_in_front/shared",
		"/two_bases/one", "/two_bases/other", "/two_bases/shared", "/for_both/own",
	} {
		var path string
		require.Nil(t, sess.Pull(uri, 1, &path).Xerror, uri)
		require.Equal(t, uri, path)
	}
	require.Nil(t, sess.Push("/push_twice/own", 1))
	require.Equal(t, "/push_twice/own/push_twice/own", <-paths)
}

type pointedBase struct{ *SharedBase }

type OnlyByPointer struct{ *SharedBase }

type AlsoByPointer struct {
	PullCtx
	pointedBase
}

func (*AlsoByPointer) Own(*int) (int, Xerror) { return 0, nil }

// selfPointed is embedded in itself.
type selfPointed struct{ *selfPointed }

type BesideItself struct {
	PullCtx
	*selfPointed
}

func (*BesideItself) Own(*int) (int, Xerror) { return 0, nil }

func TestContextBehindAPointerIsRefused(t *testing.T) {
	p := newTestPeer(t, nil)
	const why = "the context in *tp.SharedBase is behind a pointer, so that all calls would share it; " +
		"embed tp.SharedBase."
	require.PanicsWithValue(t, "tp: Reg(*tp.OnlyByPointer): "+why, func() {
		p.PullRouter.Reg(new(OnlyByPointer))
	})
	require.PanicsWithValue(t, "tp: Reg(*tp.AlsoByPointer): "+why, func() {
		p.PullRouter.Reg(new(AlsoByPointer))
	})
	p.PullRouter.Reg(new(BesideItself))
}
