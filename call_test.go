package tp

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
)

// Metadata goes both ways, with pulls, pushes, replies and errors, and is bounded with
// the header.
func TestMeta(t *testing.T) {
	srv := newTestPeer(t, nil)
	type seen struct {
		ctx  PushCtx
		meta map[string]string
	}
	got := make(chan seen, 10)
	HandlePull(srv.PullRouter, "/pull", func(ctx PullCtx, fail *bool) (string, Xerror) {
		got <- seen{ctx, ctx.Meta()}
		ctx.SetMeta("reply", "1")
		ctx.SetMeta("reply", "2")
		ctx.SetMeta("é", "")
		if *fail {
			return "", NewXerror(777, "no")
		}
		return "", nil
	})
	HandlePush(srv.PushRouter, "/push", func(ctx PushCtx, _ *string) { got <- seen{ctx, ctx.Meta()} })
	HandlePull(srv.PullRouter, "/huge", func(ctx PullCtx, _ *string) (string, Xerror) {
		ctx.SetMeta("long", strings.Repeat("x", 70_000))
		return "", nil
	})
	for _, headerCodec := range []string{"protobuf", "json"} {
		for _, cfg := range []*PeerConfig{{}, {Redial: new(Redial)}} {
			cfg.DefaultHeaderCodec = headerCodec
			sess, _ := connect(t, newTestPeer(t, cfg), srv, pipe.Options{})
			for _, fail := range []bool{false, true} {
				cmd := sess.Pull("/pull", fail, nil, WithMeta("a", "1"), WithMeta("b", "2"),
					WithMeta("a", "3"))
				require.Equal(t, fail, cmd.Xerror != nil)
				require.Equal(t, map[string]string{"a": "3", "b": "2"}, cmd.Output().Header.Meta)
				require.Equal(t, map[string]string{"reply": "2", "é": ""}, cmd.Meta())
				s := <-got
				require.Equal(t, map[string]string{"a": "3", "b": "2"}, s.meta)
				require.Equal(t, s.meta, s.ctx.Meta(), "also when the call is over")
				s.ctx.(PullCtx).SetMeta("late", "") // has no effect
			}
			require.Nil(t, sess.Push("/push", "", WithMeta("k", "v")))
			s := <-got
			require.Equal(t, map[string]string{"k": "v"}, s.meta)
			require.Nil(t, sess.Push("/push", ""))
			s = <-got
			require.Nil(t, s.meta)
			require.Nil(t, s.ctx.Meta())

			cmd := sess.Pull("/pull", false, nil)
			require.Nil(t, (<-got).meta)
			require.Nil(t, cmd.Output().Header.Meta)

			x := sess.Pull("/pull", false, nil, WithMeta("long", strings.Repeat("x", 70_000))).Xerror
			require.Equal(t, StatusTooLarge, x.Code())
			require.ErrorIs(t, x, packet.ErrTooLarge)
			require.True(t, NotRun(x))
			x = sess.Pull("/pull", false, nil, WithMeta("bad", "\xff")).Xerror
			require.ErrorContains(t, x, `invalid UTF-8 in "bad"`)
			require.Equal(t, StatusTooLarge, sess.Pull("/huge", "", nil).Xerror.Code())
		}
	}
}

type refusal struct {
	Field string
	Limit int
}

// Details ride along with an error, in any codec, and through a handler that passes
// the error on.
func TestDetails(t *testing.T) {
	srv, middle := newTestPeer(t, nil), newTestPeer(t, nil)
	want := refusal{"age", 18}
	HandlePull(srv.PullRouter, "/json", func(PullCtx, *string) (string, Xerror) {
		return "", WithDetails(NewXerror(422, "too young"), want)
	})
	HandlePull(srv.PullRouter, "/proto", func(PullCtx, *wrapperspb.StringValue) (*wrapperspb.StringValue,
		Xerror) {
		return nil, WithDetails(NewXerror(422, "too young"), wrapperspb.String("age"))
	})
	HandlePull(srv.PullRouter, "/bad", func(PullCtx, *string) (string, Xerror) {
		return "", WithDetails(NewXerror(422, "still told"), func() {})
	})
	HandlePull(srv.PullRouter, "/deep", func(PullCtx, *string) (string, Xerror) {
		return "", WithDetails(NewXerror(422, ""), [][]int{{1}})
	})
	HandlePull(srv.PullRouter, "/none", func(PullCtx, *string) (string, Xerror) {
		return "", NewXerror(422, "")
	})
	up := dial(t, middle, srv)
	HandlePull(middle.PullRouter, "/through", func(_ PullCtx, uri *string) (string, Xerror) {
		return "", up.Pull(*uri, "", nil).Xerror
	})
	sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
	far, _ := connect(t, newTestPeer(t, nil), middle, pipe.Options{})
	for name, x := range map[string]Xerror{
		"direct":  sess.Pull("/json", "", nil).Xerror,
		"through": far.Pull("/through", "/json", nil).Xerror,
		"gzip":    sess.Pull("/json", "", nil, WithGzip(5)).Xerror,
	} {
		require.Equal(t, int32(422), x.Code(), name)
		require.Equal(t, "too young", x.Text())
		for range 2 {
			var got refusal
			found, err := Details(fmt.Errorf("wrapped: %w", x), &got)
			require.NoError(t, err)
			require.True(t, found)
			require.Equal(t, want, got)
		}
		var wrong []int
		found, err := Details(x, &wrong)
		require.True(t, found)
		require.Error(t, err)
		require.False(t, NotRun(x))
	}
	x := sess.Pull("/proto", wrapperspb.String(""), nil, WithBodyCodec("protobuf")).Xerror
	var text wrapperspb.StringValue
	found, err := Details(x, &text)
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, "age", text.Value)

	x = sess.Pull("/bad", "", nil).Xerror
	require.Equal(t, "422 still told", x.Error())
	found, _ = Details(x, &want)
	require.False(t, found)
	found, _ = Details(sess.Pull("/none", "", nil).Xerror, &want)
	require.False(t, found)
	found, _ = Details(nil, &want)
	require.False(t, found)
	found, _ = Details(errors.New("other"), &want)
	require.False(t, found)

	// Within the limits of the peer that they came to.
	strict, _ := connect(t, newTestPeer(t, &PeerConfig{MaxBodyDepth: 1}), srv, pipe.Options{})
	found, err = Details(strict.Pull("/deep", "", nil).Xerror, new(interface{}))
	require.True(t, found)
	require.ErrorContains(t, err, "deep")

	// Before it has travelled.
	local := WithDetails(unrun(503, "", nil), want)
	var got refusal
	found, err = Details(local, &got)
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, want, got)
	require.True(t, NotRun(local))
	found, err = Details(WithDetails(NewXerror(1, ""), wrapperspb.String("x")), &text)
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, "x", text.Value)
}

