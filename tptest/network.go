package tptest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/errno"
	"github.com/henrylee2cn/teleport/internal/inside"
)

// A Network is a network in memory, for clients that dial again: give a client PeerConfig{DialContext:
// network.DialContext}. The methods of the line are about all of its connections, and its faults about later
// ones too. All methods are safe for concurrent use, but Serve and Dial, which may end the test, are for the
// test's goroutine.
type Network struct {
	Line
	t     testing.TB
	opts  *options
	guard *guard

	mu      sync.Mutex // guards the fields below
	servers map[string]*tp.Peer
	conns   []*networkConn
	policy  policy
	refusal error       // of refuseAll
	held    []*HeldDial // that NextDial has not returned
	asked   []*HeldDial // that it has, and that wait
	dials   int
	// changed is closed when there is a dial more, or a handshake is over. It is made when somebody waits.
	changed chan struct{}
}

type networkConn struct {
	*wire
	over   bool    // the server's side of the handshake is; the network's mu guards it and result
	result outcome // the server's
}

// policy is what becomes of dials.
type policy uint8

const (
	allowAll policy = iota
	refuseAll
	holdAll
)

// NewNetwork returns a network without servers. What [Pair] says of the end of the test holds for all peers
// of the network, which are those given to Serve and to Dial. Make it in the bubble, if there is one.
func NewNetwork(t testing.TB, options ...Option) *Network {
	t.Helper()
	o := apply(t, "NewNetwork", options)
	n := &Network{t: t, opts: o, servers: make(map[string]*tp.Peer)}
	n.Line = newLine(t, o, n.wires)
	n.guard = newGuard(t, o)
	return n
}

func (n *Network) wires() (wires []*wire) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.conns {
		wires = append(wires, c.wire)
	}
	return wires
}

// Serve lets the peer take the connections that are dialled to the address, any text such as "shop:9090",
// from now on, in place of another peer that has had it. When the peer is closed or drains, dials of the
// address are refused.
func (n *Network) Serve(address string, server *tp.Peer) {
	n.t.Helper()
	checkPeer(n.t, "Serve", "server", server)
	n.guard.keep(server)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.servers[address] = server
}

// Dial dials the address and returns both sides' sessions. It ends the test if that fails: for a dial that is
// to fail call [tp.Peer.Dial]. The methods of the link's line are about the connection that the client's
// session has at the time. Link.Server stays the session of the first connection, see [Network.AwaitSession]
// for others.
func (n *Network) Dial(client *tp.Peer, address string, id ...string) *Link {
	n.t.Helper()
	checkPeer(n.t, "Dial", "client", client)
	n.guard.keep(client)
	before := n.Dials()
	done := make(chan outcome, 1)
	n.guard.start(func() {
		sess, err := client.DialContext(n.t.Context(), address, id...)
		done <- outcome{sess, err}
	})
	of := <-done
	if of.err != nil {
		hint := ""
		if n.Dials() == before {
			hint = notByNetwork
		}
		n.t.Fatalf("tptest: %v%s", of.err, hint)
	}
	c := n.connOf(of.sess)
	if c == nil {
		n.t.Fatalf("tptest: %s was dialled%s", address, notByNetwork)
	}
	there, err := n.awaitOutcome(n.t.Context(), func() *networkConn { return c })
	if err == nil {
		err = there.err
	}
	if err != nil {
		n.t.Fatalf("tptest: dial %s: server: %v", address, err)
	}
	link := &Link{Server: there.sess, Client: of.sess}
	link.Line = newLine(n.t, n.opts, func() []*wire {
		if c := n.connOf(of.sess); c != nil {
			return []*wire{c.wire}
		}
		return nil
	})
	return link
}

const notByNetwork = ", not by the network: expected a client with PeerConfig.DialContext set to the " +
	"network's method DialContext"

// connOf returns the connection that the client's session has now, or has had last.
func (n *Network) connOf(client *tp.Session) *networkConn {
	local := client.Socket().LocalAddr()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.conns {
		if c.client.LocalAddr() == local {
			return c
		}
	}
	return nil
}

// DialContext makes a connection to the peer that serves the address, for PeerConfig.DialContext.
func (n *Network) DialContext(ctx context.Context, _, address string) (net.Conn, error) {
	conn, err := n.dial(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("tptest: dial %s: %w", address, err)
	}
	return conn, nil
}

