package tp

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// hedgeServers serves /work at two servers, which take so long, and counts calls and cancellations.
type hedgeServers struct {
	*counting
	took      map[string]*atomic.Int64
	cancelled *counting
}

func newHedgeServers(n *testNet, cfg *PeerConfig) *hedgeServers {
	h := &hedgeServers{newCounting(), map[string]*atomic.Int64{}, newCounting()}
	n.t.Cleanup(func() { time.Sleep(time.Second) }) // for handlers to end
	for _, a := range []string{"a", "b"} {
		took := new(atomic.Int64)
		h.took[a] = took
		n.serve(a, cfg, func(p *Peer) {
			HandlePull(p.PullRouter, "/work", func(ctx PullCtx, _ *int) (map[string]string, Xerror) {
				ctx.SetMeta("from", a)
				x := h.count(a)
				select {
				case <-time.After(time.Duration(took.Load())):
				case <-ctx.Context().Done():
					if errors.Is(context.Cause(ctx.Context()), context.Canceled) {
						h.cancelled.count(a)
					}
					time.Sleep(10 * time.Millisecond) // so that the caller's own deadline is first
				}
				return map[string]string{a: a}, x
			})
		})
	}
	return h
}

func (h *hedgeServers) takes(a, b time.Duration) {
	h.took["a"].Store(int64(a))
	h.took["b"].Store(int64(b))
}

// first makes the first attempt go to the server a: it is the round robin's next.
func (h *hedgeServers) first(t testing.TB, c *Cluster) {
	h.takes(0, 0)
	for {
		before := h.of("b")
		require.Nil(t, c.Pull("/work", 1, nil).Xerror)
		if h.of("b") > before {
			return
		}
	}
}

// The second attempt wins if it is answered first; the loser is told, and leaves nothing in the reply.
func TestClusterHedge(t *testing.T) {
	const after = 50 * time.Millisecond
	for _, tc := range []struct {
		name      string
		a, b      time.Duration
		answer    map[string]Xerror
		setting   []PacketSetting
		option    []ClusterOption
		want      string // who answers
		took      time.Duration
		code      int32
		callsB    int
		cancelled string
	}{
		{name: "first is quick", a: 20 * time.Millisecond, want: "a", took: 20 * time.Millisecond},
		{name: "second wins", a: time.Second, b: 20 * time.Millisecond, want: "b",
			took: 70 * time.Millisecond, callsB: 1, cancelled: "a"},
		{name: "first wins", a: 60 * time.Millisecond, b: time.Second, want: "a",
			took: 60 * time.Millisecond, callsB: 1, cancelled: "b"},
		{name: "second is broken", a: time.Second, want: "a", took: time.Second, callsB: 1,
			answer: map[string]Xerror{"b": NewXerror(StatusInternalServerError, "broken")}},
		{name: "first is broken", a: 60 * time.Millisecond, b: 50 * time.Millisecond, want: "b",
			took: 100 * time.Millisecond, callsB: 1,
			answer: map[string]Xerror{"a": NewXerror(StatusInternalServerError, "broken")}},
		{name: "second says no", a: time.Second, took: 50 * time.Millisecond, code: 777, callsB: 1,
			answer: map[string]Xerror{"b": NewXerror(777, "no")}, cancelled: "a"},
		{name: "both broken", a: 60 * time.Millisecond, b: 20 * time.Millisecond, code: 500, callsB: 1,
			took: 70 * time.Millisecond, answer: map[string]Xerror{
				"a": NewXerror(500, "broken"), "b": NewXerror(500, "broken")}},
		{name: "not idempotent", a: time.Second, option: []ClusterOption{Idempotent("/other")}, want: "a",
			took: time.Second},
		{name: "no budget", a: time.Second, option: []ClusterOption{RetryBudget(0, 0)}, want: "a",
			took: time.Second},
		{name: "refused at once", answer: map[string]Xerror{
			"a": WithNotRun(NewXerror(StatusOverloaded, "no"))}, want: "b", callsB: 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, n *testNet) {
				h := newHedgeServers(n, nil)
				c := newTestCluster(t, n.client(nil), servers(at("a", "b")...), append([]ClusterOption{
					RoundRobin(), NoEjection(), Hedge(after), Idempotent("/work")}, tc.option...)...)
				if tc.name == "not idempotent" {
					c.option.idempotent = []string{"/other"}
				}
				synctest.Wait()
				h.first(t, c)
				h.takes(tc.a, tc.b)
				for who, x := range tc.answer {
					h.set(who, x)
				}
				before := h.of("b")
				var reply, meta map[string]string
				start := time.Now()
				cmd := c.Pull("/work?x", 1, &reply, append(tc.setting, WithReplyMeta(&meta))...)
				require.Equal(t, tc.took, time.Since(start))
				if tc.code != 0 {
					require.Equal(t, tc.code, cmd.Xerror.Code(), "%v", cmd.Xerror)
					require.Empty(t, reply)
				} else {
					require.Nil(t, cmd.Xerror)
					require.Equal(t, map[string]string{tc.want: tc.want}, reply)
					require.Equal(t, map[string]string{"from": tc.want}, meta)
					require.Equal(t, meta, cmd.Meta())
					state := c.Servers()[0]
					if tc.want == "b" {
						state = c.Servers()[1]
					}
					require.Equal(t, state.RemoteIp, cmd.Session().RemoteIp())
				}
				requireIdle(t, c)
				require.Equal(t, tc.callsB, h.of("b")-before)
				synctest.Wait()
				for _, who := range []string{"a", "b"} {
					want := 0
					if who == tc.cancelled {
						want = 1
					}
					require.Equal(t, want, h.cancelled.of(who), who)
				}
				time.Sleep(time.Second)
				require.Equal(t, tc.code == 0, reply != nil)
				require.LessOrEqual(t, len(reply), 1, "the loser was decoded")
			})
		})
	}
}

