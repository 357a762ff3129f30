package tptest

import (
	"strings"
	"testing"
	"time"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/inside"
)

// A Link is a pair of connected sessions, and the line between them. The line's methods are about the
// connection that the sessions have now.
type Link struct {
	// Server is the session at the server's side, and Client the one at the client's.
	Server, Client *tp.Session
	Line
}

// Pair connects two peers in memory and returns both sessions. The handshake is that of a network: the hooks
// run, PostAccept the server's and PostDial and PostConnect the client's, and peers that are configured for
// TLS speak TLS, see [Address]. If the handshake fails the test ends, see [TryPair].
//
// When the test ends both peers are closed, and the test fails if a goroutine of the library, a handler or a
// goroutine that a handler has started is left after that, see [Grace]. So a peer is for one test. Pair may
// be called several times with the same server and a client each. In a bubble of package synctest make the
// peers in the bubble too, and give Pair the bubble's t.
//
// A session of a pair ends with its connection, even if the client has PeerConfig.Redial: for clients that
// redial there is [NewNetwork]. Pair must be called by the test's goroutine.
func Pair(t testing.TB, server, client *tp.Peer, options ...Option) *Link {
	t.Helper()
	link, err := pair(t, "Pair", server, client, options)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// TryPair is Pair for tests of handshakes that fail. The error is a [*PairError]; what the hooks have
// returned is found in it by errors.As.
func TryPair(t testing.TB, server, client *tp.Peer, options ...Option) (*Link, error) {
	t.Helper()
	return pair(t, "TryPair", server, client, options)
}

// PairError is why two peers did not connect.
type PairError struct {
	// Server and Client are the errors of the two sides, as ServeConn and DialConn have returned them; nil
	// for a side that has none. A client without PostDial hooks does not wait for what the server says, so
	// that it often has none.
	Server, Client error
}

// Error names both sides' errors.
func (e *PairError) Error() string {
	var sides []string
	if e.Server != nil {
		sides = append(sides, "server: "+e.Server.Error())
	}
	if e.Client != nil {
		sides = append(sides, "client: "+e.Client.Error())
	}
	return "tptest: the peers did not connect: " + strings.Join(sides, "; ")
}

// Unwrap returns the two errors, the client's first.
func (e *PairError) Unwrap() (errs []error) {
	for _, err := range []error{e.Client, e.Server} {
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

func pair(t testing.TB, caller string, server, client *tp.Peer, list []Option) (*Link, error) {
	t.Helper()
	o := apply(t, caller, list)
	checkPeer(t, caller, "server", server)
	checkPeer(t, caller, "client", client)
	g := newGuard(t, o)
	g.keep(client)
	g.keep(server)
	w := newWire(o)
	w.setToServer(o.toServer)
	w.setToClient(o.toClient)
	g.keepWire(w)
	there := g.accept(server, w)
	here := make(chan outcome, 1)
	g.start(func() {
		sess, err := inside.Dialled(t.Context(), client, g.watch(w.client, client), o.address)
		here <- asOutcome(sess, err)
	})
	s, c := <-there, <-here
	if s.err != nil || c.err != nil {
		for _, of := range []outcome{s, c} {
			if of.err == nil {
				_ = of.sess.Close()
			}
		}
		return nil, &PairError{Server: s.err, Client: c.err}
	}
	line := newLine(t, o, func() []*wire { return []*wire{w} })
	return &Link{Server: s.sess, Client: c.sess, Line: line}, nil
}

// outcome is what a handshake has come to.
type outcome struct {
	sess *tp.Session
	err  error
}

func asOutcome(sess any, err error) outcome {
	if err != nil {
		return outcome{err: err}
	}
	return outcome{sess: sess.(*tp.Session)}
}

// accept runs the server's side of the handshake.
func (g *guard) accept(server *tp.Peer, w *wire) <-chan outcome {
	done := make(chan outcome, 1)
	g.start(func() {
		sess, err := inside.Accept(g.t.Context(), server, g.watch(w.server, server))
		done <- asOutcome(sess, err)
	})
	return done
}

// checkPeer ends the test if the peer cannot be connected.
func checkPeer(t testing.TB, caller, side string, p *tp.Peer) {
	t.Helper()
	if p == nil {
		t.Fatalf("tptest: %s: the %s is nil; expected a *tp.Peer", caller, side)
	}
	// A channel of one bubble that is used outside of it ends the process, and one from outside makes the
	// bubble's clock stand still: so this comes before anything else.
	switch made, now := bubbled(inside.Made(p)), bubbled(time.Now()); {
	case made && !now:
		t.Fatalf("tptest: %s is called outside of a bubble of package synctest, and the %s was made in one; "+
			"expected both in the same bubble", caller, side)
	case !made && now:
		t.Fatalf("tptest: %s is called in a bubble of package synctest, and the %s was made outside of it; "+
			"expected NewPeer in the same bubble", caller, side)
	}
	if inside.Draining(p) {
		t.Fatalf("tptest: %s: the %s is closed, or is shutting down; expected a peer that is open. Peers "+
			"of a pair are closed when its test ends: make new ones for each test", caller, side)
	}
}

// checkTest ends the test if it is not that of the bubble: its end would come after the bubble's.
func checkTest(t testing.TB, caller string) {
	t.Helper()
	if bubbled(time.Now()) && !ofBubble(t) {
		t.Fatalf("tptest: %s is called in a bubble of package synctest with a t of outside of it; expected "+
			"the t that the bubble's function is given", caller)
	}
}

// ofBubble reports whether t is the test of a bubble, as far as can be told: such a one has no deadline, and
// panics if it is asked for one.
func ofBubble(t testing.TB) (is bool) {
	test, ok := t.(*testing.T)
	if !ok {
		return true
	}
	defer func() { is = recover() != nil }()
	test.Deadline()
	return false
}

// bubbled reports whether the time was read in a bubble of package synctest, where the clock has no monotonic
// reading.
func bubbled(t time.Time) bool { return t == t.Round(0) }
