//go:build !unix

package socket

import "net"

// lazyReader is for systems on which a connection can be waited for without a
// buffer to read into; on this one it cannot.
type lazyReader struct{ fresh bool }

func newLazyReader(net.Conn) *lazyReader { return nil }

func (*lazyReader) read(*reader) (int, error) { panic("socket: no lazy reads on this system") }

// tryWriter takes nothing.
type tryWriter struct{}

func newTryWriter(net.Conn) *tryWriter { return nil }

func (*tryWriter) write([]byte) int { return 0 }

func (*tryWriter) late() bool { return false }
