package tp

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// BenchmarkCluster is one call over TCP: by a session, by sessions to three servers, and by clusters of
// these, which shows what the choice of a server costs. All of them run in this process.
func BenchmarkCluster(b *testing.B) {
	for _, callers := range []int{1, 128} {
		for _, by := range []string{"session", "3 sessions", "1 server", "3 servers", "round robin",
			"hash", "hedged"} {
			b.Run(fmt.Sprintf("callers=%d/%s", callers, by), func(b *testing.B) {
				cli := newTestPeer(b, &PeerConfig{DefaultBodyCodec: "protobuf"})
				var list []Server
				for range 3 {
					srv := newTestPeer(b, nil)
					srv.PullRouter.Reg(new(Bench))
					list = append(list, Server{Addr: serve(b, srv)})
				}
				if by == "session" || by == "1 server" {
					list = list[:1]
				}
				var of []Caller
				if strings.Contains(by, "session") {
					for _, s := range list {
						sess, err := cli.Dial(s.Addr)
						require.NoError(b, err)
						of = append(of, sess)
					}
				} else {
					option := map[string][]ClusterOption{"round robin": {RoundRobin()},
						"hash": {ConsistentHash(2)}, "hedged": {Hedge(0), Idempotent()}}[by]
					c := newTestCluster(b, cli, servers(list...), option...)
					for len(connected(c)) < len(list) {
						<-c.fleet.choices.Load().changed
					}
					of = append(of, c)
				}
				args := wrapperspb.String("a message of about sixty bytes, as small calls have them...")
				var wg sync.WaitGroup
				work := make(chan struct{}, callers)
				for i := range callers {
					caller := of[i%len(of)]
					wg.Go(func() {
						for range work {
							reply := new(wrapperspb.StringValue)
							if cmd := caller.Pull("/bench/echo", args, reply); cmd.Xerror != nil {
								b.Error(cmd.Xerror)
								return
							}
						}
					})
				}
				b.ReportAllocs()
				for b.Loop() {
					work <- struct{}{}
				}
				close(work)
				wg.Wait()
			})
		}
	}
}
