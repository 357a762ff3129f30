// Package systems holds what is compared: one file for each system, all with the
// same few methods. Every system carries the messages of package payload between
// two processes over loopback TCP, without TLS and without compression, set up as
// its documentation shows and otherwise left at its defaults; where that is not
// so, the system's file says what and why.
package systems

import (
	"net"

	"github.com/henrylee2cn/teleport/bench/payload"
)

// A System is one thing to measure.
type System struct {
	// Name is short, for tables and flags.
	Name string
	// About says in a line what it is.
	About string
	// Push is set if its Conns are Pushers.
	Push bool
	// Serve starts a server on a free port of 127.0.0.1.
	Serve func(w *payload.Work) (Server, error)
	// NewClient returns a client of the server with the address.
	NewClient func(addr string) (Client, error)
}

// A Server answers until it is closed.
type Server interface {
	Addr() string
	Close()
}

// A Client opens connections to one server. It is safe for concurrent use.
type Client interface {
	Dial() (Conn, error)
	// Close is called when all connections are closed.
	Close()
}

// A Conn is one connection. It is safe for concurrent use.
type Conn interface {
	// Caller returns a function that makes the call with the id, waits for the
	// answer and checks it. The function is for one goroutine, which makes one
	// call after another; every goroutine takes its own. The data goes along with
	// each call, and is not changed.
	Caller(k payload.Kind, data []byte) (func(id uint64) error, error)
	Close()
}

// A Pusher is a Conn that sends messages one way.
type Pusher interface {
	Conn
	// Pusher returns a function that sends the note with the id; as for Caller,
	// every goroutine takes its own.
	Pusher() func(id uint64) error
	// Flush returns when everything that was pushed is on its way, or at once if
	// nothing is ever held back.
	Flush() error
}

// All lists the systems in the order of the tables.
func All() []System {
	return []System{
		tpController,
		tpFunction,
		tpJSON,
		socketAlone,
		floorA,
		floorB,
		grpcUnary,
		netRPC,
		drpcUnary,
		ttrpcUnary,
		natsRequest,
		connectUnary,
	}
}

// Find returns the system with the name.
func Find(name string) (System, bool) {
	for _, s := range All() {
		if s.Name == name {
			return s, true
		}
	}
	return System{}, false
}

func listen() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }

// server is a Server made of its address and what ends it.
type server struct {
	addr  string
	close func()
}

func (s server) Addr() string { return s.addr }
func (s server) Close()       { s.close() }

// accept calls serve with every connection, on a goroutine of its own, until the
// listener is closed.
func accept(ln net.Listener, serve func(net.Conn)) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go serve(conn)
	}
}

// dialer is a Client whose connections have nothing in common.
type dialer func() (Conn, error)

func (d dialer) Dial() (Conn, error) { return d() }
func (d dialer) Close()              {}
