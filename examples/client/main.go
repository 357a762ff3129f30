// Client pulls from examples/server and takes the push that the server's handler
// sends back.
package main

import (
	"flag"
	"time"

	tp "github.com/henrylee2cn/teleport"
)

var addr = flag.String("addr", "127.0.0.1:9090", "address of the server")

func main() {
	flag.Parse()
	peer := tp.NewPeer(&tp.PeerConfig{
		DefaultReadTimeout:   3 * time.Minute,
		DefaultWriteTimeout:  3 * time.Minute,
		DefaultBodyGzipLevel: 5,
	})
	defer peer.Close()
	pushed := make(chan struct{})
	peer.PushRouter.Reg(&Push{Done: pushed})

	sess, err := peer.Dial(*addr, "example server")
	if err != nil {
		tp.Fatalf("%v", err)
	}
	var reply map[string]interface{}
	cmd := sess.Pull("/group/home/test?peer_id=example-client", map[string]interface{}{"n": 1}, &reply)
	if cmd.Xerror != nil {
		tp.Fatalf("pull: %v", cmd.Xerror)
	}
	tp.Infof("reply: %v", reply)
	<-pushed

	var unknown []string
	if cmd := sess.Pull("/some/where", "who is there?", &unknown); cmd.Xerror != nil {
		tp.Fatalf("pull: %v", cmd.Xerror)
	}
	tp.Infof("reply of the unknown handler: %q", unknown)
}

// Push serves /push/...
type Push struct {
	tp.PushCtx
	Done chan struct{}
}

// Test takes the server's push.
func (p *Push) Test(args *map[string]interface{}) {
	tp.Infof("push from %s: %v, query %v", p.Ip(), *args, p.Query())
	close(p.Done)
}
