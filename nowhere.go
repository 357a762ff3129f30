package tp

import (
	"net"
	"time"
)

// nowhere is a connection that has ended, to the address that it is.
type nowhere string

func (nowhere) Read([]byte) (int, error)         { return 0, net.ErrClosed }
func (nowhere) Write([]byte) (int, error)        { return 0, net.ErrClosed }
func (nowhere) Close() error                     { return nil }
func (n nowhere) LocalAddr() net.Addr            { return n }
func (n nowhere) RemoteAddr() net.Addr           { return n }
func (nowhere) SetDeadline(time.Time) error      { return nil }
func (nowhere) SetReadDeadline(time.Time) error  { return nil }
func (nowhere) SetWriteDeadline(time.Time) error { return nil }
func (nowhere) Network() string                  { return "none" }
func (n nowhere) String() string                 { return string(n) }
