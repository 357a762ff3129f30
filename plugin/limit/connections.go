package limit

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/places"
)

// Connections is a plugin for peers, see [NewConnections]. All methods are safe for concurrent use.
type Connections struct {
	most int

	mu    sync.Mutex // guards the fields below
	open  map[netip.Prefix][]*tp.Session
	swept time.Time
}

// NewConnections returns a plugin that lets each IPv4 address, and each IPv6 network of 64 bits, have n
// connections at a time. One beyond that is refused in the handshake, with 429. Connections of other kinds,
// of Unix sockets for example, are not counted. It panics if n is less than 1.
func NewConnections(n int) *Connections {
	if n < 1 {
		panic(fmt.Sprintf("limit: NewConnections: %d is less than 1.", n))
	}
	return &Connections{most: n, open: make(map[netip.Prefix][]*tp.Session)}
}

// Name returns "limit: connections".
func (c *Connections) Name() string { return "limit: connections" }

// liveLocked returns how many connections from the network there are.
func (c *Connections) liveLocked(from netip.Prefix) int {
	live := slices.DeleteFunc(c.open[from], func(s *tp.Session) bool { return s.Err() != nil })
	if len(live) == 0 {
		delete(c.open, from)
		return 0
	}
	c.open[from] = live
	return len(live)
}

// PostAccept refuses a connection beyond the limit of its network.
func (c *Connections) PostAccept(fore tp.ForeSession) error {
	from := places.Network(fore.Socket().RemoteAddr())
	if !from.IsValid() {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.swept) > sweepEvery { // nobody says so if a handshake fails
		c.swept = now
		for other := range c.open {
			c.liveLocked(other)
		}
	}
	if c.liveLocked(from) >= c.most {
		return overloaded(fmt.Sprintf("no more than %d connections are taken from this address", c.most),
			time.Second)
	}
	c.open[from] = append(c.open[from], fore.Session())
	return nil
}

// PostDisconnect counts a connection less.
func (c *Connections) PostDisconnect(sess *tp.Session, _ error) error {
	if from := places.Network(sess.Socket().RemoteAddr()); from.IsValid() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.liveLocked(from)
	}
	return nil
}
