package etcd_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
)

// recorder is a Resolver that remembers what another has told.
type recorder struct {
	of tp.Resolver

	mu      sync.Mutex // guards the fields below
	updates [][]tp.Server
}

func (r *recorder) Resolve(ctx context.Context, update func([]tp.Server)) error {
	return r.of.Resolve(ctx, func(servers []tp.Server) {
		r.mu.Lock()
		r.updates = append(r.updates, servers)
		r.mu.Unlock()
		update(servers)
	})
}

// last returns the servers that were told last.
func (r *recorder) last() []tp.Server {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.updates) == 0 {
		return nil
	}
	return r.updates[len(r.updates)-1]
}

// has reports whether the servers told last are these.
func (r *recorder) has(servers ...*server) bool {
	last := r.last()
	if len(last) != len(servers) {
		return false
	}
	for _, s := range servers {
		found := false
		for _, l := range last {
			found = found || l.Addr == s.addr
		}
		if !found {
			return false
		}
	}
	return true
}

// fewest returns the smallest number of servers that was told from an update on.
func (r *recorder) fewest(from int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.updates[len(r.updates)-1])
	for _, u := range r.updates[from:] {
		n = min(n, len(u))
	}
	return n
}

// count returns how many updates there were.
func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.updates)
}

// follow runs the resolver until the test ends.
func follow(t testing.TB, of tp.Resolver) *recorder {
	r := &recorder{of: of}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- r.Resolve(ctx, func([]tp.Server) {}) }()
	t.Cleanup(func() {
		cancel()
		require.ErrorIs(t, <-over, context.Canceled)
	})
	return r
}

// load is a client that pulls all the time.
type load struct {
	*recorder
	cluster *tp.Cluster
	stop    chan struct{}
	done    sync.WaitGroup

	mu     sync.Mutex // guards the fields below
	calls  int
	failed []string
	// by is who has answered since the last time that it was asked for.
	by map[string]bool
}

// newLoad pulls 400 times a second from the servers that the resolver tells of, from when it has told of n.
func newLoad(t testing.TB, of tp.Resolver, n int) *load {
	peer := tp.NewPeer(nil)
	l := &load{recorder: &recorder{of: of}, stop: make(chan struct{}), by: make(map[string]bool)}
	l.cluster = tp.NewCluster(peer, l.recorder)
	t.Cleanup(func() {
		l.end()
		_ = l.cluster.Close()
		_ = peer.Close()
	})
	eventually(t, func() bool {
		connected := 0
		for _, s := range l.cluster.Servers() {
			if s.Connected {
				connected++
			}
		}
		return connected == n
	})
	for range 8 {
		l.done.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-l.stop:
					return
				case <-tick.C:
					l.pull()
				}
			}
		})
	}
	return l
}

func (l *load) pull() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var who string
	err := l.cluster.PullContext(ctx, "/who", nil, &who).Xerror
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls++
	if err != nil {
		l.failed = append(l.failed, err.Error())
	}
	l.by[who] = true
}

// answered reports whether all of these have answered since it has last reported true.
func (l *load) answered(servers ...*server) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range servers {
		if !l.by[s.addr] {
			return false
		}
	}
	clear(l.by)
	return true
}

// more waits for n more pulls.
func (l *load) more(t testing.TB, n int) {
	t.Helper()
	done := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.calls
	}
	until := done() + n
	eventually(t, func() bool { return done() >= until })
}

func (l *load) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.done.Wait()
}

// none ends the load, which must not have had a failure.
func (l *load) none(t testing.TB) {
	t.Helper()
	l.more(t, 20)
	l.end()
	require.Empty(t, l.failed, "of %d calls", l.calls)
	t.Logf("%d pulls, 0 failed", l.calls)
}
