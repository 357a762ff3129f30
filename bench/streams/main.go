//go:build unix

// Program streams compares streams with those of grpc-go, and with a bare TCP connection: the same message,
// both sides in this process, by 127.0.0.1, in turns. Printed are medians of the rounds, and the medians of
// the rounds' own quotients.
//
//	go run ./streams -rounds 5
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/pprof"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/bench/payload"
)

func main() {
	rounds := flag.Int("rounds", 5, "how often each is measured")
	messages := flag.Int("messages", 300_000, "one way, and a tenth of them there and back")
	mib := flag.Int64("mib", 512, "how many MiB are copied")
	profile := flag.String("profile", "", "write a profile of the CPU into this file")
	only := flag.String("only", "", "measure only the system with this name")
	late := flag.Bool("late", false, "measure only how late small calls are beside others")
	flag.Parse()
	if *profile != "" {
		f, err := os.Create(*profile)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		defer f.Close()
		_ = pprof.StartCPUProfile(f)
		defer pprof.StopCPUProfile()
	}
	if err := run(*rounds, *messages, *mib<<20, *only, *late); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// result is what one run has taken.
type result struct {
	rate float64 // a second: messages, round trips or bytes
	cpu  float64 // microseconds of all processors for each, or for each MiB
}

// system can be measured: each function does n of something.
type system struct {
	name                   string
	oneWay, pingPong, copy func(n int64) error
	pull                   func() error            // a small call beside others
	echo                   func(body []byte) error // a call with a large body there and back
	close                  func()
}

func cpuTime() time.Duration {
	var ru syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

func measure(n int64, unit int64, f func(n int64) error) (result, error) {
	began, used := time.Now(), cpuTime()
	if err := f(n); err != nil {
		return result{}, err
	}
	took, cpu := time.Since(began), cpuTime()-used
	units := float64(n) / float64(unit)
	return result{float64(n) / took.Seconds(), float64(cpu.Microseconds()) / units}, nil
}

func run(rounds, messages int, size int64, only string, late bool) error {
	ours, err := teleport()
	if err != nil {
		return err
	}
	defer ours.close()
	theirs, err := grpcStreams()
	if err != nil {
		return err
	}
	defer theirs.close()
	if late {
		return beside([]system{ours, theirs}, rounds, size, only)
	}
	bare, err := bareTCP()
	if err != nil {
		return err
	}
	defer bare.close()
	for _, w := range []struct {
		name string
		n    int64
		unit int64
		of   func(s system) func(int64) error
	}{
		{"one way, messages/s", int64(messages), 1, func(s system) func(int64) error { return s.oneWay }},
		{"there and back, round trips/s", int64(messages / 10), 1,
			func(s system) func(int64) error { return s.pingPong }},
		{"copy, bytes/s", size, 1 << 20, func(s system) func(int64) error { return s.copy }},
	} {
		all := map[string][]result{}
		systems := []system{ours, theirs, bare}
		for round := range rounds + 1 { // the first is a warm-up
			for i := range systems {
				s := systems[(i+round)%len(systems)]
				f := w.of(s)
				if f == nil || only != "" && s.name != only {
					continue
				}
				n := w.n
				if round == 0 {
					n /= 10
				}
				r, err := measure(n, w.unit, f)
				if err != nil {
					return fmt.Errorf("%s of %s: %w", w.name, s.name, err)
				}
				if round > 0 {
					all[s.name] = append(all[s.name], r)
				}
			}
		}
		fmt.Println(w.name)
		for _, s := range systems {
			if rs := all[s.name]; rs != nil {
				fmt.Printf("  %-6s %14.0f   CPU %8.2f us   %s has %.2f of its rate and %.2f of its CPU\n",
					s.name,
					median(rs, func(r result) float64 { return r.rate }),
					median(rs, func(r result) float64 { return r.cpu }), ours.name,
					quotients(all[ours.name], rs, func(r result) float64 { return r.rate }),
					quotients(all[ours.name], rs, func(r result) float64 { return r.cpu }))
			}
		}
	}
	return beside([]system{ours, theirs}, rounds, size, only)
}

// beside measures small calls of 16 callers, alone and while much goes by the same connection.
func beside(systems []system, rounds int, size int64, only string) error {
	loads := []struct {
		name string
		f    func(s system) error // sends size bytes
	}{
		{"alone", func(system) error { time.Sleep(300 * time.Millisecond); return nil }},
		{"beside a copy", func(s system) error { return s.copy(size) }},
		{"beside one that echoes 8 MiB", func(s system) error { return echoes(s, 1, 8<<20, size) }},
		{"beside four that echo 1 MiB", func(s system) error { return echoes(s, 4, 1<<20, size) }},
	}
	fmt.Println("16 callers of small calls, 99th percentile")
	late, rates := map[string][]float64{}, map[string][]float64{}
	for range rounds {
		for _, s := range systems {
			if only != "" && s.name != only {
				continue
			}
			for _, l := range loads {
				var took time.Duration
				p, err := percentile(s, func() error {
					began := time.Now()
					err := l.f(s)
					took = time.Since(began)
					return err
				})
				if err != nil {
					return fmt.Errorf("%s, %s: %w", s.name, l.name, err)
				}
				key := s.name + l.name
				late[key] = append(late[key], p)
				rates[key] = append(rates[key], float64(size)/took.Seconds()/1e9)
			}
		}
	}
	for _, s := range systems {
		for _, l := range loads {
			key := s.name + l.name
			if len(late[key]) == 0 {
				continue
			}
			p := middle(late[key])
			fmt.Printf("  %-6s %-30s %6.2f ms, %5.1f times", s.name, l.name, p,
				p/middle(late[s.name+loads[0].name]))
			if l.name != loads[0].name {
				fmt.Printf(", %5.2f GB/s each way", middle(rates[key]))
			}
			fmt.Println()
		}
	}
	return nil
}

// echoes has so many callers echo bodies of the length until they have sent size bytes together.
func echoes(s system, callers int, length, size int64) error {
	var left atomic.Int64
	left.Store(size / length)
	errs := make(chan error, callers)
	for range callers {
		go func() {
			body := make([]byte, length)
			for left.Add(-1) >= 0 {
				if err := s.echo(body); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	var first error
	for range callers {
		if err := <-errs; first == nil {
			first = err
		}
	}
	return first
}

// percentile returns the 99th percentile of the calls, in milliseconds, that were made while f ran.
func percentile(s system, f func() error) (float64, error) {
	var over atomic.Bool
	var mu sync.Mutex
	var all []time.Duration
	var wg sync.WaitGroup
	var failed error
	for range 16 {
		wg.Go(func() {
			var own []time.Duration
			for !over.Load() {
				began := time.Now()
				if err := s.pull(); err != nil {
					mu.Lock()
					failed = err
					mu.Unlock()
					return
				}
				own = append(own, time.Since(began))
			}
			mu.Lock()
			all = append(all, own...)
			mu.Unlock()
		})
	}
	err := f()
	over.Store(true)
	wg.Wait()
	if err == nil {
		err = failed
	}
	slices.Sort(all)
	return float64(all[len(all)*99/100].Microseconds()) / 1000, err
}

func median(rs []result, of func(result) float64) float64 {
	var list []float64
	for _, r := range rs {
		list = append(list, of(r))
	}
	return middle(list)
}

// middle returns the median.
func middle(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}

func quotients(a, b []result, of func(result) float64) float64 {
	var list []float64
	for i := range a {
		list = append(list, of(a[i])/of(b[i]))
	}
	return middle(list)
}

func teleport() (system, error) {
	srv, cli := tp.NewPeer(nil), tp.NewPeer(&tp.PeerConfig{DefaultBodyCodec: "protobuf"})
	type messages = tp.Stream[payload.Message, payload.Message]
	tp.HandleStream(srv.PullRouter, "/sink", func(_ tp.PullCtx, s *messages) tp.Xerror {
		for _, err := range s.All() {
			if err != nil {
				return tp.NewXerror(500, err.Error())
			}
		}
		return nil
	})
	tp.HandleStream(srv.PullRouter, "/echo", func(_ tp.PullCtx, s *messages) tp.Xerror {
		for m, err := range s.All() {
			if err != nil {
				return tp.NewXerror(500, err.Error())
			}
			if err := s.Send(m); err != nil {
				return tp.NewXerror(500, err.Error())
			}
		}
		return nil
	})
	tp.HandlePull(srv.PullRouter, "/bulk",
		func(_ tp.PullCtx, body *[]byte) ([]byte, tp.Xerror) { return *body, nil })
	tp.HandlePull(srv.PullRouter, "/small",
		func(_ tp.PullCtx, m *payload.Message) (*payload.Message, tp.Xerror) { return m, nil })
	tp.HandleStream(srv.PullRouter, "/copy", func(_ tp.PullCtx, s *tp.Stream[int64, []byte]) tp.Xerror {
		n, err := io.Copy(io.Discard, s.Reader())
		if err != nil {
			return tp.NewXerror(500, err.Error())
		}
		_ = s.Send(&n)
		return nil
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return system{}, err
	}
	go srv.Serve(ln)
	sess, err := cli.Dial(ln.Addr().String())
	if err != nil {
		return system{}, err
	}
	by := func(uri string, f func(s *messages, m *payload.Message) error) error {
		s, err := tp.OpenStream[payload.Message, payload.Message](context.Background(), sess, uri)
		if err != nil {
			return err
		}
		defer s.Close()
		return f(s, payload.New(nil))
	}
	return system{
		name: "tp",
		oneWay: func(n int64) error {
			return by("/sink", func(s *messages, m *payload.Message) error {
				for range n {
					if err := s.Send(m); err != nil {
						return err
					}
				}
				_ = s.CloseSend()
				_, err := s.Recv()
				if err == io.EOF {
					return nil
				}
				return err
			})
		},
		pingPong: func(n int64) error {
			return by("/echo", func(s *messages, m *payload.Message) (err error) {
				for range n {
					if err = s.Send(m); err != nil {
						return err
					}
					if m, err = s.Recv(); err != nil {
						return err
					}
				}
				return nil
			})
		},
		copy: func(n int64) error {
			s, err := tp.OpenStream[[]byte, int64](context.Background(), sess, "/copy",
				tp.WithBodyCodec("json"))
			if err != nil {
				return err
			}
			defer s.Close()
			w := s.Writer()
			if _, err := io.Copy(w, &zeros{n}); err != nil {
				return err
			}
			_ = w.Close()
			got, err := s.Recv()
			if err == nil && *got != n {
				err = fmt.Errorf("%d of %d bytes", *got, n)
			}
			return err
		},
		pull: func() error {
			if x := sess.Pull("/small", payload.New(nil), new(payload.Message)).Xerror; x != nil {
				return x
			}
			return nil
		},
		echo: func(body []byte) error {
			var got []byte
			if x := sess.Pull("/bulk", body, &got, tp.WithBodyCodec("string")).Xerror; x != nil {
				return x
			}
			if len(got) != len(body) {
				return fmt.Errorf("%d of %d bytes came back", len(got), len(body))
			}
			return nil
		},
		close: func() { cli.Close(); srv.Close() },
	}, nil
}

// zeros is so many bytes.
type zeros struct{ left int64 }

func (z *zeros) Read(p []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), z.left)
	z.left -= n
	return int(n), nil
}

func grpcStreams() (system, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return system{}, err
	}
	const most = 64 << 20
	s := grpc.NewServer(grpc.MaxRecvMsgSize(most), grpc.MaxSendMsgSize(most))
	handler := func(each func(m *payload.Message, s grpc.ServerStream) error,
		end func(s grpc.ServerStream) error) grpc.StreamHandler {
		return func(_ any, s grpc.ServerStream) error {
			for {
				m := new(payload.Message)
				switch err := s.RecvMsg(m); {
				case err == io.EOF:
					return end(s)
				case err != nil:
					return err
				}
				if err := each(m, s); err != nil {
					return err
				}
			}
		}
	}
	nothing := func(*payload.Message, grpc.ServerStream) error { return nil }
	done := func(s grpc.ServerStream) error { return s.SendMsg(new(payload.Message)) }
	s.RegisterService(&grpc.ServiceDesc{ServiceName: "bench.Streams", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Small", Handler: func(_ any, _ context.Context,
			decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			m := new(payload.Message)
			return m, decode(m)
		}}},
		Streams: []grpc.StreamDesc{
			{StreamName: "Sink", ClientStreams: true, ServerStreams: true, Handler: handler(nothing, done)},
			{StreamName: "Echo", ClientStreams: true, ServerStreams: true,
				Handler: handler(func(m *payload.Message, s grpc.ServerStream) error { return s.SendMsg(m) },
					func(grpc.ServerStream) error { return nil })},
		}}, struct{}{})
	go s.Serve(ln)
	cc, err := grpc.NewClient("passthrough:///"+ln.Addr().String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(most), grpc.MaxCallSendMsgSize(most)))
	if err != nil {
		return system{}, err
	}
	desc := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	sink := func(n int64, m *payload.Message) error {
		st, err := cc.NewStream(context.Background(), desc, "/bench.Streams/Sink")
		if err != nil {
			return err
		}
		for range n {
			if err := st.SendMsg(m); err != nil {
				return err
			}
		}
		_ = st.CloseSend()
		return st.RecvMsg(new(payload.Message))
	}
	return system{
		name:   "grpc",
		oneWay: func(n int64) error { return sink(n, payload.New(nil)) },
		pingPong: func(n int64) error {
			st, err := cc.NewStream(context.Background(), desc, "/bench.Streams/Echo")
			if err != nil {
				return err
			}
			m := payload.New(nil)
			for range n {
				if err := st.SendMsg(m); err != nil {
					return err
				}
				m = new(payload.Message)
				if err := st.RecvMsg(m); err != nil {
					return err
				}
			}
			_ = st.CloseSend()
			if err := st.RecvMsg(m); err != io.EOF {
				return err
			}
			return nil
		},
		copy: func(n int64) error {
			const part = 64 << 10
			return sink(n/part, payload.New(make([]byte, part)))
		},
		pull: func() error {
			return cc.Invoke(context.Background(), "/bench.Streams/Small", payload.New(nil),
				new(payload.Message))
		},
		echo: func(body []byte) error {
			got := new(payload.Message)
			return cc.Invoke(context.Background(), "/bench.Streams/Small", payload.New(body), got)
		},
		close: func() { cc.Close(); s.Stop() },
	}, nil
}

