package resolver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	tp "github.com/henrylee2cn/teleport"
)

// List is a [tp.Resolver] whose servers the program itself knows, and may change. The zero value knows none
// yet: until the first Set it tells nothing, which is another thing than a list without servers. All methods
// are safe for concurrent use. A List must not be copied after its first use.
type List struct {
	mu      sync.Mutex // guards the fields below
	known   bool
	servers []tp.Server   // never changed, but replaced
	changed chan struct{} // closed by the next Set; nil if nobody waits for it
}

// Static returns a List of servers at these addresses, each host:port or unix:/path. The addresses are the
// servers' ids. It panics if there is no address, or one that is none, or the same one twice.
func Static(addrs ...string) *List {
	servers := make([]tp.Server, len(addrs))
	for i, addr := range addrs {
		servers[i].Addr = addr
	}
	return static("Static", servers)
}

// StaticServers is Static for servers with zones, weights or routes. It keeps copies of them.
func StaticServers(servers ...tp.Server) *List { return static("StaticServers", servers) }

func static(caller string, servers []tp.Server) *List {
	if len(servers) == 0 {
		panic(fmt.Sprintf("resolver: %s: one server at least was expected.", caller))
	}
	l := new(List)
	if err := l.Set(servers...); err != nil {
		panic(fmt.Sprintf("resolver: %s: %v.", caller, err))
	}
	return l
}

// Set replaces the servers, and keeps copies of those that it is given. Without any the service has none from
// then on. If one of them cannot be what is meant, because of an address that is none, an id that another one
// has or a weight that is negative, the error says which, and the list is as it was.
func (l *List) Set(servers ...tp.Server) error {
	if err := check(servers); err != nil {
		return err
	}
	own := make([]tp.Server, len(servers))
	for i, s := range servers {
		own[i] = s
		own[i].Routes = slices.Clone(s.Routes)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known, l.servers = true, own
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
	return nil
}

// Servers returns a copy of the list.
func (l *List) Servers() []tp.Server {
	_, servers, _ := l.now()
	own := slices.Clone(servers)
	for i := range own {
		own[i].Routes = slices.Clone(own[i].Routes)
	}
	return own
}

// Resolve is for [tp.Cluster], see [tp.Resolver]. Of several Sets in short order only the last one may be
// told. It returns the error of ctx.
func (l *List) Resolve(ctx context.Context, update func(servers []tp.Server)) error {
	if l == nil {
		return errors.New("resolver: the *List is nil")
	}
	for {
		known, servers, changed := l.now()
		if known && ctx.Err() == nil {
			update(slices.Clone(servers))
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// now returns the list as it is, and the channel that is closed when it has changed.
func (l *List) now() (known bool, servers []tp.Server, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.known, l.servers, l.changed
}
