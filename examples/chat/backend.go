package main

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/plugin/auth"
)

// Backend is a program that needs the service and not a certain server of it: it gathers what the servers say
// of themselves. Each call of its cluster goes to one of the servers that there are at the time.
type Backend struct {
	peer    *tp.Peer
	cluster *tp.Cluster

	mu       sync.Mutex // guards the fields below
	answered map[string]int
	failed   []error
}

// NewBackend makes a back end that follows the servers until Close.
func NewBackend(r tp.Resolver) *Backend {
	peer := tp.NewPeer(&tp.PeerConfig{DefaultPullTimeout: 2 * time.Second}, auth.New(auth.Anonymous()))
	return &Backend{peer: peer, cluster: tp.NewCluster(peer, r), answered: make(map[string]int)}
}

// Close ends the sessions of the cluster.
func (b *Backend) Close() {
	_ = b.cluster.Close()
	_ = b.peer.Close()
}

// Run asks again and again, until ctx ends.
func (b *Backend) Run(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			b.ask()
		case <-ctx.Done():
			return
		}
	}
}

func (b *Backend) ask() {
	state, err := Stats.Call(context.Background(), b.cluster, struct{}{})
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.failed = append(b.failed, err)
		return
	}
	b.answered[state.Server]++
}

// Sum returns how many pulls were answered, and by which servers, and the errors of the others.
func (b *Backend) Sum() (pulls int, servers []string, failed []error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range b.answered {
		pulls += n
	}
	return pulls, slices.Sorted(maps.Keys(b.answered)), slices.Clone(b.failed)
}
