// Server is the counterpart of examples/client: a controller, a handler for
// unknown pulls, and an orderly end on SIGINT or SIGTERM.
package main

import (
	"flag"
	"time"

	tp "github.com/henrylee2cn/teleport"
)

var addr = flag.String("addr", "127.0.0.1:9090", "address to listen on; port 0 takes a free one")

func main() {
	flag.Parse()
	go tp.GraceSignal()
	tp.SetShutdown(20*time.Second, nil, nil)
	if err := newPeer().Listen(); err != nil {
		tp.Fatalf("%v", err)
	}
}

// newPeer makes the server. Plugins are for tests.
func newPeer(plugins ...tp.Plugin) *tp.Peer {
	peer := tp.NewPeer(&tp.PeerConfig{
		DefaultReadTimeout:   3 * time.Minute,
		DefaultWriteTimeout:  3 * time.Minute,
		SlowCometDuration:    500 * time.Millisecond,
		DefaultBodyGzipLevel: 5,
		PrintBody:            true,
		ListenAddrs:          []string{*addr},
	}, plugins...)
	peer.PullRouter.Group("group").Reg(new(Home))
	peer.PullRouter.SetUnknown(unknownPull)
	return peer
}

// Home serves /group/home/...
type Home struct {
	tp.PullCtx
}

// Test pushes something to its caller and answers with what it was sent.
func (h *Home) Test(args *map[string]interface{}) (map[string]interface{}, tp.Xerror) {
	if err := h.Session().Push("/push/test?tag=from home", map[string]interface{}{
		"your_id": h.Query().Get("peer_id"),
	}); err != nil {
		return nil, err
	}
	return map[string]interface{}{
		"your_args":   *args,
		"server_time": time.Now(),
	}, nil
}

// unknownPull answers every pull that has no handler of its own.
func unknownPull(ctx tp.UnknownPullCtx, body *[]byte) (interface{}, tp.Xerror) {
	var v interface{}
	codecName, err := ctx.Unmarshal(*body, &v, true)
	if err != nil {
		return nil, tp.NewXerror(tp.StatusBadRequest, err.Error())
	}
	tp.Infof("unknown pull %s: codec %s, content %v", ctx.Path(), codecName, v)
	return []string{"nobody", "serves", ctx.Path()}, nil
}
