//go:build unix

package socket

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/henrylee2cn/teleport/internal/bufpool"
)

// lazyReader reads from a connection of the kernel's, which can be waited for
// without a buffer to read into.
type lazyReader struct {
	raw syscall.RawConn
	try func(fd uintptr) bool // one try at a read; false if there is nothing yet

	r   *reader // of the read under way, like the two below
	n   int
	err error

	// fresh is set for a read that is likely to wait for long on a new goroutine.
	// Its first try has no buffer, but one byte: to take a buffer needs more stack
	// than to wait.
	fresh bool
	one   [1]byte
}

// newLazyReader returns nil where conn must be read by its own method: because
// it is another's, TLS for example, or because it is none of the kernel's.
func newLazyReader(conn net.Conn) *lazyReader {
	raw := rawConn(conn)
	if raw == nil {
		return nil
	}
	l := &lazyReader{raw: raw}
	l.try = l.tryRead
	return l
}

// rawConn returns nil for a connection that is not the kernel's.
func rawConn(conn net.Conn) syscall.RawConn {
	var raw syscall.RawConn
	var err error
	switch c := conn.(type) {
	case *net.TCPConn:
		raw, err = c.SyscallConn()
	case *net.UnixConn:
		raw, err = c.SyscallConn()
	}
	if err != nil {
		return nil
	}
	return raw
}

// tryWriter writes what a connection of the kernel's takes at once.
type tryWriter struct {
	raw syscall.RawConn
	try func(fd uintptr) bool
	b   []byte // of the write under way, like n and err
	n   int
	err error
}

// newTryWriter returns one that takes nothing where conn is another's.
func newTryWriter(conn net.Conn) *tryWriter {
	w := &tryWriter{raw: rawConn(conn)}
	w.try = func(fd uintptr) bool {
		w.n, _ = syscall.Write(int(fd), w.b)
		return true
	}
	return w
}

// write returns how much of b was written.
func (w *tryWriter) write(b []byte) int {
	if w.raw == nil {
		return 0
	}
	w.b, w.n = b, 0
	w.err = w.raw.Write(w.try)
	w.b = nil
	return max(w.n, 0)
}

// late reports whether the last write was not tried because a deadline had passed.
func (w *tryWriter) late() bool { return errors.Is(w.err, os.ErrDeadlineExceeded) }

// read waits until there is something to read, and reads it into a buffer that
// it takes for r only then.
func (l *lazyReader) read(r *reader) (int, error) {
	l.r, l.n, l.err = r, 0, nil
	if err := l.raw.Read(l.try); err != nil { // the wait has failed, not the read
		return 0, err
	}
	return l.n, l.err
}

func (l *lazyReader) tryRead(fd uintptr) bool {
	if l.fresh {
		l.fresh = false
		n, err := read(fd, l.one[:])
		if err == syscall.EAGAIN {
			return false
		}
		if n > 0 {
			l.r.take(l.r.size())
			l.r.buf.B[0] = l.one[0]
		}
		l.done(n, err)
		return true
	}
	l.r.take(l.r.size())
	n, err := read(fd, l.r.buf.B)
	if err == syscall.EAGAIN {
		bufpool.Put(l.r.buf)
		l.r.buf = nil
		return false
	}
	l.done(n, err)
	return true
}

func (l *lazyReader) done(n int, err error) {
	switch {
	case n > 0:
		l.n = n
	case err != nil:
		l.err = os.NewSyscallError("read", err)
	default:
		l.err = io.EOF
	}
}

func read(fd uintptr, p []byte) (int, error) {
	for {
		n, err := syscall.Read(int(fd), p)
		if err != syscall.EINTR {
			return n, err
		}
	}
}
