//go:build !race

package tp

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/henrylee2cn/teleport/packet"
)

const allocText = "a message of about sixty bytes, as small calls have them..."

// requireAllocs shows that one of many calls, which run makes, costs at most so
// many allocations. It tries more than once, for the system may take the
// processor away and make what is quick look as if it were not.
func requireAllocs(t *testing.T, most float64, run func(calls int)) {
	t.Helper()
	const calls = 5000
	var got float64
	for range 5 {
		got = testing.AllocsPerRun(1, func() { run(calls) }) / calls
		t.Logf("%.3f allocations", got)
		if got < most+0.1 { // what a connection costs is shared by its calls
			return
		}
	}
	require.Less(t, got, most+0.1)
}

// Serving one call of a quick route costs the context, the argument and what the
// codec makes.
func TestAllocsOfServing(t *testing.T) {
	for _, c := range []struct {
		name string
		typ  int32
		uri  string
		most float64
	}{
		{"function", packet.TypePull, "/echo", 3},
		{"controller", packet.TypePull, "/bench/echo", 4},
		{"push", packet.TypePush, "/note", 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			requireAllocs(t, c.most, serveFeed(t, c.typ, c.uri, wrapperspb.String(allocText)))
		})
	}
}

// A whole call over TCP, both sides together, the caller's reply included.
func TestAllocsOfPull(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, &PeerConfig{DefaultBodyCodec: "protobuf"})
	srv.PullRouter.Reg(new(Bench))
	sess := dial(t, cli, srv)
	args := wrapperspb.String(allocText)
	requireAllocs(t, 7, func(calls int) {
		for range calls {
			reply := new(wrapperspb.StringValue)
			if cmd := sess.Pull("/bench/echo", args, reply); cmd.Xerror != nil {
				t.Fatal(cmd.Xerror)
			}
		}
	})
}

// A whole push over TCP, both sides together.
func TestAllocsOfPush(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, &PeerConfig{DefaultBodyCodec: "protobuf"})
	got := make(chan struct{}, 1)
	HandlePush(srv.PushRouter, "/note", func(PushCtx, *wrapperspb.StringValue) { got <- struct{}{} })
	sess := dial(t, cli, srv)
	args := wrapperspb.String(allocText)
	requireAllocs(t, 4, func(calls int) {
		for range calls {
			if x := sess.Push("/note", args); x != nil {
				t.Fatal(x)
			}
			<-got
		}
	})
}