// bareTCP copies by a TCP connection with a buffer of 64 KiB on either side.
func bareTCP() (system, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return system{}, err
	}
	type onlyWriter struct{ io.Writer } // without ReadFrom and WriteTo, which would not use the buffer
	type onlyReader struct{ io.Reader }
	return system{
		name: "bare",
		pingPong: func(n int64) error {
			done := make(chan error, 1)
			go func() {
				c, err := ln.Accept()
				if err == nil {
					_, err = io.CopyBuffer(onlyWriter{c}, onlyReader{c}, make([]byte, 100))
					c.Close()
				}
				done <- err
			}()
			c, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				return err
			}
			buf := make([]byte, 61)
			for range n {
				if _, err := c.Write(buf); err != nil {
					return err
				}
				if _, err := io.ReadFull(c, buf); err != nil {
					return err
				}
			}
			c.Close()
			return <-done
		},
		copy: func(n int64) error {
			done := make(chan error, 1)
			go func() {
				c, err := ln.Accept()
				if err == nil {
					_, err = io.CopyBuffer(onlyWriter{io.Discard}, onlyReader{c}, make([]byte, 64<<10))
					c.Close()
				}
				done <- err
			}()
			c, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				return err
			}
			if _, err := io.CopyBuffer(onlyWriter{c}, &zeros{n}, make([]byte, 64<<10)); err != nil {
				return err
			}
			c.Close()
			return <-done
		},
		close: func() { ln.Close() },
	}, nil
}
