package systems

import (
	"sync"
	"testing"
	"time"

	"github.com/henrylee2cn/teleport/bench/payload"
)

// open starts the system's server and a connection to it.
func open(t *testing.T, s System, w *payload.Work) Conn {
	t.Helper()
	srv, err := s.Serve(w)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	client, err := s.NewClient(srv.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	conn, err := client.Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

// call makes n calls on each of so many goroutines; the callers check the answers.
func call(t *testing.T, conn Conn, k payload.Kind, data []byte, goroutines, n int) {
	t.Helper()
	var wg sync.WaitGroup
	for g := range goroutines {
		caller, err := conn.Caller(k, data)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for i := range n {
				if err := caller(uint64(g*n + i + 1)); err != nil {
					t.Errorf("goroutine %d, call %d: %v", g, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestCalls(t *testing.T) {
	for _, s := range All() {
		t.Run(s.Name, func(t *testing.T) {
			conn := open(t, s, payload.NewWork(100))
			for _, k := range payload.Kinds() {
				call(t, conn, k, nil, 1, 20)
				call(t, conn, k, nil, 16, 20)
			}
			// 1 MiB, and one more byte than a frame that was read before.
			call(t, conn, payload.Echo, make([]byte, 1<<20), 4, 3)
			call(t, conn, payload.Echo, make([]byte, 1<<20+1), 1, 1)
			call(t, conn, payload.Echo, make([]byte, 70000), 16, 5)
			call(t, conn, payload.Echo, nil, 300, 5)
		})
	}
}

func TestPushes(t *testing.T) {
	for _, s := range All() {
		if !s.Push {
			continue
		}
		t.Run(s.Name, func(t *testing.T) {
			w := payload.NewWork(0)
			conn := open(t, s, w).(Pusher)
			const goroutines, n = 8, 500
			var wg sync.WaitGroup
			for g := range goroutines {
				push := conn.Pusher()
				wg.Go(func() {
					for i := range n {
						if err := push(uint64(g*n + i + 1)); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			if err := conn.Flush(); err != nil {
				t.Fatal(err)
			}
			for start := time.Now(); w.Notes() < goroutines*n && time.Since(start) < time.Minute; {
				time.Sleep(time.Millisecond)
			}
			if w.Notes() != goroutines*n {
				t.Errorf("%d of %d notes have arrived", w.Notes(), goroutines*n)
			}
		})
	}
}

// The floors' client talks to the framework's server, and the framework's client
// to their servers: what they leave out is not on the wire.
func TestTheFloorsSpeakTheFrameworksFormat(t *testing.T) {
	for _, pair := range []System{
		{Name: "floor client, tp server", Serve: tpController.Serve, NewClient: floorA.NewClient},
		{Name: "tp client, floor A server", Serve: floorA.Serve, NewClient: tpController.NewClient},
		{Name: "tp client, floor B server", Serve: floorB.Serve, NewClient: tpController.NewClient},
		{Name: "socket client, floor A server", Serve: floorA.Serve, NewClient: socketAlone.NewClient},
	} {
		t.Run(pair.Name, func(t *testing.T) {
			conn := open(t, pair, payload.NewWork(0))
			call(t, conn, payload.Echo, nil, 16, 50)
			call(t, conn, payload.Echo, make([]byte, 100000), 4, 5)
		})
	}
}

// When the server's side of a connection ends, calls return.
func TestCallsEndWithTheConnection(t *testing.T) {
	for _, s := range []System{socketAlone, floorA, floorB} {
		t.Run(s.Name, func(t *testing.T) {
			conn := open(t, s, payload.NewWork(0))
			call(t, conn, payload.Echo, nil, 1, 1)
			caller, err := conn.Caller(payload.Doze, nil)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error)
			go func() { done <- caller(payload.DozeEvery) }()
			conn.Close()
			<-done // with an error, or with the answer that came just before
			if err := caller(1); err == nil {
				t.Error("a call on a closed connection succeeds")
			}
		})
	}
}

func TestNamesAreUnique(t *testing.T) {
	seen := make(map[string]bool)
	for _, s := range All() {
		if seen[s.Name] || s.Name == "" || s.About == "" {
			t.Errorf("system %q: the name is taken, or something is empty", s.Name)
		}
		seen[s.Name] = true
		if found, ok := Find(s.Name); !ok || found.About != s.About {
			t.Errorf("system %q is not found", s.Name)
		}
	}
	if _, ok := Find("no such system"); ok {
		t.Error("a system that does not exist is found")
	}
}
