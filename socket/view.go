package socket

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"
)

// A View is what a program may know of a connection that the framework uses: addresses, TLS state and
// counters. The connection cannot be read, written or closed through a View. All methods are safe for
// concurrent use, also when the connection has ended.
type View struct{ s *Socket }

// View returns a View of the socket.
func (s *Socket) View() View { return View{s} }

// LocalAddr returns the address of this end.
func (v View) LocalAddr() net.Addr { return v.s.LocalAddr() }

// RemoteAddr returns the address of the other end.
func (v View) RemoteAddr() net.Addr { return v.s.RemoteAddr() }

// TLS returns what was agreed on with the other side, with its certificates, and false where the connection
// does not speak TLS.
func (v View) TLS() (tls.ConnectionState, bool) {
	over, ok := v.s.conn.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return tls.ConnectionState{}, false
	}
	return over.ConnectionState(), true
}

// ReadTimeout returns the longest silence while a packet is awaited; zero means none.
func (v View) ReadTimeout() time.Duration { return v.s.ReadTimeout() }

// WriteTimeout returns the longest that one write may take; zero means no bound.
func (v View) WriteTimeout() time.Duration { return v.s.WriteTimeout() }

// Backlog returns how many bytes were accepted and wait to be written.
func (v View) Backlog() int64 { return v.s.Backlog() }

// Reads returns how many reads of the connection have brought data, counted in 32 bits.
func (v View) Reads() uint32 { return v.s.Reads() }

// Writes returns how many writes to the connection have succeeded, counted in 32 bits.
func (v View) Writes() uint32 { return v.s.Writes() }

// Control calls f with the descriptor of the connection below, also below TLS, to get and set options that
// this package does not know; f must not keep the descriptor, nor read, write or close it. The error is the
// system's, or wraps [errors.ErrUnsupported] where the connection is none of the system's.
func (v View) Control(f func(fd uintptr)) error {
	conn := v.s.conn
	if over, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = over.NetConn()
	}
	sys, ok := conn.(syscall.Conn)
	if !ok {
		return fmt.Errorf("socket: a connection of type %T has no descriptor: %w", conn,
			errors.ErrUnsupported)
	}
	raw, err := sys.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(f)
}

// String names the two ends, for logs.
func (v View) String() string { return v.s.String() }