// errors.Is compares codes, and texts where the target has one; errors.As finds an
// Xerror.
func TestXerrorIsAndAs(t *testing.T) {
	x := newXerror(StatusNotFound, "no such room", context.Canceled)
	err := fmt.Errorf("wrapped: %w", x)
	require.ErrorIs(t, err, NewXerror(StatusNotFound, ""))
	require.ErrorIs(t, err, NewXerror(StatusNotFound, "no such room"))
	require.NotErrorIs(t, err, NewXerror(StatusNotFound, "other"))
	require.NotErrorIs(t, err, NewXerror(StatusBadRequest, ""))
	require.ErrorIs(t, err, context.Canceled)
	var as Xerror
	require.ErrorAs(t, err, &as)
	require.Equal(t, StatusNotFound, as.Code())
	require.NotErrorIs(t, NewXerror(StatusNotFound, ""), err)
	require.NotErrorIs(t, NewXerror(StatusNotFound, "no such room"), x, "of which it knows less")
}

// Call and Method return what the compiler expects, and nil errors that are nil.
func TestCall(t *testing.T) {
	srv := newTestPeer(t, nil)
	HandlePull(srv.PullRouter, "/sum", func(_ PullCtx, args *[]int) (int, Xerror) {
		sum := 0
		for _, n := range *args {
			if sum += n; n < 0 {
				return 0, NewXerror(StatusBadRequest, "negative")
			}
		}
		return sum, nil
	})
	HandlePull(srv.PullRouter, "/up", func(_ PullCtx, s *wrapperspb.StringValue) (*wrapperspb.StringValue,
		Xerror) {
		return wrapperspb.String(strings.ToUpper(s.Value)), nil
	})
	HandlePull(srv.PullRouter, "/refusal", func(PullCtx, *string) (*refusal, Xerror) {
		return &refusal{"f", 1}, nil
	})
	notes := make(chan string, 1)
	HandlePush(srv.PushRouter, "/note", func(_ PushCtx, s *string) { notes <- *s })
	sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
	ctx := t.Context()

	sum, err := Call[int](ctx, sess, "/sum", []int{1, 2})
	require.NoError(t, err)
	require.Equal(t, 3, sum)
	sum, err = Call[int](ctx, sess, "/sum", []int{1, -2})
	require.ErrorIs(t, err, NewXerror(StatusBadRequest, "negative"))
	require.Zero(t, sum)
	up, err := Call[*wrapperspb.StringValue](ctx, sess, "/up", wrapperspb.String("text"),
		WithBodyCodec("protobuf"))
	require.NoError(t, err)
	require.Equal(t, "TEXT", up.Value)
	up, err = Call[*wrapperspb.StringValue](ctx, sess, "/nowhere", nil)
	require.ErrorIs(t, err, NewXerror(StatusNotFound, ""))
	require.Nil(t, up)
	r, err := Call[*refusal](ctx, sess, "/refusal", "")
	require.NoError(t, err)
	require.Equal(t, &refusal{"f", 1}, r)
	v, err := Call[refusal](ctx, sess, "/refusal", "")
	require.NoError(t, err)
	require.Equal(t, *r, v)

	add := NewMethod[[]int, int]("/sum")
	require.Equal(t, "/sum", add.Uri())
	sum, err = add.Call(ctx, sess, []int{4, 5})
	require.NoError(t, err)
	require.Equal(t, 9, sum)
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	_, err = add.Call(canceled, sess, nil)
	require.ErrorIs(t, err, context.Canceled)
	upper := NewMethod[*wrapperspb.StringValue, *wrapperspb.StringValue]("/up", WithBodyCodec("protobuf"))
	up, err = upper.Call(ctx, sess, wrapperspb.String("x"))
	require.NoError(t, err)
	require.Equal(t, "X", up.Value)
	note := NewMethod[string, struct{}]("/note")
	require.NoError(t, note.Push(ctx, sess, "pushed"))
	require.Equal(t, "pushed", <-notes)
	require.ErrorIs(t, note.Push(canceled, sess, ""), context.Canceled)
	require.Panics(t, func() { NewMethod[int, error]("/x") })
}
