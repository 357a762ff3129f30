package nats_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/contrib/nats"
)

// way is how a server reaches a session: on the same server, or on another one.
type way struct {
	name string
	from *node
	at   *node
}

// eachWay runs the test with a session of the server itself, without and with a broker, and with one of
// another server: all must be the same.
func eachWay(t *testing.T, f func(t *testing.T, w way)) {
	b := startBroker(t)
	alone := newNode(t, nil)
	pair := nodes(t, 2, nats.URL(b.ClientURL()))
	for _, w := range []way{{"without a broker", alone, alone}, {"same server", pair[0], pair[0]},
		{"elsewhere", pair[0], pair[1]}} {
		t.Run(w.name, func(t *testing.T) { f(t, w) })
	}
}

type question struct {
	N    int
	Text string
}

func TestPull(t *testing.T) {
	eachWay(t, func(t *testing.T, w way) {
		c := w.at.connect(t, "the id", "ada")
		tp.HandlePull(c.peer.PullRouter, "/echo", func(ctx tp.PullCtx, q *question) (question, tp.Xerror) {
			ctx.SetMeta("back", ctx.Meta()["there"])
			q.N++
			q.Text += ctx.Query().Get("a")
			return *q, nil
		})
		for _, target := range []nats.Target{w.from.Session("the id"), w.from.Identity("ada")} {
			for _, level := range []int32{0, 5} {
				var meta map[string]string
				var reply question
				require.Nil(t, target.Pull(within(t), "/echo?a=b", question{1, "x"}, &reply,
					tp.WithMeta("there", "é"),
					tp.WithReplyMeta(&meta), tp.WithGzip(level)))
				require.Equal(t, question{2, "xb"}, reply)
				require.Equal(t, map[string]string{"back": "é"}, meta)
			}
			got, err := nats.Call[question](within(t), target, "/echo", question{N: 5})
			require.NoError(t, err)
			require.Equal(t, 6, got.N)
		}
		_, err := nats.Call[int](within(t), w.from.Identity("nobody"), "/echo", 1)
		require.Error(t, err)
	})
}

func TestPullErrors(t *testing.T) {
	eachWay(t, func(t *testing.T, w way) {
		c := w.at.connect(t, "c")
		target := w.from.Session("c")
		tp.HandlePull(c.peer.PullRouter, "/fails", func(ctx tp.PullCtx, _ *int) (int, tp.Xerror) {
			ctx.SetMeta("k", "v")
			return 0, tp.WithDetails(tp.NewXerror(1001, "room full"), []int{1, 2})
		})
		tp.HandlePull(c.peer.PullRouter, "/later", func(tp.PullCtx, *int) (int, tp.Xerror) {
			return 0, tp.WithNotRun(tp.WithRetryAfter(tp.NewXerror(429, "later"), 1500*time.Millisecond))
		})
		tp.HandlePull(c.peer.PullRouter, "/panics", func(tp.PullCtx, *int) (int, tp.Xerror) { panic("no") })

		t.Run("status, details and metadata", func(t *testing.T) {
			for _, level := range []int32{0, 9} {
				var meta map[string]string
				x := target.Pull(within(t), "/fails", 1, nil, tp.WithReplyMeta(&meta), tp.WithGzip(level))
				require.EqualError(t, x, "1001 room full")
				require.False(t, tp.NotRun(x))
				require.False(t, tp.Local(x))
				require.Equal(t, "v", meta["k"])
				var details []int
				found, err := tp.Details(x, &details)
				require.NoError(t, err)
				require.True(t, found)
				require.Equal(t, []int{1, 2}, details)
			}
		})
		t.Run("not run, and worth another attempt", func(t *testing.T) {
			x := target.Pull(within(t), "/later", 1, nil)
			require.EqualError(t, x, "429 later")
			require.True(t, tp.NotRun(x))
			after, ok := tp.Retryable(x)
			require.True(t, ok)
			require.Equal(t, 1500*time.Millisecond, after)
		})
		t.Run("no such route", func(t *testing.T) {
			x := target.Pull(within(t), "/nosuch", 1, nil)
			require.Equal(t, tp.StatusNotFound, x.Code())
			require.True(t, tp.NotRun(x))
			require.NotErrorIs(t, x, nats.ErrNotConnected)
		})
		t.Run("a panic", func(t *testing.T) {
			x := target.Pull(within(t), "/panics", 1, nil)
			require.Equal(t, tp.StatusInternalServerError, x.Code())
			require.False(t, tp.NotRun(x))
		})
		t.Run("a body that does not decode", func(t *testing.T) {
			x := target.Pull(within(t), "/fails", "text", nil)
			require.Equal(t, tp.StatusBadRequest, x.Code())
			require.True(t, tp.NotRun(x))
		})
		t.Run("a reply that does not decode", func(t *testing.T) {
			tp.HandlePull(c.peer.PullRouter, "/text", func(tp.PullCtx, *int) (string, tp.Xerror) {
				return "text", nil
			})
			x := target.Pull(within(t), "/text", 1, new(int))
			require.Equal(t, tp.StatusBadRequest, x.Code())
			require.False(t, tp.NotRun(x))
			require.True(t, tp.Local(x))
		})
		t.Run("arguments that do not encode, a reply that is no pointer", func(t *testing.T) {
			x := target.Pull(within(t), "/fails", make(chan int), nil)
			require.Equal(t, tp.StatusWriteFailed, x.Code())
			require.True(t, tp.NotRun(x))
			x = target.Pull(within(t), "/fails", 1, 5)
			require.Equal(t, tp.StatusBadRequest, x.Code())
			require.True(t, tp.NotRun(x))
		})
		t.Run("connected nowhere", func(t *testing.T) {
			for _, target := range []nats.Target{w.from.Session("nobody"), w.from.Identity("c"),
				w.from.Session("")} {
				for _, x := range []tp.Xerror{target.Pull(within(t), "/fails", 1, nil),
					target.Push(within(t), "/note", "x")} {
					require.ErrorIs(t, x, nats.ErrNotConnected)
					require.Equal(t, tp.StatusNotFound, x.Code())
					require.True(t, tp.NotRun(x))
				}
			}
		})
	})
}

