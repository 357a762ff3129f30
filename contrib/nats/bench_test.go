package nats_test

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/contrib/nats"
)

// spent is the processor's time of the process so far.
func spent() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkPull compares a pull from a session of the same server, of another server, and a bare request of
// NATS. All sides, and the broker, are in this process: cpu-us/op is what all of them take together.
func BenchmarkPull(b *testing.B) {
	srv := startBroker(b)
	all := nodes(b, 2, nats.URL(srv.ClientURL()))
	here, there := overTCP(b, all[0], "here"), overTCP(b, all[1], "there")
	for _, c := range []*client{here, there} {
		serveEcho(c.peer)
	}
	one, two := srv.dial(b), srv.dial(b)
	_, err := two.Subscribe("bare", func(m *natsgo.Msg) { _ = m.Respond(m.Data) })
	require.NoError(b, err)
	require.NoError(b, two.Flush())
	ctx := context.Background()
	for _, w := range []struct {
		name string
		f    func() error
	}{
		{"local", func() error { return pullOnce(ctx, all[0].Session("here")) }},
		{"elsewhere", func() error { return pullOnce(ctx, all[0].Session("there")) }},
		{"nats", func() error {
			_, err := one.RequestWithContext(ctx, "bare", []byte("12345678"))
			return err
		}},
	} {
		for _, callers := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/callers=%d", w.name, callers), func(b *testing.B) {
				b.ReportAllocs()
				before := spent()
				b.SetParallelism(max(callers/2, 1))
				if callers == 1 {
					for b.Loop() {
						if err := w.f(); err != nil {
							b.Fatal(err)
						}
					}
				} else {
					b.RunParallel(func(pb *testing.PB) {
						for pb.Next() {
							if err := w.f(); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				b.ReportMetric(float64((spent()-before).Nanoseconds())/1e3/float64(b.N), "cpu-us/op")
			})
		}
	}
}

func pullOnce(ctx context.Context, target nats.Target) error {
	n := 0
	if x := target.Pull(ctx, "/echo", 12345678, &n); x != nil {
		return x
	}
	return nil
}

// overTCP is connect over the loopback.
func overTCP(b *testing.B, n *node, id string) *client {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	defer ln.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, _ := ln.Accept()
		accepted <- conn
	}()
	c := &client{peer: tp.NewPeer(nil)}
	b.Cleanup(func() { c.peer.Close() })
	dialled, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(b, err)
	c.there, err = n.peer.ServeConn(<-accepted)
	require.NoError(b, err)
	c.here, err = c.peer.ServeConn(dialled)
	require.NoError(b, err)
	require.NoError(b, c.there.ReplaceId(id))
	require.NoError(b, n.Add(c.there))
	return c
}

// BenchmarkGroupPush pushes to 3,000 sessions, of one server without a broker and of three servers. It waits
// until all clients have handled each push, so that cpu-us/session is the whole way, the clients' side too.
func BenchmarkGroupPush(b *testing.B) {
	const n = 3000
	srv := startBroker(b)
	for _, w := range []struct {
		name    string
		servers []*node
		option  []nats.GroupOption
	}{
		{"one server", crowdNodes(b, 1), nil},
		{"three servers", crowdNodes(b, 3, nats.URL(srv.ClientURL())), nil},
	} {
		b.Run(w.name, func(b *testing.B) {
			c := newCrowd(b, w.servers, n)
			defer c.clients.Close()
			room := w.servers[0].Group("room")
			push := func() {
				want := c.all.Load() + n
				if d := room.Push("/note", "hello"); d.Err != nil {
					b.Fatal(d.Err)
				}
				for c.all.Load() < want {
					time.Sleep(50 * time.Microsecond)
				}
			}
			push()
			before := spent()
			b.ReportAllocs()
			for b.Loop() {
				push()
			}
			b.ReportMetric(float64((spent()-before).Nanoseconds())/1e3/float64(b.N)/n, "cpu-us/session")
		})
	}
}

// BenchmarkHistoryPush is a push to a group with a history, kept in a file by one broker, until the broker
// has said so; members are on two servers.
func BenchmarkHistoryPush(b *testing.B) {
	srv := startBroker(b)
	all := nodes(b, 2, nats.URL(srv.ClientURL()))
	rooms := kept(all, 1000, time.Hour)
	for i, n := range all {
		newFan(b).join(b, n, rooms[i])
	}
	for _, pushers := range []int{1, 64} {
		b.Run(fmt.Sprint("pushers=", pushers), func(b *testing.B) {
			before := spent()
			b.ReportAllocs()
			b.SetParallelism(max(pushers/2, 1))
			push := func() {
				if d := rooms[0].Push("/note", "hello"); d.Err != nil {
					b.Error(d.Err)
				}
			}
			if pushers == 1 {
				for b.Loop() {
					push()
				}
			} else {
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						push()
					}
				})
			}
			b.ReportMetric(float64((spent()-before).Nanoseconds())/1e3/float64(b.N), "cpu-us/op")
		})
	}
}

// BenchmarkNames measures what a name of a session costs: its subscription here and on the broker, which is
// in this process, and the claim that another server hears.
func BenchmarkNames(b *testing.B) {
	const n = 10_000
	srv := startBroker(b)
	all := nodes(b, 2, nats.URL(srv.ClientURL()))
	var sessions []*client
	var names [][]string
	for i := range 100 {
		sessions = append(sessions, all[0].connect(b, fmt.Sprint("c", i)))
		names = append(names, nil)
		for j := range n / 100 {
			names[i] = append(names[i], fmt.Sprint("user-", i, "-", j))
		}
	}
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc + m.StackInuse)
	}
	idle, before := heap(), spent()
	rounds := 0
	for b.Loop() {
		for i, c := range sessions {
			require.NoError(b, all[0].Add(c.there, names[i]...))
		}
		if rounds++; rounds == 1 {
			b.StopTimer()
			held := heap() - idle
			defer func() { b.ReportMetric(float64(held)/n, "B/name") }()
			b.StartTimer()
		}
		for _, c := range sessions {
			all[0].Remove(c.there)
		}
	}
	b.ReportMetric(float64((spent()-before).Nanoseconds())/1e3/float64(b.N)/n, "cpu-us/name")
}
