package tptest_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/tptest"
)

// newShop is a service that is to be tested.
func newShop(plugins ...tp.Plugin) *tp.Peer {
	peer := tp.NewPeer(nil, plugins...)
	tp.HandlePull(peer.PullRouter, "/order", func(ctx tp.PullCtx, item *string) (string, tp.Xerror) {
		if x := ctx.Session().Push("/ordered", *item); x != nil {
			return "", x
		}
		return "your " + *item, nil
	})
	return peer
}

// A test of a service. Here test calls the function as go test does.
func ExamplePair() {
	test(func(t testing.TB) {
		link := tptest.Pair(t, newShop(), tp.NewPeer(nil))
		fmt.Println(tp.Call[string](t.Context(), link.Client, "/order", "tea"))
	})
	// Output: your tea <nil>
}

// refuseAll is a plugin of a server that refuses everybody.
type refuseAll struct{}

func (refuseAll) Name() string { return "refuse all" }

func (refuseAll) PostAccept(tp.ForeSession) error {
	return tp.NewXerror(tp.StatusForbidden, "closed on Sundays")
}

// A test of a handshake that fails.
func ExampleTryPair() {
	test(func(t testing.TB) {
		_, err := tptest.TryPair(t, newShop(refuseAll{}), tp.NewPeer(nil))
		fmt.Println(err)
	})
	// Output: tptest: the peers did not connect: server: plugin refuse all: PostAccept: 403 closed on Sundays
}

// The connection is cut in the middle of a reply.
func ExampleWay_CutAfter() {
	test(func(t testing.TB) {
		link := tptest.Pair(t, newShop(), tp.NewPeer(nil))
		link.ToClient.CutAfter(100)
		cmd := link.Client.Pull("/order", strings.Repeat("tea", 100), nil)
		fmt.Println(cmd.Xerror.Code(), tp.NotRun(cmd.Xerror))
	})
	// Output: 101 false
}

// A slow line, and then a quick one.
func ExampleFaults() {
	test(func(t testing.TB) {
		slow := tptest.Faults{Delay: 10 * time.Millisecond, Bandwidth: 100_000}
		link := tptest.Pair(t, newShop(), tp.NewPeer(nil), tptest.Both(slow))
		began := time.Now()
		link.Client.Pull("/order", "tea", nil)
		fmt.Println("two ways:", time.Since(began) >= 20*time.Millisecond)
		link.Heal()
		fmt.Println(link.ToServer.Faults().Delay)
	})
	// Output:
	// two ways: true
	// 0s
}

// A client's session goes on when its connection is lost. The test decides about each dial.
func ExampleNetwork() {
	test(func(t testing.TB) {
		network := tptest.NewNetwork(t)
		network.Serve("shop:9090", newShop())
		client := tp.NewPeer(&tp.PeerConfig{Redial: &tp.Redial{}, DialContext: network.DialContext})
		link := network.Dial(client, "shop:9090")

		network.HoldDials()
		link.Cut()
		dial, err := network.NextDial(t.Context())
		fmt.Println("the client dials", dial.Address, err)
		dial.Refuse(nil)
		dial, err = network.NextDial(t.Context())
		fmt.Println("and again", dial.Address, err)
		dial.Allow()
		fmt.Println(tp.Call[string](t.Context(), link.Client, "/order", "tea"))
	})
	// Output:
	// the client dials shop:9090 <nil>
	// and again shop:9090 <nil>
	// your tea <nil>
}

// What has come to the client and to the server.
func ExampleRecorder() {
	test(func(t testing.TB) {
		here, there := new(tptest.Recorder), new(tptest.Recorder)
		client := tp.NewPeer(nil, here)
		tp.HandlePush(client.PushRouter, "/ordered", func(tp.PushCtx, *string) {})
		link := tptest.Pair(t, newShop(there), client)
		link.Client.Pull("/order?table=7", "tea", nil)

		there.AssertPulled(t, "/order", tptest.HasBody("tea"), tptest.HasQuery("table", "7"),
			tptest.HasStatus(tp.StatusOK))
		push, err := here.AwaitPush(t.Context(), "/ordered", 1)
		fmt.Println(push, err)
		item, err := tptest.BodyOf[string](push)
		fmt.Println(item, err)
	})
	// Output:
	// push /ordered "\"tea\"": 200 <nil>
	// tea <nil>
}
