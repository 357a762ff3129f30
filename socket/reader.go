package socket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/teleport/internal/bufpool"
	"github.com/henrylee2cn/teleport/packet"
)

const (
	// A session reads into a small buffer until one read has filled it, and into
	// a full one until shrinkAfter reads in a row have not filled a small one.
	smallBuffer = bufpool.Small
	fullBuffer  = bufpool.Full
	shrinkAfter = 16
)

var (
	// errRead marks an error of the connection while reading.
	errRead = errors.New("socket: read")
	// errSkipped is what ReadBody returns after SkipBody.
	errSkipped = errors.New("socket: the body was skipped")
)

// reader buffers what arrives. Only the reading goroutine touches it, except
// for timeout and setTimeout. Where the connection allows it, a reader that
// waits for a packet has no buffer: most connections do nothing most of the
// time.
type reader struct {
	conn    net.Conn
	lazy    *lazyReader   // nil where the connection does not allow it
	limits  packet.Limits // of what is read
	budget  *packet.Budget
	timeout atomic.Int64  // time.Duration; 0 none
	frame   time.Duration // the time for a whole packet; 0 none
	// frameBy is when the packet that has begun must be complete, and frameFor how long it was given. frameBy
	// is zero between packets.
	frameBy  time.Time
	frameFor time.Duration
	armed    bool       // a read deadline is set on conn
	setting  sync.Mutex // makes one step of changing timeout and due and deciding on conn's deadline
	// decided is the number of decisions about conn's deadline, and applied that of the last one that was set
	// on conn. While applying is true a goroutine sets one.
	decided, applied uint32
	applying         bool
	due              time.Time // when timeout is over, if it was set during a read
	set              time.Time // the deadline that was decided on for conn; zero for none
	quiet            bool      // await has set the deadline
	heard            bool      // data was read since await has set the deadline

	buf   *bufpool.Buffer // nil, or its whole capacity is in use
	r, w  int             // buf.B[r:w] has been read and not consumed
	full  bool            // the last read filled buf: a larger one saves system calls
	large bool            // the next buffer is a full one
	spare int             // reads in a row that did not need a large buffer

	reads atomic.Uint32 // how many reads have brought data

	parts   *assembly // nil until a part comes
	body    int64     // bytes of the current packet's body still to be consumed
	refused error     // why the current body must not be read
	owes    bool      // an answer to a part is queued
}

func (r *reader) init(conn net.Conn, o Options) {
	r.conn = conn
	r.lazy = newLazyReader(conn)
	r.limits, r.budget = o.Limits, o.Limits.Budget
	r.frame = max(o.FrameTimeout, 0)
	r.timeout.Store(int64(max(o.ReadTimeout, 0)))
	// A former owner of conn may have left a deadline. It is cleared here and not before the first read, so
	// that the stack of the goroutine which reads need not grow for that.
	_ = conn.SetReadDeadline(time.Time{})
}

func (r *reader) setTimeout(d time.Duration) {
	d = max(d, 0)
	r.setting.Lock()
	r.timeout.Store(int64(d))
	r.due = earlier(deadline(d), r.frameBy)
	now := r.due
	if d == 0 && r.quiet { // await has set a deadline that goes with it
		now = time.Now()
	}
	r.decideLocked(now)
	r.apply() // wakes the read under way, if any
}

func deadline(d time.Duration) time.Time {
	if d == 0 {
		return time.Time{}
	}
	return time.Now().Add(d)
}

