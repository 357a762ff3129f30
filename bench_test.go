package tp

import (
	"context"
	"fmt"
	"io"
	"net"
	"reflect"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/henrylee2cn/teleport/internal/uri"
	"github.com/henrylee2cn/teleport/packet"
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

// BenchmarkRoute finds the handler of a URI among a thousand.
func BenchmarkRoute(b *testing.B) {
	p := newTestPeer(b, nil)
	for i := range 1000 {
		HandlePull(p.PullRouter.Group("group"), fmt.Sprintf("/route%d", i), func(PullCtx, *int) (int,
			Xerror) {
			return 0, nil
		})
	}
	p.PullRouter.Group("open").SetUnknown(func(UnknownPullCtx, *[]byte) (interface{}, Xerror) {
		return nil, nil
	})
	table := p.PullRouter.routes.table.Load()
	for _, tc := range []struct {
		name, uri string
		found     bool
	}{
		{"exact", "/group/route500", true},
		{"query", "/group/route500?a=b&c=d", true},
		{"escaped", "/group/route%3500", true},
		{"unknown", "/open/anything", true},
		{"none", "/group/nothing", false},
	} {
		b.Run(tc.name, func(b *testing.B) {
			came := []byte(tc.uri)
			b.ReportAllocs()
			for b.Loop() {
				h := table.handlers[string(came)]
				if h == nil {
					canonical, err := canonicalURI(tc.uri)
					if err != nil {
						b.Fatal(err)
					}
					path, _ := uri.Split(canonical)
					h = table.find(path)
				}
				if (h != nil) != tc.found {
					b.Fatal(h)
				}
			}
		})
	}
}

// feed is a connection on which the same frame arrives again and again, in
// batches, and on which nothing that is written arrives anywhere.
type feed struct {
	net.Conn
	frame []byte
	batch int
	left  int           // frames
	ahead func() int    // how many of those that were read are not handled yet, where that has a bound
	empty chan struct{} // closed when a read finds none left
}

func (f *feed) Read(b []byte) (int, error) {
	// Who does not ask for credit and pushes beyond what may wait is cut off.
	for most := min(f.left, 1000); f.ahead != nil && f.ahead() > most; {
		runtime.Gosched()
	}
	if f.left == 0 {
		close(f.empty)
		return 0, io.EOF
	}
	n := 0
	for i := 0; i < f.batch && f.left > 0 && len(b)-n >= len(f.frame); i++ {
		n += copy(b[n:], f.frame)
		f.left--
	}
	return n, nil
}

func (f *feed) Write(b []byte) (int, error)      { return len(b), nil }
func (f *feed) Close() error                     { return nil }
func (f *feed) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (f *feed) SetReadDeadline(time.Time) error  { return nil }
func (f *feed) SetWriteDeadline(time.Time) error { return nil }

// serveFeed makes a peer with routes for the benchmarks and returns what serves n
// packets of the type, with the URI and the body.
func serveFeed(t testing.TB, typ int32, uri string, body *wrapperspb.StringValue) (run func(n int)) {
	srv := newTestPeer(t, nil)
	srv.PullRouter.Reg(new(Bench))
	HandlePull(srv.PullRouter, "/echo",
		func(_ PullCtx, args *wrapperspb.StringValue) (*wrapperspb.StringValue, Xerror) {
			return args, nil
		})
	var noted atomic.Int64
	HandlePush(srv.PushRouter, "/note", func(PushCtx, *wrapperspb.StringValue) { noted.Add(1) })
	frame, err := packet.Append(nil, &packet.Packet{
		BodyCodec: "protobuf",
		Header:    &packet.Header{Id: "12345", Type: typ, Uri: uri},
		Body:      body,
	}, packet.Limits{})
	require.NoError(t, err)
	return func(n int) {
		f := &feed{frame: frame, batch: 32, left: n, empty: make(chan struct{})}
		if typ == packet.TypePush {
			noted.Store(0)
			f.ahead = func() int { return n - f.left - int(noted.Load()) }
		}
		sess, err := srv.ServeConn(f)
		require.NoError(t, err)
		select {
		case <-f.empty:
		case <-sess.Done():
			require.Zero(t, f.left, "%v", sess.Err())
		}
	}
}

// BenchmarkServe is the serving side of a call alone, with quick handlers: from
// the read buffer to the buffer of what is written.
func BenchmarkServe(b *testing.B) {
	args := wrapperspb.String("a message of about sixty bytes, as small calls have them...")
	for _, tc := range []struct {
		name string
		typ  int32
		uri  string
	}{
		{"controller", packet.TypePull, "/bench/echo"},
		{"function", packet.TypePull, "/echo"},
		{"function-with-query", packet.TypePull, "/echo?a=b"},
		{"unknown-route", packet.TypePull, "/nowhere"},
		{"push", packet.TypePush, "/note"},
	} {
		b.Run(tc.name, func(b *testing.B) {
			run := serveFeed(b, tc.typ, tc.uri, args)
			run(1000) // until the route is known to be quick
			b.ReportAllocs()
			b.ResetTimer()
			run(b.N)
		})
	}
}

// BenchmarkPullContext is one call with and without an end of its time.
func BenchmarkPullContext(b *testing.B) {
	srv := newTestPeer(b, nil)
	HandlePull(srv.PullRouter, "/bench/func",
		func(_ PullCtx, args *wrapperspb.StringValue) (*wrapperspb.StringValue, Xerror) {
			return args, nil
		})
	sess := dial(b, newTestPeer(b, &PeerConfig{DefaultBodyCodec: "protobuf"}), srv)
	args := wrapperspb.String("a message of about sixty bytes, as small calls have them...")
	hour, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	call := func(b *testing.B, ctx context.Context) {
		if x := sess.PullContext(ctx, "/bench/func", args, new(wrapperspb.StringValue)).Xerror; x != nil {
			b.Fatal(x)
		}
	}
	b.Run("none", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			call(b, context.Background())
		}
	})
	b.Run("deadline", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			call(b, hour)
		}
	})
	b.Run("own deadline", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
			call(b, ctx)
			cancel()
		}
	})
}

