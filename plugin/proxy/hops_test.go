package proxy_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/plugin/proxy"
)

// dropped is a Logger that passes on the lines about packets that were not forwarded.
type dropped chan string

func (dropped) Enabled(context.Context, slog.Level) bool { return true }

func (d dropped) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "loop detected") {
		d <- r.Message
	}
	return nil
}

func logDropped(t *testing.T) dropped {
	d, level := make(dropped, 1000), tp.LogLevel()
	tp.SetLogger(d)
	tp.SetLogLevel(tp.LevelWarn)
	t.Cleanup(func() { tp.SetLogger(nil); tp.SetLogLevel(level) })
	return d
}

// Two proxies that are each other's upstream by mistake: a packet that neither has a route
// for goes round a bounded number of times.
func TestPacketsThatGoRound(t *testing.T) {
	lines := logDropped(t)
	a, b := tp.NewPeer(nil), tp.NewPeer(nil)
	toB, toA := join(t, a, b)
	var rounds atomic.Int64
	for _, side := range []struct {
		peer *tp.Peer
		p    *proxy.Proxy
	}{{a, proxy.To(toB)}, {b, proxy.To(toA)}} {
		side.peer.PullRouter.SetUnknown(func(ctx tp.UnknownPullCtx, body *[]byte) (interface{}, tp.Xerror) {
			rounds.Add(1)
			return side.p.Pull(ctx, body)
		})
		side.peer.PushRouter.SetUnknown(func(ctx tp.UnknownPushCtx, body *[]byte) {
			rounds.Add(1)
			side.p.Push(ctx, body)
		})
	}
	client, _ := join(t, tp.NewPeer(nil), a)
	const seen = proxy.MaxHops + 1 // by the one that does not forward it, too
	x := client.Pull("/nosuch", 1, nil).Xerror
	require.NotNil(t, x)
	require.Equal(t, tp.StatusLoopDetected, x.Code())
	require.EqualValues(t, seen, rounds.Load())
	require.Contains(t, <-lines, "proxy: pull /nosuch not forwarded")
	rounds.Store(0)
	require.Nil(t, client.Push("/nosuch", 1))
	require.Contains(t, <-lines, "proxy: push /nosuch dropped: 508 loop detected")
	require.EqualValues(t, seen, rounds.Load())
}

// chainOf is n proxies in a row before a service, which answers with its metadata.
func chainOf(t *testing.T, n int) *tp.Session {
	next := tp.NewPeer(nil)
	tp.HandlePull(next.PullRouter, "/meta", func(ctx tp.PullCtx, _ *int) (map[string]string, tp.Xerror) {
		ctx.SetMeta("back", "x")
		return ctx.Meta(), nil
	})
	for range n {
		middle := tp.NewPeer(nil)
		up, _ := join(t, middle, next)
		middle.PullRouter.SetUnknown(proxy.To(up).Pull)
		next = middle
	}
	client, _ := join(t, tp.NewPeer(nil), next)
	return client
}

func TestHopsAreCounted(t *testing.T) {
	for _, n := range []int{0, 1, 2, proxy.MaxHops, proxy.MaxHops + 1} {
		client := chainOf(t, n)
		got := map[string]string{}
		cmd := client.Pull("/meta", 1, &got, tp.WithMeta("trace", "é"), tp.WithMeta("", "empty"))
		if n > proxy.MaxHops {
			require.Equal(t, tp.StatusLoopDetected, cmd.Xerror.Code())
			continue
		}
		require.Nil(t, cmd.Xerror)
		want := map[string]string{"trace": "é", "": "empty"}
		if n > 0 {
			want[proxy.HopsKey] = strconv.Itoa(n)
		}
		require.Equal(t, want, got)
		require.Equal(t, map[string]string{"back": "x"}, cmd.Meta(), "a reply is not counted")
	}
}

// No count that a client makes up lets a packet go round for longer.
func TestHostileCounts(t *testing.T) {
	client := chainOf(t, 1)
	for _, said := range []string{"", "0", "-1", "-99999999999999999999", "16", "17", "99999999999999999999",
		"1.5", " 1", "01", "+1", "0x1", "1e0", "１", "many", "\x00"} {
		x := client.Pull("/meta", 1, nil, tp.WithMeta(proxy.HopsKey, said)).Xerror
		require.NotNil(t, x, "%q", said)
		require.Equal(t, tp.StatusLoopDetected, x.Code(), "%q", said)
	}
	got := map[string]string{}
	require.Nil(t, client.Pull("/meta", 1, &got, tp.WithMeta(proxy.HopsKey, "15")).Xerror)
	require.Equal(t, "16", got[proxy.HopsKey])
}

func TestNoRoomForTheCount(t *testing.T) {
	client := chainOf(t, 1)
	pairs := func(n int, value string) (set []tp.PacketSetting, meta map[string]string) {
		meta = map[string]string{}
		for i := range n {
			meta[fmt.Sprint("key", i)] = value
		}
		for k, v := range meta {
			set = append(set, tp.WithMeta(k, v))
		}
		return set, meta
	}
	set, want := pairs(255, "")
	got := map[string]string{}
	require.Nil(t, client.Pull("/meta", 1, &got, set...).Xerror)
	require.Equal(t, want, func() map[string]string {
		m := maps.Clone(got)
		delete(m,
			proxy.HopsKey)
		return m
	}())

	set, _ = pairs(256, "")
	require.EqualError(t, client.Pull("/meta", 1, nil, set...).Xerror,
		"413 too large: 256 pairs of metadata leave no room for the proxy's tp-hops")

	// As much as just fits into the header.
	most := 64<<10 - 1000
	for client.Pull("/meta", 1, nil, tp.WithMeta("k", strings.Repeat("x", most))).Xerror == nil {
		most++
	}
	require.EqualError(t, client.Pull("/meta", 1, nil, tp.WithMeta("k", strings.Repeat("x", most))).Xerror,
		"413 too large: the header has no room for the proxy's tp-hops")
}
