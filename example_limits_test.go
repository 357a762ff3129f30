package tp_test

import (
	"fmt"
	"net"
	"time"

	tp "github.com/henrylee2cn/teleport"
)

// A server that anybody may connect to needs no configuration: every limit has a
// default. This one is stricter.
func ExamplePeerConfig_limits() {
	srv := tp.NewPeer(&tp.PeerConfig{
		MaxBodyBytes:        1 << 20,          // larger bodies are answered with 413
		MaxSessionHandlers:  1,                // a second pull at a time is answered with 429
		FrameTimeout:        5 * time.Second,  // whoever sends more slowly is disconnected
		DefaultReadTimeout:  10 * time.Minute, // and so is who says nothing
		DefaultWriteTimeout: 5 * time.Second,
		MaxSessions:         10_000,
	})
	defer srv.Close()
	running, release := make(chan struct{}), make(chan struct{})
	tp.HandlePull(srv.PullRouter, "/slow", func(tp.PullCtx, *string) (string, tp.Xerror) {
		close(running)
		<-release
		return "done", nil
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	go srv.Serve(ln)

	cli := tp.NewPeer(&tp.PeerConfig{DefaultPullTimeout: time.Minute})
	defer cli.Close()
	sess, err := cli.Dial(ln.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	first := sess.GoPull("/slow", "", new(string), nil)
	<-running
	fmt.Println(sess.Pull("/slow", "", nil).Xerror)
	fmt.Println(sess.Pull("/slow", make([]byte, 2<<20), nil, tp.WithBodyCodec("string")).Xerror)
	close(release)
	reply, _ := (<-first.Done()).Result()
	fmt.Println(*reply.(*string))
	// Output:
	// 429 too many handlers are running, the pull was not run
	// 413 packet: too large: body length 2097153 exceeds limit 1048576
	// done
}

// A server that sends positions to its players skips those that a slow player has no room for: the next one
// is newer.
func ExampleSession_TryPush() {
	player := tp.NewPeer(&tp.PeerConfig{MaxSessionHandlers: 1, MaxSessionInput: 100_000})
	defer player.Close()
	drawn := make(chan struct{})
	tp.HandlePush(player.PushRouter, "/position", func(tp.PushCtx, *[2]float64) { <-drawn })
	addr := serve(player)

	server := tp.NewPeer(nil)
	defer server.Close()
	sess, err := server.Dial(addr)
	if err != nil {
		fmt.Println(err)
		return
	}
	skipped := 0
	for i := range 1000 {
		if x := sess.TryPush("/position", [2]float64{float64(i), 0}); x != nil &&
			x.Code() == tp.StatusOverloaded {
			skipped++
		}
	}
	fmt.Println("some were skipped:", skipped > 0, "- the session goes on:", sess.Err() == nil)
	close(drawn)
	// Output:
	// some were skipped: true - the session goes on: true
}
