package tp

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/henrylee2cn/teleport/internal/pipe"
)

// oldMessage is as protoc-gen-go 1.3 made them.
type oldMessage struct {
	Name             string `protobuf:"bytes,1,opt,name=name,proto3" json:"name,omitempty"`
	XXX_unrecognized []byte `json:"-"`
}

func (m *oldMessage) Reset()         { *m = oldMessage{} }
func (m *oldMessage) String() string { return m.Name }
func (*oldMessage) ProtoMessage()    {}

// One definition serves both sides, for values and for messages of both protobuf APIs, in
// each codec that can.
func TestMethodOfBothSides(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	type args struct{ A, B int }
	add := NewMethod[args, int]("/g/math/add")
	next := NewMethod[*wrapperspb.StringValue, *wrapperspb.StringValue]("/new")
	old := NewMethod[*oldMessage, *oldMessage]("/old", WithBodyCodec("protobuf"))
	said := NewNote[*wrapperspb.StringValue]("/said", WithMeta("who", "all"))
	got := make(chan string, 1)
	seen := 0
	add.Handle(srv.PullRouter.Group("g"), func(ctx PullCtx, a *args) (int, Xerror) {
		ctx.SetMeta("path", ctx.Path()+ctx.Meta()["x"])
		return a.A + a.B, nil
	}, hookPlugin("p", "PostReadBody", func(interface{}) error { seen++; return nil }))
	next.Handle(srv.PullRouter, func(_ PullCtx, m **wrapperspb.StringValue) (*wrapperspb.StringValue,
		Xerror) {
		return wrapperspb.String((*m).GetValue() + "!"), nil
	})
	old.Handle(srv.PullRouter, func(_ PullCtx, m **oldMessage) (*oldMessage, Xerror) {
		return &oldMessage{Name: (*m).Name + "!"}, nil
	})
	said.Handle(srv.PushRouter, func(ctx PushCtx, m **wrapperspb.StringValue) {
		got <- (*m).GetValue() + ctx.Meta()["who"] + ctx.Meta()["x"]
	})
	_, sess := connect(t, srv, cli, pipe.Options{})
	ctx := context.Background()

	var meta map[string]string
	n, err := add.Call(ctx, sess, args{1, 2}, WithMeta("x", "?"), WithReplyMeta(&meta))
	require.NoError(t, err)
	require.Equal(t, 3, n)
	require.Equal(t, map[string]string{"path": "/g/math/add?"}, meta)
	require.Equal(t, 1, seen)
	for _, codec := range []string{"json", "protobuf"} {
		m, err := next.Call(ctx, sess, wrapperspb.String("x"), WithBodyCodec(codec), WithReplyMeta(&meta))
		require.NoError(t, err)
		require.Equal(t, "x!", m.GetValue())
		require.Nil(t, meta)
		o, err := old.Call(ctx, sess, &oldMessage{Name: "x"}, WithBodyCodec(codec))
		require.NoError(t, err)
		require.Equal(t, "x!", o.Name)
		require.NoError(t, said.Push(ctx, sess, wrapperspb.String("x"), WithBodyCodec(codec),
			WithMeta("x", "!")))
		require.Equal(t, "xall!", <-got)
	}
	o, err := Call[*oldMessage](ctx, sess, "/old", &oldMessage{Name: "y"}, WithBodyCodec("protobuf"))
	require.NoError(t, err)
	require.Equal(t, "y!", o.Name)
	v, err := Call[oldMessage](ctx, sess, "/old", &oldMessage{Name: "y"}, WithBodyCodec("protobuf"))
	require.NoError(t, err)
	require.Equal(t, "y!", v.Name)

	_, err = Call[int](ctx, sess, "/nope", 1, WithReplyMeta(&meta))
	require.Error(t, err)
	require.Nil(t, meta)
	require.PanicsWithValue(t,
		`tp: Method.Handle: "/g/math/add" is not in the router's group "/h"; expected the router of a group that the URI begins with.`, func() {
			add.Handle(srv.PullRouter.Group("h"), func(PullCtx, *args) (int, Xerror) { return 0, nil })
		})
	require.PanicsWithValue(t, "tp: the route /g/math/add is registered twice.", func() {
		add.Handle(srv.PullRouter, func(PullCtx, *args) (int, Xerror) { return 0, nil })
	})
	require.Panics(t, func() { NewNote[int]("said").Handle(srv.PushRouter, func(PushCtx, *int) {}) })
}

// The metadata of a reply comes however the pull is made and however it ends.
func TestReplyMeta(t *testing.T) {
	srv, cli, hooked := newTestPeer(t, nil), newTestPeer(t, nil), newTestPeer(t, nil, newTestPlugin("nothing",
		nil))
	HandlePull(srv.PullRouter, "/meta", func(ctx PullCtx, fail *bool) (string, Xerror) {
		ctx.SetMeta("k", "v")
		if *fail {
			return "", NewXerror(1, "failed")
		}
		return "", nil
	})
	for _, p := range []*Peer{cli, hooked} {
		_, sess := connect(t, srv, p, pipe.Options{})
		for _, fail := range []bool{false, true} {
			var meta map[string]string
			require.Equal(t, fail, sess.Pull("/meta", fail, nil, WithReplyMeta(&meta)).Xerror != nil)
			require.Equal(t, map[string]string{"k": "v"}, meta)
			meta = nil
			<-sess.GoPull("/meta", fail, nil, nil, WithReplyMeta(&meta)).Done()
			require.Equal(t, map[string]string{"k": "v"}, meta)
			require.Nil(t, sess.Push("/nobody", fail, WithReplyMeta(&meta)))
			require.NotNil(t, meta)
		}
		meta := map[string]string{"old": "one"}
		require.NotNil(t, sess.Pull("/meta", func() {}, nil, WithReplyMeta(&meta)).Xerror)
		require.Nil(t, meta)
	}
}
