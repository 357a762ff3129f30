package tp

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Bench is the controller of the benchmarks.
type Bench struct{ PullCtx }

func (*Bench) Echo(args *wrapperspb.StringValue) (*wrapperspb.StringValue, Xerror) { return args, nil }

// BenchmarkPull is one call end to end over TCP, both sides in this process.
func BenchmarkPull(b *testing.B) {
	for _, codec := range []string{"protobuf", "json"} {
		for _, callers := range []int{1, 16, 128} {
			b.Run(fmt.Sprintf("%s/callers=%d", codec, callers), func(b *testing.B) {
				srv, cli := newTestPeer(b, nil), newTestPeer(b, &PeerConfig{DefaultBodyCodec: codec})
				srv.PullRouter.Reg(new(Bench))
				sess := dial(b, cli, srv)
				args := wrapperspb.String("a message of about sixty bytes, as small calls have them...")
				b.ReportAllocs()
				work := make(chan struct{}, callers)
				done := make(chan struct{})
				for range callers {
					go func() {
						defer func() { done <- struct{}{} }()
						for range work {
							reply := new(wrapperspb.StringValue)
							if cmd := sess.Pull("/bench/echo", args, reply); cmd.Xerror != nil {
								b.Error(cmd.Xerror)
								return
							}
						}
					}()
				}
				for b.Loop() {
					work <- struct{}{}
				}
				close(work)
				for range callers {
					<-done
				}
			})
		}
	}
}