// Hooks see both attempts, each with its end.
func TestClusterHedgeHooks(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		h := newHedgeServers(n, nil)
		overs := &pullOvers{name: "over"}
		c := newTestCluster(t, n.client(nil, overs), servers(at("a", "b")...), RoundRobin(),
			Hedge(50*time.Millisecond), Idempotent())
		synctest.Wait()
		h.first(t, c)
		h.takes(time.Second, 0)
		overs.mu.Lock()
		overs.all = nil
		overs.mu.Unlock()
		require.Nil(t, c.Pull("/work", 1, nil).Xerror)
		require.ElementsMatch(t, []string{"103 /work", "200 /work"}, overs.all)
	})
}

// Without a time of its own, the second attempt is made when the route usually has its answer.
func TestClusterHedgeLearns(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		h := newHedgeServers(n, nil)
		c := newTestCluster(t, n.client(nil), servers(at("a", "b")...), RoundRobin(), Hedge(0), Idempotent(),
			RetryBudget(0.1, 0))
		synctest.Wait()
		h.takes(10*time.Millisecond, 10*time.Millisecond)
		for range 100 {
			require.Nil(t, c.Pull("/work", 1, nil).Xerror)
		}
		require.Equal(t, 100, h.of("a")+h.of("b"), "there is no reason for a second one")
		h.takes(time.Second, 10*time.Millisecond)
		start := time.Now()
		before := h.of("a") + h.of("b")
		for range 2 {
			require.Nil(t, c.Pull("/work", 1, nil).Xerror)
		}
		require.Less(t, time.Since(start), 50*time.Millisecond)
		require.LessOrEqual(t, h.of("a")+h.of("b")-before, 4)
		for range 1000 { // more than the budget has for
			require.Nil(t, c.Pull("/work", 1, nil).Xerror)
		}
		require.LessOrEqual(t, h.of("a")+h.of("b"), 1102+111)
	})
}

// The end of the caller's context ends both attempts, and both servers are told.
func TestClusterHedgeContext(t *testing.T) {
	for name, deadline := range map[string]bool{"deadline": true, "cancel": false} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, n *testNet) {
				h := newHedgeServers(n, nil)
				c := newTestCluster(t, n.client(nil), servers(at("a", "b")...), RoundRobin(),
					Hedge(50*time.Millisecond), Idempotent())
				synctest.Wait()
				h.takes(time.Minute, time.Minute)
				ctx, cancel := context.WithCancel(t.Context())
				code := StatusCanceled
				if deadline {
					ctx, cancel = context.WithTimeout(t.Context(), time.Second)
					code = StatusDeadlineExceeded
				} else {
					time.AfterFunc(time.Second, cancel)
				}
				defer cancel()
				start := time.Now()
				cmd := c.PullContext(ctx, "/work", 1, new(map[string]string))
				require.Equal(t, time.Second, time.Since(start))
				require.Equal(t, code, cmd.Xerror.Code())
				require.False(t, NotRun(cmd.Xerror))
				require.Equal(t, 2, h.of("a")+h.of("b"))
				requireIdle(t, c)
				time.Sleep(time.Second)
				if !deadline {
					require.Equal(t, 2, h.cancelled.of("a")+h.cancelled.of("b"))
				}
			})
		})
	}
}

// The servers of both attempts may go.
func TestClusterHedgeKilled(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		h := newHedgeServers(n, nil)
		c := newTestCluster(t, n.client(nil), servers(at("a", "b")...), RoundRobin(),
			Hedge(50*time.Millisecond), Idempotent())
		synctest.Wait()
		h.takes(time.Minute, 200*time.Millisecond)
		time.AfterFunc(100*time.Millisecond, func() { n.cut("a") })
		var reply map[string]string
		require.Nil(t, c.Pull("/work", 1, &reply).Xerror)
		require.Equal(t, map[string]string{"b": "b"}, reply)
		h.takes(time.Second, time.Second)
		time.AfterFunc(100*time.Millisecond, func() { n.cut("a"); n.cut("b") })
		reply = nil
		require.Nil(t, c.Pull("/work", 1, &reply).Xerror, "both went, and came again")
		require.Len(t, reply, 1)
		requireIdle(t, c)
	})
}
