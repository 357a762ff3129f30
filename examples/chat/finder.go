package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	tp "github.com/henrylee2cn/teleport"
)

// Finder connects to one of the servers that a resolver tells of. It is for sessions that last: a person has
// one, and when its connection is lost the session goes on with any other server. Calls that may go to any
// server at any time are for a tp.Cluster.
type Finder struct {
	resolver tp.Resolver
	done     sync.WaitGroup
	cancel   context.CancelFunc

	mu      sync.Mutex // guards the fields below
	servers []tp.Server
	known   chan struct{} // closed when there are servers
}

// NewFinder follows the servers until Close.
func NewFinder(r tp.Resolver) *Finder {
	ctx, cancel := context.WithCancel(context.Background())
	f := &Finder{resolver: r, cancel: cancel, known: make(chan struct{})}
	f.done.Go(func() {
		for ctx.Err() == nil {
			_ = r.Resolve(ctx, f.update) // it is tried again, with what is known meanwhile
			wait(ctx, time.Second)
		}
	})
	return f
}

// Close ends what NewFinder has begun.
func (f *Finder) Close() {
	f.cancel()
	f.done.Wait()
}

func (f *Finder) update(servers []tp.Server) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case len(f.servers) == 0 && len(servers) > 0:
		close(f.known)
	case len(f.servers) > 0 && len(servers) == 0:
		f.known = make(chan struct{})
	}
	f.servers = servers
}

// find waits until there are servers.
func (f *Finder) find(ctx context.Context) ([]tp.Server, error) {
	for {
		f.mu.Lock()
		servers, known := f.servers, f.known
		f.mu.Unlock()
		if len(servers) > 0 {
			return servers, nil
		}
		select {
		case <-known:
		case <-ctx.Done():
			return nil, fmt.Errorf("no server is registered: %w", ctx.Err())
		}
	}
}

// Dial is for PeerConfig.DialContext: it connects to any of the servers, whatever the address is.
func (f *Finder) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	servers, err := f.find(ctx)
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: time.Second}
	var failed []error
	for _, i := range rand.Perm(len(servers)) {
		for _, addr := range strings.Split(servers[i].Addr, ",") {
			conn, err := dialer.DialContext(ctx, "tcp", addr)
			if err == nil {
				return conn, nil
			}
			failed = append(failed, err)
		}
	}
	return nil, fmt.Errorf("none of %d servers can be reached: %w", len(servers), errors.Join(failed...))
}

// wait returns when the time is over or ctx has ended.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
