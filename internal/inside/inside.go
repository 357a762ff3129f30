// Package inside is what package tptest has of a peer beyond its methods. Package tp sets the variables when
// it is initialised. They have no types of that package, because the packages under internal stand below it.
package inside

import (
	"context"
	"net"
	"time"
)

var (
	// Accept makes a session of a connection that was accepted, as Peer.ServeConn does, and speaks TLS first
	// if the peer is configured for it. Peer is a *tp.Peer and the session a *tp.Session. An error closes the
	// connection.
	Accept func(ctx context.Context, peer any, conn net.Conn) (session any, err error)
	// Dialled is the same for a connection that this side has made, as Peer.DialConn. TLS takes the name that
	// it verifies from the address, unless the configuration has one.
	Dialled func(ctx context.Context, peer any, conn net.Conn, address string) (session any, err error)
	// Draining reports whether Close or Shutdown of the *tp.Peer has begun.
	Draining func(peer any) bool
	// Made returns when the *tp.Peer was made. The time has no monotonic reading if that was in a bubble of
	// package synctest.
	Made func(peer any) time.Time
	// Running returns the calls that have come to the *tp.Peer and are not over. A quick handler is among
	// them when it has run for so long that it is none.
	Running func(peer any) []Call
)

// Call is a call that has come to a peer.
type Call struct {
	// Id is the same value for the same call, and can be compared.
	Id any
	// What is "pull", "push" or "stream", and Route what Route of a tp.RoutedCtx is. From is the other side's
	// address.
	What, Route, From string
	// Over reports whether the call's handler has returned.
	Over func() bool
}