// BenchmarkManyPullContexts is many calls at once, with and without a deadline, which
// is one and the same.
func BenchmarkManyPullContexts(b *testing.B) {
	srv := newTestPeer(b, nil)
	srv.PullRouter.Reg(new(Bench))
	sess := dial(b, newTestPeer(b, &PeerConfig{DefaultBodyCodec: "protobuf"}), srv)
	args := wrapperspb.String("a message of about sixty bytes, as small calls have them...")
	hour, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	for name, ctx := range map[string]context.Context{"none": context.Background(), "deadline": hour} {
		b.Run(name, func(b *testing.B) {
			b.SetParallelism(64)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if x := sess.PullContext(ctx, "/bench/echo", args,
						new(wrapperspb.StringValue)).Xerror; x != nil {
						b.Error(x)
					}
				}
			})
		})
	}
}

// Value replies with a value, which a controller's method needs reflect.Call for.
func (*Bench) Value(args *wrapperspb.StringValue) (int, Xerror) { return len(args.Value), nil }

// BenchmarkHandler is the call of a handler alone.
func BenchmarkHandler(b *testing.B) {
	p := newTestPeer(b, nil)
	p.PullRouter.Reg(new(Bench))
	HandlePull(p.PullRouter, "/func/echo",
		func(_ PullCtx, args *wrapperspb.StringValue) (*wrapperspb.StringValue, Xerror) {
			return args, nil
		})
	HandlePull(p.PullRouter, "/func/value", func(_ PullCtx, args *wrapperspb.StringValue) (int, Xerror) {
		return len(args.Value), nil
	})
	for _, path := range []string{"/bench/echo", "/func/echo", "/bench/value", "/func/value"} {
		h := p.PullRouter.routes.table.Load().handlers[path]
		b.Run(path[1:], func(b *testing.B) {
			c := new(call)
			arg := h.newArg()
			b.ReportAllocs()
			for b.Loop() {
				if _, x := h.call(c, arg); x != nil {
					b.Fatal(x)
				}
			}
		})
	}
	b.Run("reflect.Call", func(b *testing.B) {
		fn := reflect.ValueOf((*Bench).Value)
		in := []reflect.Value{reflect.ValueOf(new(Bench)), reflect.ValueOf(wrapperspb.String(""))}
		b.ReportAllocs()
		for b.Loop() {
			fn.Call(in)
		}
	})
}
