package tptest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/tptest"
)

// complaints is a test that collects what assertions say.
type complaints struct{ text string }

func (c *complaints) Errorf(format string, args ...any) { c.text += fmt.Sprintf(format, args...) }

type order struct {
	Item  string
	Count int
}

// shop has routes of all kinds, and the recorder.
func shop(rec *tptest.Recorder) *tp.Peer {
	p := tp.NewPeer(nil, rec)
	tp.HandlePull(p.PullRouter, "/order", func(_ tp.PullCtx, o *order) (int, tp.Xerror) {
		if o.Count < 1 {
			return 0, tp.NewXerror(tp.StatusBadRequest, "no items")
		}
		o.Item = "changed by the handler"
		return o.Count, nil
	})
	tp.HandlePull(p.PullRouter, "/proto",
		func(_ tp.PullCtx, v *wrapperspb.StringValue) (*wrapperspb.StringValue, tp.Xerror) { return v, nil })
	tp.HandlePull(p.PullRouter, "/raw",
		func(tp.PullCtx, *packet.RawBody) (string, tp.Xerror) { return "", nil })
	tp.HandlePush(p.PushRouter, "/news", func(tp.PushCtx, *string) {})
	tp.HandlePush(p.PushRouter, "/panics", func(tp.PushCtx, *string) { panic("on purpose") })
	tp.HandleStream(p.PullRouter, "/stream", func(tp.PullCtx, *tp.Stream[int, int]) tp.Xerror { return nil })
	return p
}

func TestRecorder(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T) {
		rec, sent := new(tptest.Recorder), new(tptest.Recorder)
		link := tptest.Pair(t, shop(rec), tp.NewPeer(nil, sent))
		cmd := link.Client.Pull("/order?shop=7", order{"tea", 2}, nil, tp.WithMeta("who", "ann"))
		require.Nil(t, cmd.Xerror)
		require.NotNil(t, link.Client.Pull("/order", order{"tea", 0}, nil).Xerror)
		require.NotNil(t, link.Client.Pull("/nowhere", 1, nil).Xerror)
		require.NotNil(t, link.Client.Pull("/order", "not an order", nil).Xerror)

		// The caller has the replies, so all of it is recorded already.
		rec.AssertPulled(t, "/order", tptest.HasBody(order{"tea", 2}), tptest.HasQuery("shop", "7"),
			tptest.HasMeta("who", "ann"), tptest.CameBy(link.Server), tptest.HasStatus(tp.StatusOK))
		rec.AssertPulled(t, "/order", tptest.HasBody(map[string]any{"Item": "tea", "Count": 0.0}),
			tptest.HasStatus(tp.StatusBadRequest))
		rec.AssertPulled(t, "/order", tptest.HasBody(&order{"tea", 2}),
			tptest.BodyIs(func(o order) bool { return o.Count == 2 }))
		rec.AssertPulled(t, "/nowhere", tptest.HasStatus(tp.StatusNotFound))
		rec.AssertNotPulled(t, "/nowhere", tptest.HasBody(nil))
		rec.AssertCount(t, 3, tptest.Pull, "/order")
		rec.AssertCount(t, 2, tptest.Pull, "/order", tptest.HasStatus(tp.StatusBadRequest))
		rec.AssertNotPulled(t, "/order", tptest.HasBody(order{"coffee", 1}))
		rec.AssertNotPushed(t, "/order")

		var paths []string
		for _, c := range sent.Sent() {
			paths = append(paths, c.String())
			require.True(t, c.Over)
			require.Same(t, link.Client, c.Session)
		}
		require.Equal(t, []string{`pull /order?shop=7 "{\"Item\":\"tea\",\"Count\":2}": 200`,
			`pull /order "{\"Item\":\"tea\",\"Count\":0}": 400 no items`,
			`pull /nowhere "1": 404 not found: nothing here takes pulls to "/nowhere"`}, paths[:3])
		require.Empty(t, sent.Received())
		require.Empty(t, rec.Sent())
		rec.Reset()
		require.Empty(t, rec.Received())
	})
}

func TestBodiesOfOtherCodecs(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T) {
		rec := new(tptest.Recorder)
		link := tptest.Pair(t, shop(rec), tp.NewPeer(nil))
		tea := wrapperspb.String("tea")
		require.Nil(t, link.Client.Pull("/proto", tea, nil, tp.WithBodyCodec("protobuf")).Xerror)
		require.Nil(t, link.Client.Pull("/raw", "text", nil, tp.WithBodyCodec("string")).Xerror)
		rec.AssertPulled(t, "/proto", tptest.HasBody(tea))
		rec.AssertNotPulled(t, "/proto", tptest.HasBody(wrapperspb.String("coffee")))
		rec.AssertPulled(t, "/raw", tptest.HasBody("text"))
	})
}