// earlier returns the earlier of two deadlines; a zero time is no deadline.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// arm sets the deadline of the next read. Without a read timeout arm leaves an earlier deadline in place,
// because to set one takes longer than to read and may wake a thread. If a read fails at such a deadline,
// again says so.
func (r *reader) arm() {
	begun := r.frame > 0 && (r.w > r.r || r.body > 0 || r.parting())
	if !r.armed && !begun && r.timeout.Load() == 0 {
		return
	}
	r.setting.Lock()
	defer r.apply()
	d := time.Duration(r.timeout.Load())
	if begun && r.frameBy.IsZero() {
		r.frameFor = r.frame
		if d > 0 {
			r.frameFor = min(d, r.frame)
		}
		r.frameBy = time.Now().Add(r.frameFor)
	}
	if !r.armed && d == 0 && !r.set.IsZero() && r.set.Before(r.frameBy) {
		return
	}
	r.armed = d > 0
	r.setLocked(earlier(deadline(d), r.frameBy))
}

// setLocked decides what conn's deadline is to be.
func (r *reader) setLocked(by time.Time) {
	r.quiet = false
	r.decideLocked(by)
}

func (r *reader) decideLocked(by time.Time) {
	r.set = by
	r.decided++
}

// apply unlocks setting, and sets conn's deadline if there is a new decision. Only one goroutine at a time
// does so, for the newest decision, without the lock, because a connection of the program's may call back.
func (r *reader) apply() {
	for !r.applying && r.applied != r.decided {
		by, n := r.set, r.decided
		r.applying = true
		r.setting.Unlock()
		r.conn.SetReadDeadline(by)
		r.setting.Lock()
		r.applying, r.applied = false, n
	}
	r.setting.Unlock()
}

// again reports whether a read that failed is to be tried again, because the
// deadline was one that has been left in place.
func (r *reader) again(err error) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	r.setting.Lock()
	defer r.apply()
	if r.timeout.Load() > 0 || r.overdue() {
		return false
	}
	r.setLocked(r.frameBy)
	return true
}

// overdue reports whether the packet that has begun should be complete by now.
func (r *reader) overdue() bool { return !r.frameBy.IsZero() && !time.Now().Before(r.frameBy) }

// next is called between two packets.
func (r *reader) next() {
	if !r.frameBy.IsZero() {
		r.setting.Lock()
		r.frameBy = time.Time{}
		if r.timeout.Load() == 0 {
			r.due = time.Time{} // setTimeout may have taken it from frameBy
		}
		r.setting.Unlock()
	}
}

// explain returns the error of a read that failed; if the packet took too long the error says so.
func (r *reader) explain(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) && r.overdue() {
		return fmt.Errorf("a packet was not complete after %v: %w", r.frameFor, err)
	}
	return err
}