// The handler has the deadline of the caller.
func TestDeadline(t *testing.T) {
	eachWay(t, func(t *testing.T, w way) {
		c := w.at.connect(t, "c")
		left, over := make(chan time.Duration, 1), make(chan struct{})
		defer close(over)
		tp.HandlePull(c.peer.PullRouter, "/wait", func(ctx tp.PullCtx, _ *int) (int, tp.Xerror) {
			deadline, ok := ctx.Context().Deadline()
			if !ok {
				left <- -1
				return 0, nil
			}
			left <- time.Until(deadline)
			<-ctx.Context().Done()
			<-over // the caller's own clock ends the pull
			return 0, nil
		})
		require.Nil(t, w.from.Session("c").Pull(context.Background(), "/wait", 1, nil))
		require.EqualValues(t, -1, <-left)
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		x := w.from.Session("c").Pull(ctx, "/wait", 1, nil)
		require.ErrorIs(t, x, context.DeadlineExceeded)
		require.Equal(t, tp.StatusDeadlineExceeded, x.Code())
		require.False(t, tp.NotRun(x))
		d := <-left
		require.Positive(t, d)
		require.LessOrEqual(t, d, 100*time.Millisecond)
		<-ctx.Done() // and a context that has ended before
		x = w.from.Session("c").Pull(ctx, "/wait", 1, nil)
		require.ErrorIs(t, x, context.DeadlineExceeded)
		require.True(t, tp.NotRun(x))
		x = w.from.Session("c").Push(ctx, "/note", "x")
		require.True(t, tp.NotRun(x))
	})
}

// Who gives up ends the handler's context.
func TestCancel(t *testing.T) {
	eachWay(t, func(t *testing.T, w way) {
		c := w.at.connect(t, "c")
		began, ended := make(chan struct{}), make(chan error, 1)
		tp.HandlePull(c.peer.PullRouter, "/wait", func(ctx tp.PullCtx, _ *int) (int, tp.Xerror) {
			began <- struct{}{}
			<-ctx.Context().Done()
			ended <- ctx.Context().Err()
			return 0, nil
		})
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			<-began
			cancel()
		}()
		x := w.from.Session("c").Pull(ctx, "/wait", 1, nil)
		require.ErrorIs(t, x, context.Canceled)
		require.Equal(t, tp.StatusCanceled, x.Code())
		require.False(t, tp.NotRun(x))
		require.ErrorIs(t, <-ended, context.Canceled)
	})
}

// A session that ends while its handler runs: the outcome is unknown.
func TestSessionEndsDuringPull(t *testing.T) {
	eachWay(t, func(t *testing.T, w way) {
		c := w.at.connect(t, "c")
		tp.HandlePull(c.peer.PullRouter, "/ends", func(ctx tp.PullCtx, _ *int) (int, tp.Xerror) {
			_ = ctx.Session().Close()
			return 0, nil
		})
		x := w.from.Session("c").Pull(within(t), "/ends", 1, nil)
		require.Equal(t, tp.StatusConnClosed, x.Code())
		require.False(t, tp.NotRun(x))
		// And then it is nowhere.
		eventually(t, func() bool {
			return errors.Is(w.from.Session("c").Push(within(t), "/note", "x"), nats.ErrNotConnected)
		})
	})
}

func TestPush(t *testing.T) {
	eachWay(t, func(t *testing.T, w way) {
		c := w.at.connect(t, "c", "ada")
		require.Nil(t, w.from.Session("c").Push(within(t), "/note", "one"))
		require.Nil(t, w.from.Identity("ada").Push(within(t), "/note", "two", tp.WithGzip(5)))
		require.Nil(t, w.from.Session("c").Push(within(t), "/note", "three", tp.WithBodyCodec("json")))
		c.awaitNotes(t, "one", "two", "three")
	})
}

// Ids and names are any text; none leads to another session than that with the name.
func TestNames(t *testing.T) {
	eachWay(t, func(t *testing.T, w way) {
		names := []string{"a.b", "a", "*", ">", "a.*", "a.>", "a b", "a=2eb", "=", "\x00\r\n", "é", "~", " ",
			"A",
			strings.Repeat("x", 5000), strings.Repeat("x", 5001), "10.0.0.1:5000", "[::1]:80"}
		var all []*client
		for _, name := range names {
			all = append(all, w.at.connect(t, name, "i"+name))
		}
		for i, name := range names {
			require.Nil(t, w.from.Session(name).Push(within(t), "/note", "to "+name), "%q", name)
			require.Nil(t, w.from.Identity("i"+name).Push(within(t), "/note", "to "+name), "%q", name)
			all[i].awaitNotes(t, "to "+name, "to "+name)
		}
	})
}
