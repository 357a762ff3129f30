// Reboot is a server that can be replaced while it is under load, and the load.
// See README.md.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	tp "github.com/henrylee2cn/teleport"
)

// version is what a new build changes.
var version = "1"

var (
	addr = flag.String("addr", "127.0.0.1:9090", "address of the server")
	load = flag.Duration("load", 0, "be the load, for so long, instead of the server")
)

func main() {
	flag.Parse()
	if *load > 0 {
		pull(*load)
		return
	}
	go tp.GraceSignal() // SIGUSR2 reboots, SIGTERM and SIGINT drain and end
	peer := tp.NewPeer(&tp.PeerConfig{ListenAddrs: []string{*addr}})
	tp.HandlePull(peer.PullRouter, "/who", func(tp.PullCtx, *string) (string, tp.Xerror) {
		return fmt.Sprintf("version %s, process %d", version, os.Getpid()), nil
	})
	if peer.Listen() != nil {
		os.Exit(1)
	}
}

// pull pulls for so long, on one session, and says who answers when that changes.
func pull(d time.Duration) {
	peer := tp.NewPeer(&tp.PeerConfig{Redial: &tp.Redial{}}) // the session outlives the server
	defer peer.Close()
	sess, err := peer.Dial(*addr)
	if err != nil {
		tp.Fatalf("%v", err)
	}
	var pulls, failed int
	var last string
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		var who string
		pulls++
		if x := sess.Pull("/who", "", &who).Xerror; x != nil {
			fmt.Println(x)
			failed++
		} else if who != last {
			last = who
			fmt.Println(who)
		}
	}
	fmt.Printf("%d pulls, %d failed\n", pulls, failed)
}