// fill reads once from the connection into p. The caller has called arm.
func (r *reader) fill(p []byte) (int, error) {
	for range 100 {
		n, err := r.conn.Read(p)
		if n > 0 {
			r.reads.Add(1)
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
	return 0, io.ErrNoProgress
}

// errQuiet is what await returns when nothing has come.
var errQuiet = errors.New("socket: quiet")

// await waits until there is data in the buffer, and returns errQuiet if none comes for the time quiet; it
// notices that between one and two times quiet after the last read. Zero is for ever. On connections where a
// wait would cost more than a read, await does not wait.
func (r *reader) await(quiet time.Duration) error {
	if r.lazy == nil || r.r < r.w || r.body > 0 || r.timeout.Load() > 0 || r.parting() {
		return nil
	}
	r.next()
	if r.armed {
		r.arm()
	}
	r.lazy.fresh = quiet == 0
	for {
		if quiet > 0 && !r.quiet {
			r.setting.Lock()
			if r.timeout.Load() == 0 {
				r.setLocked(deadline(quiet))
				r.quiet, r.heard = true, false
			}
			r.apply()
		}
		err := r.more(packet.LengthSize)
		if r.w > r.r {
			r.heard = true
			return nil
		}
		if !r.quiet && r.again(err) {
			continue
		}
		if !r.quiet || !errors.Is(err, os.ErrDeadlineExceeded) {
			return readError(err, true)
		}
		r.setting.Lock()
		r.quiet = false
		late := r.timeout.Load() > 0 && !time.Now().Before(r.due)
		if !late {
			r.setLocked(r.due)
		}
		r.apply()
		if late {
			return readError(err, true)
		}
		if !r.heard {
			return errQuiet
		}
	}
}

// peek returns the next n bytes without consuming them; they are valid until
// the next call. EOF before the first byte of a packet is io.EOF, anywhere else
// io.ErrUnexpectedEOF.
func (r *reader) peek(n int, start bool) ([]byte, error) {
	for r.w-r.r < n {
		r.arm()
		if err := r.more(n); err != nil && r.w-r.r < n && !r.again(err) {
			return nil, readError(r.explain(err), start && r.w == r.r)
		}
	}
	return r.buf.B[r.r : r.r+n], nil
}

// more reads once into the buffer, of which n bytes are wanted. The caller has
// set the deadline.
func (r *reader) more(n int) error {
	var k int
	var err error
	if r.r == r.w {
		r.r, r.w = 0, 0
		r.full = false
		if r.lazy != nil || r.buf != nil && len(r.buf.B) != r.size() {
			bufpool.Put(r.buf)
			r.buf = nil
		}
	}
	if r.buf == nil && r.lazy != nil {
		if k, err = r.lazy.read(r); k > 0 {
			r.reads.Add(1)
		}
	} else {
		r.room(n)
		k, err = r.fill(r.buf.B[r.w:])
	}
	r.w += k
	if r.buf == nil {
		return err
	}
	if r.w == len(r.buf.B) {
		r.full, r.large, r.spare = true, true, 0
	} else if k >= smallBuffer {
		r.spare = 0
	} else if r.large {
		if r.spare++; r.spare == shrinkAfter {
			r.large, r.spare = false, 0
		}
	}
	return err
}

// size returns the size of the next buffer.
func (r *reader) size() int {
	if r.large {
		return fullBuffer
	}
	return smallBuffer
}

// take gets a buffer for the reader, which has none.
func (r *reader) take(size int) {
	r.buf = bufpool.GetSize(size)
	r.buf.B = r.buf.B[:min(cap(r.buf.B), size)]
}

// room makes space behind r.w for the n bytes from r.r on, or some of it. The
// buffer doubles when what arrived has filled it, so that it never runs far
// ahead of the bytes received.
func (r *reader) room(n int) {
	if r.buf == nil {
		r.take(r.size())
		return
	}
	have := r.w - r.r
	size := len(r.buf.B)
	if r.full && size < max(n, fullBuffer) {
		old := r.buf
		r.take(min(max(2*size, fullBuffer), max(n, fullBuffer)))
		copy(r.buf.B, old.B[r.r:r.w])
		bufpool.Put(old)
	} else if r.r > 0 && r.r+n > size {
		copy(r.buf.B, r.buf.B[r.r:r.w])
	} else {
		return
	}
	r.full = false
	r.r, r.w = 0, have
}

func (r *reader) discard(n int) { r.r += n }

// whole reports whether the next packet is in the buffer as a whole, so that it
// can be read without waiting.
func (r *reader) whole() bool {
	have := int64(r.w - r.r)
	if have < r.body+packet.LengthSize {
		return false
	}
	b := r.buf.B[int64(r.r)+r.body : r.w]
	bodyAt := packet.LengthSize + int64(binary.BigEndian.Uint32(b))
	if int64(len(b)) < bodyAt+packet.LengthSize {
		return false
	}
	return int64(len(b)) >= bodyAt+packet.LengthSize+int64(binary.BigEndian.Uint32(b[bodyAt:]))
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
	buf := bufpool.GetSize(smallBuffer)
	defer bufpool.Put(buf)
	for r.body > 0 {
		r.arm()
		k, err := r.fill(buf.B[:min(r.body, int64(cap(buf.B)))])
		r.body -= int64(k)
		if err != nil && r.body > 0 && !r.again(err) {
			return readError(r.explain(err), false)
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