func TestBodiesThatAreNotThere(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T) {
		rec := new(tptest.Recorder)
		server := shop(rec)
		server.PullRouter.SetUnknown(func(ctx tp.UnknownPullCtx, body *[]byte) (any, tp.Xerror) {
			var v string
			_, err := ctx.Unmarshal(*body, &v, ctx.Path() == "/assigned")
			require.NoError(t, err)
			return v, nil
		})
		link := tptest.Pair(t, server, tp.NewPeer(nil))
		require.Nil(t, link.Client.Pull("/assigned", "a", nil).Xerror)
		require.Nil(t, link.Client.Pull("/kept", "b", nil).Xerror)
		require.Nil(t, link.Client.Pull("/proto", nil, nil, tp.WithBodyCodec("protobuf")).Xerror)
		rec.AssertPulled(t, "/assigned", tptest.HasBody("a"))
		rec.AssertPulled(t, "/proto", tptest.HasBody(nil))
		for _, c := range rec.Received() {
			switch _, err := tptest.BodyOf[string](c); c.Path {
			case "/kept":
				require.ErrorContains(t, err, "tptest: the body is not known")
				require.Error(t, tptest.HasBody(nil)(c))
			case "/proto":
				require.EqualError(t, err, "tptest: the pull /proto has no body")
			}
		}
	})
}

func TestRawBodyThatIsCompressed(t *testing.T) {
	t.Parallel()
	rec := new(tptest.Recorder)
	link := tptest.Pair(t, shop(rec), tp.NewPeer(nil))
	text := strings.Repeat("x", 1000)
	for _, path := range []string{"/raw", "/news"} {
		setting := []tp.PacketSetting{tp.WithBodyCodec("string"), tp.WithGzip(9)}
		if path == "/raw" {
			require.Nil(t, link.Client.Pull(path, text, nil, setting...).Xerror)
			continue
		}
		require.Nil(t, link.Client.Push(path, text, setting...))
		_, err := rec.AwaitPush(t.Context(), path, 1)
		require.NoError(t, err)
	}
	rec.AssertPulled(t, "/raw", tptest.HasBody(text))
	rec.AssertPushed(t, "/news", tptest.HasBody(text))
}

func TestAwait(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T) {
		rec := new(tptest.Recorder)
		link := tptest.Pair(t, shop(rec), tp.NewPeer(nil))
		go func() {
			for i := range 3 {
				_ = link.Client.Push("/news", fmt.Sprint(i))
			}
			_ = link.Client.Push("/panics", "x")
			_ = link.Client.Push("/nowhere", "x")
		}()
		third, err := rec.AwaitPush(t.Context(), "/news", 3)
		require.NoError(t, err)
		require.True(t, third.Over)
		text, err := tptest.BodyOf[string](third)
		require.NoError(t, err)
		require.Contains(t, "012", text)
		for i := range 3 {
			rec.AssertPushed(t, "/news", tptest.HasBody(fmt.Sprint(i)), tptest.HasStatus(tp.StatusOK))
		}
		panicked, err := rec.AwaitPush(t.Context(), "/panics", 1)
		require.NoError(t, err)
		require.Equal(t, tp.StatusInternalServerError, panicked.Code)
		dropped, err := rec.AwaitPush(t.Context(), "/nowhere", 1)
		require.NoError(t, err)
		require.Equal(t, tp.StatusNotFound, dropped.Code)

		s, err := tp.OpenStream[int, int](t.Context(), link.Client, "/stream")
		require.NoError(t, err)
		defer s.Close()
		_, err = rec.AwaitStream(t.Context(), "/stream", 1)
		require.NoError(t, err)
		rec.AssertStreamed(t, "/stream")
		link.Client.Pull("/order", order{"tea", 1}, nil)
		_, err = rec.AwaitPull(t.Context(), "/order", 1)
		require.NoError(t, err)
	})
}

func TestAwaitThatEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rec := new(tptest.Recorder)
		link := tptest.Pair(t, shop(rec), tp.NewPeer(nil))
		require.Nil(t, link.Client.Push("/news", "one"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := rec.AwaitPush(ctx, "/news", 2)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.EqualError(t, err, "tptest: push 2 of /news is awaited: context deadline exceeded; these "+
			"calls have come:\n\tpush /news \"\\\"one\\\"\": 200")
		_, err = rec.AwaitPush(ctx, "/news", 0)
		require.ErrorContains(t, err, "expected a number from 1")
	})
}

