// Package pipe makes pairs of in-memory connections for tests: buffered like a
// socket, with deadlines and half-close, working under testing/synctest, and
// able to fail as networks do.
package pipe

import (
	"fmt"
	"io"
	"math/rand/v2"
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
	// CutAfter is that of the first end's Faults.
	CutAfter int
}

// New returns the two ends of a connection.
func New(o Options) (net.Conn, net.Conn) {
	a, b := Ends(o)
	return a, b
}

// Ends is New for those who change the faults of the ends while they are in use.
func Ends(o Options) (*End, *End) {
	if o.Buffer == 0 {
		o.Buffer = 64 << 10
	}
	ab, ba := newStream(o), newStream(o)
	n := pairs.Add(1)
	a := &End{in: ba, out: ab, local: addr(fmt.Sprintf("pipe-%d-a", n)),
		remote: addr(fmt.Sprintf("pipe-%d-b", n))}
	b := &End{in: ab, out: ba, local: a.remote, remote: a.local}
	ab.cut, ba.cut = a.Close, b.Close
	ab.back, ba.back = ba, ab
	ab.f.CutAfter = int64(o.CutAfter)
	return a, b
}

var pairs atomic.Int64

type addr string

func (a addr) Network() string { return "pipe" }
func (a addr) String() string  { return string(a) }

// stream is one direction.
type stream struct {
	o    Options
	cut  func() error // closes the end that writes
	back *stream      // the other direction
	// quiet says that the faults are Silent or Stalled.
	quiet atomic.Bool

	mu   sync.Mutex // guards the fields below
	cond *sync.Cond
	// buf has what was written and not read. Of that, arrived bytes can be read; the others are under way,
	// in flights.
	buf     []byte
	arrived int
	flights []flight
	timer   *time.Timer // fires when the first flight arrives; nil if there is none, or nothing arrives
	// ended: no more bytes are written. finished: the other end knows that; what has arrived can be read.
	ended, finished bool
	// dead: the reading end is closed; writes fail. broken: so do reads and writes of both ends.
	dead, broken bool
	rd, wd       deadline

	f        Faults
	offset   int64      // how many bytes were written since the faults were set
	random   *rand.Rand // of Faults.FlipRate
	lineFree time.Time  // until when earlier bytes take all of Faults.Bandwidth
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
		case s.broken:
			return 0, errno.Reset
		case s.rd.past:
			return 0, os.ErrDeadlineExceeded
		case s.arrived > 0:
			p = p[:min(len(p), s.arrived)]
			if s.o.Chunk > 0 && len(p) > s.o.Chunk {
				p = p[:s.o.Chunk]
			}
			n := copy(p, s.buf)
			s.buf, s.arrived = s.buf[n:], s.arrived-n
			s.cond.Broadcast()
			return n, nil
		case s.finished:
			return 0, io.EOF
		case len(p) == 0:
			return 0, nil
		}
		s.cond.Wait()
	}
}

func (s *stream) write(p []byte) (int, error) {
	n, cut, err := s.put(p)
	if cut {
		_ = s.cut()
		err = io.ErrClosedPipe
	}
	return n, err
}

// put is write. It reports cut if the end that writes is to be closed now.
func (s *stream) put(p []byte) (n int, cut bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.ended:
			return n, false, io.ErrClosedPipe
		case s.broken:
			return n, false, errno.Pipe
		case s.dead && !s.back.quiet.Load():
			return n, false, errno.Pipe
		case s.wd.past:
			return n, false, os.ErrDeadlineExceeded
		case len(p) == 0:
			return n, false, nil
		}
		k := min(s.o.Buffer-len(s.buf), len(p))
		lost := s.dead || s.f.Silent // to nobody who could say so
		if lost {
			k = len(p)
		}
		if k <= 0 {
			s.cond.Wait()
			continue
		}
		if most := s.f.CutAfter; most != 0 {
			if left := max(most, 0) - s.offset; int64(k) > left {
				k, cut = int(left), true
			}
		}
		if !lost {
			s.buf = append(s.buf, p[:k]...)
			s.flipLocked(s.buf[len(s.buf)-k:])
			s.launchLocked(k, false)
			s.arriveLocked()
		}
		n, p, s.offset = n+k, p[k:], s.offset+int64(k)
		if cut {
			return n, true, nil
		}
	}
}

// end ends the output.
func (s *stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.ended = true
		s.launchLocked(0, true)
		s.arriveLocked()
	}
	s.cond.Broadcast()
}

func (s *stream) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead = true
	s.groundLocked()
	s.cond.Broadcast()
}

// End is one end of a connection. All methods are safe for concurrent use.
type End struct {
	in, out       *stream
	local, remote addr
}

func (e *End) Read(p []byte) (int, error)  { return e.in.read(p) }
func (e *End) Write(p []byte) (int, error) { return e.out.write(p) }

// CloseWrite ends this end's direction; the other side reads EOF.
func (e *End) CloseWrite() error {
	e.out.end()
	return nil
}

func (e *End) Close() error {
	e.setDeadlines(time.Time{}, e.in, e.out) // stops the timers
	e.out.end()
	e.in.kill()
	return nil
}

func (e *End) setDeadlines(t time.Time, in, out *stream) {
	if in != nil {
		in.setDeadline(&in.rd, t)
	}
	if out != nil {
		out.setDeadline(&out.wd, t)
	}
}

func (e *End) LocalAddr() net.Addr  { return e.local }
func (e *End) RemoteAddr() net.Addr { return e.remote }

func (e *End) SetDeadline(t time.Time) error {
	e.setDeadlines(t, e.in, e.out)
	return nil
}

func (e *End) SetReadDeadline(t time.Time) error {
	e.setDeadlines(t, e.in, nil)
	return nil
}

func (e *End) SetWriteDeadline(t time.Time) error {
	e.setDeadlines(t, nil, e.out)
	return nil
}
