package stress

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/types/known/structpb"

	tp "github.com/henrylee2cn/teleport"
)

// serverEnv holds, in the server's process, its options as JSON.
const serverEnv = "TP_STRESS_SERVER"

// options is what a test says about its server.
type options struct {
	Config tp.PeerConfig
	// Hello makes the server wait, in a PostAccept hook, for a packet of the
	// client's.
	Hello bool
}

// stats is what /stats answers.
type stats struct {
	Goroutines             int
	Heap, RSS, PeakRSS     int64 // bytes; the latter two are 0 where the system does not tell
	Files                  int
	Sessions               int
	Echoes                 int64 // pulls of /echo that have run
	Waiting, MostWaiting   int64 // pulls of /wait that run, and the most there were
	Waited                 int64 // that have ended
	Pushed, Floods, Failed int64 // by /flood: pushes made, floods that have ended, pushes that failed
}

// service is what the server's handlers share.
type service struct {
	peer                         *tp.Peer
	echoes, waiting, most        atomic.Int64
	waited                       atomic.Int64
	pushed, floods, failedPushes atomic.Int64

	mu   sync.Mutex // guards the field below
	gate chan struct{}
}

// largeText is what /large answers with a part of; the handler itself takes no
// memory for it.
var largeText = strings.Repeat("x", 4*mib)

// row is a struct that `{}` stands for in JSON.
type row struct {
	Numbers [31]int64
	Text    string
}

// flood is what /flood is asked for.
type flood struct{ Pushes, Size int }

// serveChild is the server's process: it prints its address and ends with its
// standard input.
func serveChild() {
	var o options
	if err := json.Unmarshal([]byte(os.Getenv(serverEnv)), &o); err != nil {
		tp.Fatalf("%v", err)
	}
	// What is critical is a defect, and the test fails if anything is printed.
	tp.SetLogLevel(tp.LevelCritical)
	raiseFiles()
	var plugins []tp.Plugin
	if o.Hello {
		plugins = append(plugins, hello{})
	}
	s := &service{peer: tp.NewPeer(&o.Config, plugins...), gate: make(chan struct{})}
	s.routes()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tp.Fatalf("%v", err)
	}
	done := make(chan error, 1)
	go func() { done <- s.peer.Serve(ln) }()
	fmt.Println(ln.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
	_ = s.peer.Close()
	if err := <-done; err != nil {
		tp.Fatalf("%v", err)
	}
}

func (s *service) routes() {
	pulls := s.peer.PullRouter
	tp.HandlePull(pulls, "/echo", func(_ tp.PullCtx, v *interface{}) (interface{}, tp.Xerror) {
		s.echoes.Add(1)
		return *v, nil
	})
	tp.HandlePull(pulls, "/value", func(_ tp.PullCtx, v *structpb.Value) (*structpb.Value, tp.Xerror) {
		return v, nil
	})
	tp.HandlePull(pulls, "/length", func(ctx tp.PullCtx, b *[]byte) (int, tp.Xerror) {
		ctx.SetBodyCodec("json")
		ctx.SetGzip(0)
		return len(*b), nil
	})
	tp.HandlePull(pulls, "/large", func(_ tp.PullCtx, n *int) (string, tp.Xerror) {
		if *n > len(largeText) {
			return "", tp.NewXerror(tp.StatusBadRequest, "")
		}
		return largeText[:*n], nil
	})
	tp.HandlePull(pulls, "/rows", func(_ tp.PullCtx, rows *[]row) (int, tp.Xerror) { return len(*rows), nil })
	tp.HandlePull(pulls, "/wait", func(_ tp.PullCtx, v *int) (int, tp.Xerror) {
		s.mu.Lock()
		gate := s.gate
		s.mu.Unlock()
		now := s.waiting.Add(1)
		for most := s.most.Load(); now > most && !s.most.CompareAndSwap(most, now); most = s.most.Load() {
		}
		<-gate
		s.waiting.Add(-1)
		s.waited.Add(1)
		return *v, nil
	})
	tp.HandleStream(pulls, "/stuck", func(ctx tp.PullCtx, _ *tp.Stream[string, string]) tp.Xerror {
		<-ctx.Context().Done()
		return nil
	})
	tp.HandlePull(pulls, "/release", func(tp.PullCtx, *interface{}) (interface{}, tp.Xerror) {
		s.mu.Lock()
		defer s.mu.Unlock()
		close(s.gate)
		s.gate = make(chan struct{})
		return nil, nil
	})
	tp.HandlePull(pulls, "/flood", func(ctx tp.PullCtx, f *flood) (interface{}, tp.Xerror) {
		defer s.floods.Add(1)
		text := strings.Repeat("x", f.Size)
		for range f.Pushes {
			if x := ctx.Session().Push("/note", text, tp.WithBodyCodec("string")); x != nil {
				s.failedPushes.Add(1)
				return nil, x
			}
			s.pushed.Add(1)
		}
		return nil, nil
	})
	tp.HandlePull(pulls, "/stats", func(_ tp.PullCtx, gc *bool) (*stats, tp.Xerror) {
		return s.stats(*gc), nil
	})
}

func (s *service) stats(gc bool) *stats {
	if gc {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	st := &stats{
		Goroutines: runtime.NumGoroutine(), Heap: int64(m.HeapInuse), Sessions: s.peer.CountSession(),
		Echoes: s.echoes.Load(), Waiting: s.waiting.Load(), MostWaiting: s.most.Load(),
		Waited: s.waited.Load(),
		Pushed: s.pushed.Load(), Floods: s.floods.Load(), Failed: s.failedPushes.Load(),
	}
	measureProcess(st)
	return st
}

// hello is the plugin of both sides: who dials says something, who accepts waits
// for it.
type hello struct{}

func (hello) Name() string { return "hello" }

func (hello) PostDial(s tp.ForeSession) error { return s.Send(pushPacket("/hello", "hello")) }

func (hello) PostAccept(s tp.ForeSession) error {
	_, err := s.Receive(new(string))
	return err
}
