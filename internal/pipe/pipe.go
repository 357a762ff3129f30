// Package pipe makes pairs of in-memory connections for tests: buffered like a
// socket, with deadlines and half-close, working under testing/synctest, and
// able to fail as networks do.
package pipe

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/teleport/internal/errno"
)

// Options says how a connection misbehaves. The zero value does not.
type Options struct {
	// Buffer is how many bytes one direction holds before writes block; 0 means
	// 64 KiB.
	Buffer int
	// Chunk bounds what one Read returns; 0 means no bound.
	Chunk int
	// CutAfter kills the first end when it writes more than this many bytes: they
	// still reach the other end, then both directions are over. 0 means never,
	// and a negative number at the first byte.
	CutAfter int
}

// New returns the two ends of a connection.
func New(o Options) (net.Conn, net.Conn) {
	if o.Buffer == 0 {
		o.Buffer = 64 << 10
	}
	ab, ba := newStream(o), newStream(o)
	n := pairs.Add(1)
	a := &conn{in: ba, out: ab, local: addr(fmt.Sprintf("pipe-%d-a", n)),
		remote: addr(fmt.Sprintf("pipe-%d-b", n))}
	b := &conn{in: ab, out: ba, local: a.remote, remote: a.local}
	if o.CutAfter != 0 {
		ab.budget, ab.cut = max(o.CutAfter, 0), a.Close
	}
	return a, b
}

var pairs atomic.Int64

type addr string

func (a addr) Network() string { return "pipe" }
func (a addr) String() string  { return string(a) }

// stream is one direction.
type stream struct {
	o    Options
	mu   sync.Mutex // guards the fields below
	cond *sync.Cond
	buf  []byte
	// ended: no more bytes come; what is buffered can still be read.
	ended bool
	// dead: the reading end is closed; writes fail.
	dead       bool
	rd, wd     deadline
	budget     int
	cut        func() error
	cutPending bool
}

type deadline struct {
	timer *time.Timer
	past  bool
}

func newStream(o Options) *stream {
	s := &stream{o: o}
	s.cond = sync.NewCond(&s.mu)
	return s
}

func (s *stream) setDeadline(d *deadline, t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.past = false
	if !t.IsZero() {
		wait := time.Until(t)
		if wait <= 0 {
			d.past = true
		} else {
			var timer *time.Timer
			timer = time.AfterFunc(wait, func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				if d.timer == timer {
					d.past = true
					s.cond.Broadcast()
				}
			})
			d.timer = timer
		}
	}
	s.cond.Broadcast()
}

func (s *stream) read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.dead:
			return 0, net.ErrClosed
		case s.rd.past:
			return 0, os.ErrDeadlineExceeded
		case len(s.buf) > 0:
			if s.o.Chunk > 0 && len(p) > s.o.Chunk {
				p = p[:s.o.Chunk]
			}
			n := copy(p, s.buf)
			s.buf = s.buf[n:]
			s.cond.Broadcast()
			return n, nil
		case s.ended:
			return 0, io.EOF
		case len(p) == 0:
			return 0, nil
		}
		s.cond.Wait()
	}
}

func (s *stream) write(p []byte) (n int, err error) {
	s.mu.Lock()
	defer func() {
		cut := s.cutPending
		s.cutPending = false
		s.mu.Unlock()
		if cut {
			_ = s.cut()
			err = io.ErrClosedPipe
		}
	}()
	for {
		switch {
		case s.ended:
			return n, io.ErrClosedPipe
		case s.dead:
			return n, errno.Pipe
		case s.wd.past:
			return n, os.ErrDeadlineExceeded
		case len(p) == 0:
			return n, nil
		}
		if free := s.o.Buffer - len(s.buf); free > 0 {
			k := min(free, len(p))
			if s.cut != nil {
				if k > s.budget {
					k, s.cutPending = s.budget, true
				}
				s.budget -= k
			}
			s.buf = append(s.buf, p[:k]...)
			n, p = n+k, p[k:]
			s.cond.Broadcast()
			if s.cutPending {
				return n, nil
			}
			continue
		}
		s.cond.Wait()
	}
}

func (s *stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.cond.Broadcast()
}

func (s *stream) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead = true
	s.cond.Broadcast()
}

type conn struct {
	in, out       *stream
	local, remote addr
}

func (c *conn) Read(p []byte) (int, error)  { return c.in.read(p) }
func (c *conn) Write(p []byte) (int, error) { return c.out.write(p) }

// CloseWrite ends this end's direction; the other side reads EOF.
func (c *conn) CloseWrite() error {
	c.out.end()
	return nil
}

func (c *conn) Close() error {
	c.setDeadlines(time.Time{}, c.in, c.out) // stops the timers
	c.out.end()
	c.in.kill()
	return nil
}

func (c *conn) setDeadlines(t time.Time, in, out *stream) {
	if in != nil {
		in.setDeadline(&in.rd, t)
	}
	if out != nil {
		out.setDeadline(&out.wd, t)
	}
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) SetDeadline(t time.Time) error {
	c.setDeadlines(t, c.in, c.out)
	return nil
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.setDeadlines(t, c.in, nil)
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.setDeadlines(t, nil, c.out)
	return nil
}
