// Client pulls from examples/server and takes the push that the server's handler
// sends back.
package main

import (
	"flag"
	"fmt"
	"time"

	tp "github.com/henrylee2cn/teleport"
)

var addr = flag.String("addr", "127.0.0.1:9090", "address of the server")

func main() {
	flag.Parse()
	pushed := make(chan struct{})
	peer := newPeer(pushed)
	defer peer.Close()
	sess, err := peer.Dial(*addr, "example server")
	if err != nil {
		tp.Fatalf("%v", err)
	}
	if err := talk(sess, pushed); err != nil {
		tp.Fatalf("%v", err)
	}
}

// newPeer makes the client, which closes pushed when the server's push has come.
func newPeer(pushed chan struct{}) *tp.Peer {
	peer := tp.NewPeer(&tp.PeerConfig{
		DefaultReadTimeout:   3 * time.Minute,
		DefaultWriteTimeout:  3 * time.Minute,
		DefaultBodyGzipLevel: 5,
	})
	peer.PushRouter.Reg(&Push{Done: pushed})
	return peer
}

// talk pulls twice, and waits for the push.
func talk(sess *tp.Session, pushed <-chan struct{}) error {
	var reply map[string]interface{}
	cmd := sess.Pull("/group/home/test?peer_id=example-client", map[string]interface{}{"n": 1}, &reply)
	if cmd.Xerror != nil {
		return fmt.Errorf("pull: %w", cmd.Xerror)
	}
	tp.Infof("reply: %v", reply)
	select {
	case <-pushed:
	case <-sess.Done():
		return fmt.Errorf("the push has not come: %w", sess.Err())
	}

	var unknown []string
	if cmd := sess.Pull("/some/where", "who is there?", &unknown); cmd.Xerror != nil {
		return fmt.Errorf("pull: %w", cmd.Xerror)
	}
	tp.Infof("reply of the unknown handler: %q", unknown)
	return nil
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
