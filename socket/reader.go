package socket

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/teleport/internal/bufpool"
)

const (
	minBuffer = 4 << 10
	// maxAhead bounds the memory taken for bytes that are announced but have not
	// arrived.
	maxAhead = 64 << 10
)

var (
	// errRead marks an error of the connection while reading.
	errRead = errors.New("socket: read")
	// errSkipped is what ReadBody returns after SkipBody.
	errSkipped = errors.New("socket: the body was skipped")
)

// reader buffers what arrives. Only the reading goroutine touches it, except
// for timeout and setTimeout.
type reader struct {
	conn    net.Conn
	timeout atomic.Int64 // time.Duration; 0 none
	armed   bool         // a read deadline is set on conn
	setting sync.Mutex   // makes one step of reading or writing timeout and setting conn's deadline

	buf  []byte
	r, w int  // buf[r:w] has been read and not consumed
	full bool // the last read filled buf: a larger one saves system calls

	body    int64 // bytes of the current packet's body still to be consumed
	refused error // why the current body must not be read
}

func (r *reader) init(conn net.Conn, timeout time.Duration) {
	r.conn = conn
	r.timeout.Store(int64(max(timeout, 0)))
	r.armed = true // clears a deadline that a former owner of conn left
}

func (r *reader) setTimeout(d time.Duration) {
	d = max(d, 0)
	r.setting.Lock()
	defer r.setting.Unlock()
	r.timeout.Store(int64(d))
	r.conn.SetReadDeadline(deadline(d)) // wakes the read under way, if any
}

func deadline(d time.Duration) time.Time {
	if d == 0 {
		return time.Time{}
	}
	return time.Now().Add(d)
}

// fill reads once from the connection into p.
func (r *reader) fill(p []byte) (int, error) {
	if r.armed || r.timeout.Load() > 0 {
		r.setting.Lock()
		d := time.Duration(r.timeout.Load())
		r.armed = d > 0
		r.conn.SetReadDeadline(deadline(d))
		r.setting.Unlock()
	}
	for range 100 {
		n, err := r.conn.Read(p)
		if n > 0 || err != nil {
			return n, err
		}
	}
	return 0, io.ErrNoProgress
}

// peek returns the next n bytes without consuming them; they are valid until
// the next call. EOF before the first byte of a packet is io.EOF, anywhere else
// io.ErrUnexpectedEOF.
func (r *reader) peek(n int, start bool) ([]byte, error) {
	for r.w-r.r < n {
		r.room(n)
		k, err := r.fill(r.buf[r.w:])
		r.w += k
		r.full = r.w == len(r.buf)
		if err != nil && r.w-r.r < n {
			return nil, readError(err, start && r.w == r.r)
		}
	}
	return r.buf[r.r : r.r+n], nil
}

// room makes space behind r.w. The buffer doubles when what arrived has filled
// it, so that it never runs far ahead of the bytes received.
func (r *reader) room(n int) {
	have := r.w - r.r
	size := max(len(r.buf), minBuffer)
	if r.full {
		r.full = false
		size = max(size, min(2*size, max(n, maxAhead)))
	}
	switch {
	case size != len(r.buf):
		buf := make([]byte, size)
		copy(buf, r.buf[r.r:r.w])
		r.buf = buf
	case r.r > 0 && (have == 0 || r.r+n > size):
		copy(r.buf, r.buf[r.r:r.w])
	default:
		return
	}
	r.r, r.w = 0, have
}

func (r *reader) discard(n int) { r.r += n }

// readBody appends the current body to dst.
func (r *reader) readBody(dst []byte) ([]byte, error) {
	n := int(min(r.body, int64(r.w-r.r)))
	dst = append(dst, r.buf[r.r:r.r+n]...)
	r.r += n
	r.body -= int64(n)
	for r.body > 0 {
		if len(dst) == cap(dst) {
			more := min(r.body, int64(max(len(dst), maxAhead)))
			dst = append(dst, make([]byte, more)...)[:len(dst)]
		}
		free := int(min(r.body, int64(cap(dst)-len(dst))))
		k, err := r.fill(dst[len(dst) : len(dst)+free])
		dst = dst[:len(dst)+k]
		r.body -= int64(k)
		if err != nil && r.body > 0 {
			return dst, readError(err, false)
		}
	}
	return dst, nil
}

// skip drops what is left of the current body.
func (r *reader) skip() error {
	r.refused = nil
	n := int(min(r.body, int64(r.w-r.r)))
	r.r += n
	r.body -= int64(n)
	if r.body == 0 {
		return nil
	}
	buf := bufpool.Get()
	defer bufpool.Put(buf)
	if cap(buf.B) < minBuffer {
		buf.B = make([]byte, 0, minBuffer)
	}
	for r.body > 0 {
		k, err := r.fill(buf.B[:min(r.body, int64(cap(buf.B)))])
		r.body -= int64(k)
		if err != nil && r.body > 0 {
			return readError(err, false)
		}
	}
	return nil
}

func readError(err error, clean bool) error {
	if errors.Is(err, io.EOF) {
		if clean {
			return io.EOF
		}
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %w", errRead, err)
}
