package partition

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/netns"
	"github.com/henrylee2cn/teleport/plugin/heartbeat"
)

var long = flag.Bool("long", false, "wait two minutes for calls to end, with heartbeats of 2 s")

func TestMain(m *testing.M) {
	tp.SetLogLevel(tp.LevelOff)
	flag.Parse()
	netns.Check()
	os.Exit(m.Run())
}

// wire is what a system is made on: the server's listener, how the client dials it, and where the handler of
// the call that is never answered says that the call has come.
type wire struct {
	ln      net.Listener
	dial    func(ctx context.Context, addr string) (net.Conn, error)
	arrived chan struct{}
}

// system makes a server and a client of it, and returns a function that makes a call which is never answered,
// and that returns when the call has ended.
type system func(t *testing.T, w *wire) func(ctx context.Context)

func teleport(cfg tp.PeerConfig, plugins ...func() tp.Plugin) system {
	return func(t *testing.T, w *wire) func(context.Context) {
		var here, there []tp.Plugin
		for _, plugin := range plugins {
			here, there = append(here, plugin()), append(there, plugin())
		}
		dialling := cfg
		dialling.DialContext = func(ctx context.Context, _, addr string) (net.Conn, error) {
			return w.dial(ctx, addr)
		}
		srv, cli := tp.NewPeer(&cfg, there...), tp.NewPeer(&dialling, here...)
		tp.HandlePull(srv.PullRouter, "/wait", func(ctx tp.PullCtx, _ *string) (string, tp.Xerror) {
			w.arrived <- struct{}{}
			<-ctx.Context().Done()
			return "", nil
		})
		go func() { _ = srv.Serve(w.ln) }()
		sess, err := cli.Dial(w.ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = cli.Close(), srv.Close() })
		return func(ctx context.Context) { _ = sess.PullContext(ctx, "/wait", "", nil) }
	}
}

func grpcGo(t *testing.T, w *wire) func(context.Context) {
	srv := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		w.arrived <- struct{}{}
		<-s.Context().Done()
		return nil
	}))
	go func() { _ = srv.Serve(w.ln) }()
	cc, err := grpc.NewClient("passthrough:///"+w.ln.Addr().String(), grpc.WithContextDialer(w.dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close(); srv.Stop() })
	return func(ctx context.Context) {
		_ = cc.Invoke(ctx, "/x/Wait", new(emptypb.Empty), new(emptypb.Empty))
	}
}

// Two calls on a connection whose packets are lost: one has waited since before that, and one is made
// afterwards. Alone, the first says nothing that the kernel could miss.
func TestSilentNetwork(t *testing.T) {
	if !netns.Inside(t, fmt.Sprintf("-long=%v", *long)) {
		return
	}
	every, patience := 200*time.Millisecond, 3*time.Second
	if *long {
		every, patience = 2*time.Second, 2*time.Minute
	}
	beat := func() tp.Plugin { return heartbeat.New(heartbeat.Every(every), heartbeat.Misses(3)) }
	for name, s := range map[string]system{
		fmt.Sprintf("teleport, heartbeat %v x 3", every): teleport(tp.PeerConfig{}, beat),
		"teleport, its defaults":                         teleport(tp.PeerConfig{}),
		"grpc-go, its defaults":                          grpcGo,
	} {
		for _, waits := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, waiting=%v", name, waits), func(t *testing.T) {
				t.Parallel()
				n, err := netns.New()
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(n.Close)
				w := &wire{arrived: make(chan struct{}, 10)}
				n.Server.Do(func() { w.ln, err = net.Listen("tcp4", netns.Address+":0") })
				if err != nil {
					t.Fatal(err)
				}
				w.dial = func(ctx context.Context, addr string) (conn net.Conn, err error) {
					if !n.Client.Do(func() { conn, err = new(net.Dialer).DialContext(ctx, "tcp4", addr) }) {
						err = errors.New("the test is over")
					}
					return conn, err
				}
				call := s(t, w)
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				ended := make(chan time.Time, 2)
				first, giveUp := context.WithCancel(ctx)
				defer giveUp()
				go func() { call(first); ended <- time.Now() }()
				<-w.arrived
				if !waits { // it has only shown that there is a connection
					giveUp()
					<-ended
				}
				if err := n.Lose(); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				if !waits {
					go func() { call(ctx); ended <- time.Now() }()
				}
				took := (<-ended).Sub(start)
				if ctx.Err() == nil {
					t.Logf("FIGURE ended after %v", took.Round(10*time.Millisecond))
				} else {
					t.Logf("FIGURE not ended after %v", patience)
				}
				if ctx.Err() != nil && strings.Contains(name, "heartbeat") {
					t.Error("the heartbeat has not ended the call")
				}
			})
		}
	}
}