func TestAssertionsThatFail(t *testing.T) {
	t.Parallel()
	rec := new(tptest.Recorder)
	link := tptest.Pair(t, shop(rec), tp.NewPeer(nil))
	require.Nil(t, link.Client.Pull("/order?shop=7", order{"tea", 2}, nil).Xerror)
	for _, tc := range []struct {
		name   string
		assert func(t tptest.TestingT) bool
		want   []string
	}{
		{"another path", func(t tptest.TestingT) bool { return rec.AssertPulled(t, "/orders") },
			[]string{"tptest: 0 of the pulls of /orders match; expected one", "these calls have come:",
				"pull /order?shop=7"}},
		{"another kind", func(t tptest.TestingT) bool { return rec.AssertPushed(t, "/order") },
			[]string{"0 of the pushes of /order match; expected one"}},
		{"another kind still", func(t tptest.TestingT) bool { return rec.AssertStreamed(t, "/order") },
			[]string{"0 of the streams of /order match"}},
		{"another body", func(t tptest.TestingT) bool {
			return rec.AssertPulled(t, "/order", tptest.HasBody(order{"tea", 3}))
		}, []string{`its body is tptest_test.order{Item:"tea", Count:2}, and tptest_test.order{Item:"tea", ` +
			`Count:3} was expected`}},
		{"a pointer to another body", func(t tptest.TestingT) bool {
			return rec.AssertPulled(t, "/order", tptest.HasBody(&order{"tea", 3}))
		}, []string{`&tptest_test.order{Item:"tea", Count:3} was expected`}},
		{"no body", func(t tptest.TestingT) bool {
			return rec.AssertPulled(t, "/order", tptest.HasBody(nil))
		}, []string{"it has a body"}},
		{"another type", func(t tptest.TestingT) bool {
			return rec.AssertPulled(t, "/order", tptest.HasBody(3))
		}, []string{"tptest: the body of the pull /order:"}},
		{"a condition", func(t tptest.TestingT) bool {
			return rec.AssertPulled(t, "/order", tptest.BodyIs(func(o order) bool { return o.Count > 2 }))
		}, []string{`its body is tptest_test.order{Item:"tea", Count:2}`}},
		{"metadata", func(t tptest.TestingT) bool {
			return rec.AssertPulled(t, "/order", tptest.HasMeta("a", "b"))
		}, []string{`"a": "b" was expected`}},
		{"query", func(t tptest.TestingT) bool {
			return rec.AssertPulled(t, "/order", tptest.HasQuery("shop", "8"))
		}, []string{`its query is "shop=7", and shop="8" was expected`}},
		{"status", func(t tptest.TestingT) bool {
			return rec.AssertPulled(t, "/order", tptest.HasStatus(404))
		}, []string{"its status is 200 , and 404 was expected"}},
		{"session", func(t tptest.TestingT) bool {
			return rec.AssertPulled(t, "/order", tptest.CameBy(link.Client))
		}, []string{"it came by another session"}},
		{"own matcher", func(t tptest.TestingT) bool {
			return rec.AssertPulled(t, "/order", func(tptest.Call) error { return errors.New("never") })
		}, []string{"never"}},
		{"nil matcher", func(t tptest.TestingT) bool { return rec.AssertPulled(t, "/order", nil) },
			[]string{"matcher 1 of 1 is nil"}},
		{"there is one", func(t tptest.TestingT) bool { return rec.AssertNotPulled(t, "/order") },
			[]string{"1 of the pulls of /order match; expected 0"}},
		{"count", func(t tptest.TestingT) bool { return rec.AssertCount(t, 2, tptest.Pull, "/order") },
			[]string{"1 of the pulls of /order match; expected 2"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var c complaints
			require.False(t, tc.assert(&c))
			for _, want := range tc.want {
				require.Contains(t, c.text, want)
			}
		})
	}
}

// The call is recorded while its handler runs, and over when that has returned.
func TestCallThatRuns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rec := new(tptest.Recorder)
		server := tp.NewPeer(nil, rec)
		tp.HandlePull(server.PullRouter, "/slow", func(tp.PullCtx, *int) (int, tp.Xerror) {
			time.Sleep(time.Minute) // of the bubble's clock
			return 0, nil
		})
		link := tptest.Pair(t, server, tp.NewPeer(nil))
		done := link.Client.GoPull("/slow", 1, nil, make(chan *tp.PullCmd, 1)).Done()
		synctest.Wait()
		calls := rec.Received()
		require.Len(t, calls, 1)
		require.False(t, calls[0].Over)
		require.ErrorContains(t, tptest.HasStatus(tp.StatusOK)(calls[0]), "it has no status yet")
		_, err := rec.AwaitPull(t.Context(), "/slow", 1)
		require.NoError(t, err)
		<-done
	})
}