func (n *Network) dial(ctx context.Context, address string) (net.Conn, error) {
	n.mu.Lock()
	n.dials++
	var d *HeldDial
	var refusal error
	switch n.policy {
	case holdAll:
		d = &HeldDial{Address: address, decided: make(chan error, 1)}
		n.held = append(n.held, d)
	case refuseAll:
		refusal = n.refusal
	}
	n.wakeLocked()
	n.mu.Unlock()
	if d != nil {
		select {
		case refusal = <-d.decided:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if refusal != nil {
		return nil, refusal
	}

	n.mu.Lock()
	server := n.servers[address]
	served := slices.Sorted(maps.Keys(n.servers))
	n.mu.Unlock()
	if server == nil {
		return nil, fmt.Errorf("nobody serves it on this network, where [%s] are served: %w",
			strings.Join(served, ", "), errno.Refused)
	}
	if inside.Draining(server) {
		return nil, fmt.Errorf("its server is closed, or is shutting down: %w", errno.Refused)
	}
	c := &networkConn{wire: newWire(n.opts)}
	n.guard.keepWire(c.wire)
	n.mu.Lock()
	n.conns = append(n.conns, c)
	n.mu.Unlock()
	n.ToServer.begin(c.setToServer)
	n.ToClient.begin(c.setToClient)
	there := n.guard.accept(server, c.wire)
	n.guard.start(func() {
		of := <-there
		n.mu.Lock()
		defer n.mu.Unlock()
		c.over, c.result = true, of
		n.wakeLocked()
	})
	return c.client, nil
}

// Dials returns how many dials have come so far, the refused ones and those that are held included.
func (n *Network) Dials() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials
}

// RefuseDials makes dials fail from now on, those that are held too, with the error; nil stands for that of
// an address where nobody listens. It ends with the next AllowDials or HoldDials.
func (n *Network) RefuseDials(err error) {
	if err == nil {
		err = errno.Refused
	}
	n.decide(refuseAll, err)
}

// AllowDials lets dials through from now on, as at the beginning, and those that are held too.
func (n *Network) AllowDials() { n.decide(allowAll, nil) }

func (n *Network) decide(p policy, refusal error) {
	n.mu.Lock()
	waiting := append(n.held, n.asked...)
	n.policy, n.refusal, n.held, n.asked = p, refusal, nil, nil
	n.mu.Unlock()
	for _, d := range waiting {
		d.decide(refusal)
	}
}

// HoldDials makes dials wait from now on, until the test decides about each: see [Network.NextDial]. A dial
// that waits ends with its context, for a redial after PeerConfig.DefaultDialTimeout, and counts as failed
// then.
func (n *Network) HoldDials() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.policy = holdAll
}

// NextDial waits for the next dial that HoldDials holds, and returns it. Each is returned once, in the order
// in which they came. The error is that of ctx.
func (n *Network) NextDial(ctx context.Context) (*HeldDial, error) {
	var d *HeldDial
	err := n.await(ctx, func() bool {
		if len(n.held) == 0 {
			return false
		}
		d, n.held = n.held[0], n.held[1:]
		n.asked = append(n.asked, d)
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("tptest: no dial has come that is held: %w", err)
	}
	return d, nil
}

// A HeldDial is a dial that waits for the test to decide about it. Only the first decision counts.
type HeldDial struct {
	// Address is what was dialled.
	Address string
	decided chan error
}

// Allow lets the dial through.
func (d *HeldDial) Allow() { d.decide(nil) }

// Refuse makes the dial fail with the error; nil stands for that of an address where nobody listens.
func (d *HeldDial) Refuse(err error) {
	if err == nil {
		err = errno.Refused
	}
	d.decide(err)
}

func (d *HeldDial) decide(err error) {
	select {
	case d.decided <- err:
	default: // it was decided already
	}
}

// AwaitSession waits until the server's side of the nth connection of this network, from 1, has passed its
// handshake, and returns its session. The error is that of the handshake, or of ctx.
func (n *Network) AwaitSession(ctx context.Context, nth int) (*tp.Session, error) {
	if nth < 1 {
		return nil, fmt.Errorf("tptest: AwaitSession: %d is not positive; expected the number of a "+
			"connection, from 1", nth)
	}
	of, err := n.awaitOutcome(ctx, func() *networkConn {
		if len(n.conns) < nth {
			return nil
		}
		return n.conns[nth-1]
	})
	if err != nil {
		return nil, fmt.Errorf("tptest: there is no session of connection %d: %w", nth, err)
	}
	return of.sess, of.err
}

// awaitOutcome waits until the server's side of the connection has come to its end. Which is called with the
// network's mu held, and returns nil if there is no such connection yet.
func (n *Network) awaitOutcome(ctx context.Context, which func() *networkConn) (outcome, error) {
	var of outcome
	err := n.await(ctx, func() bool {
		c := which()
		if c == nil || !c.over {
			return false
		}
		of = c.result
		return true
	})
	return of, err
}

// await waits until is returns true. It calls is with the network's mu held.
func (n *Network) await(ctx context.Context, is func() bool) error {
	if ctx == nil {
		return errors.New("the context is nil")
	}
	for {
		n.mu.Lock()
		if is() {
			n.mu.Unlock()
			return nil
		}
		if n.changed == nil {
			n.changed = make(chan struct{})
		}
		changed := n.changed
		n.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (n *Network) wakeLocked() {
	if n.changed != nil {
		close(n.changed)
		n.changed = nil
	}
}
