package stream

import (
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/henrylee2cn/teleport/internal/bufpool"
	"github.com/henrylee2cn/teleport/internal/credit"
	"github.com/henrylee2cn/teleport/internal/waiter"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// ErrBusy is the error of a goroutine that wants to receive while another does.
var ErrBusy = errors.New("another goroutine receives from the stream")

const (
	// smallValue is the size up to which values are put together in one buffer.
	smallValue = 4 << 10
	// entryHead is what stands before each value in such a buffer: its length, its cost, and its gzip level.
	entryHead = 4 + 4 + 1
)

// piece is a part of what waits to be received: a buffer with small values, or one value.
type piece struct {
	chunk *bufpool.Buffer // nil for one value
	body  socket.Body
	gzip  int32
	cost  uint64
}

// In is the receiving half of a stream. One goroutine at a time, the connection's, puts values in, and one at
// a time gets them with Next.
type In struct {
	stream *Stream
	budget *packet.Budget
	credit credit.Receiver

	// busy is set while a goroutine has the fields below it, and dropped when nothing is received any more.
	busy, dropped atomic.Bool
	taken         []piece // from queue
	at            int     // where the next value of the first chunk begins
	read          uint64  // the cost of what was read, as far as credit has not been told
	toldAt        uint32  // how many other packets there were then

	grownAt uint32 // how many other packets there were when grow was called; only the reader uses it

	mu      sync.Mutex // guards the fields below
	queue   []piece
	end     error // what follows the values; nil while more may come
	waiting bool  // Next waits, and is to be woken
	woken   waiter.Waiter
}

func (in *In) init(s *Stream, budget *packet.Budget) {
	in.stream, in.budget = s, budget
	in.credit.Init(Window, Window)
	in.credit.GrowTo(MaxWindow)
	in.woken.Init()
}

// putSmall puts a small value in. It copies raw.
func (in *In) putSmall(raw []byte, gzip int32, cost uint64) {
	in.mu.Lock()
	if in.end != nil {
		in.mu.Unlock()
		return
	}
	need := entryHead + len(raw)
	last := len(in.queue) - 1
	if last < 0 || !in.queue[last].hasRoom(need) {
		size := bufpool.First
		if last >= 0 || need > size {
			size = bufpool.Small
		}
		if last > 0 || need > size {
			size = bufpool.Full
		}
		chunk := bufpool.GetSize(size)
		if !in.budget.Take(int64(cap(chunk.B))) {
			bufpool.Put(chunk)
			in.mu.Unlock()
			in.Fail(packet.ErrBudget)
			return
		}
		in.queue = append(in.queue, piece{chunk: chunk})
		last++
	}
	in.queue[last].add(raw, gzip, cost)
	in.wakeLocked()
	in.mu.Unlock()
}

// hasRoom reports whether the piece is a buffer with room for n more bytes.
func (p *piece) hasRoom(n int) bool { return p.chunk != nil && cap(p.chunk.B)-len(p.chunk.B) >= n }

// add adds a value to a buffer.
func (p *piece) add(raw []byte, gzip int32, cost uint64) {
	b := p.chunk.B
	b = binary.LittleEndian.AppendUint32(b, uint32(len(raw)))
	b = binary.LittleEndian.AppendUint32(b, uint32(cost))
	b = append(b, byte(int8(gzip)))
	p.chunk.B = append(b, raw...)
}

// put puts a value in, and owns its body.
func (in *In) put(p piece) {
	in.mu.Lock()
	if in.end != nil {
		in.mu.Unlock()
		p.body.Release()
		return
	}
	in.queue = append(in.queue, p)
	in.wakeLocked()
	in.mu.Unlock()
}

// wakeLocked wakes Next.
func (in *In) wakeLocked() {
	if in.waiting {
		in.waiting = false
		in.woken.Done()
	}
}

// End says that no values come any more, and with which error Next then ends. Only the first call counts, but
// that any other error takes the place of io.EOF.
func (in *In) End(err error) {
	in.mu.Lock()
	if in.end == nil || in.end == io.EOF {
		in.end = err
	}
	in.wakeLocked()
	in.mu.Unlock()
}

// Fail is End without the values that wait.
func (in *In) Fail(err error) {
	in.mu.Lock()
	in.end = err
	queue := in.queue
	in.queue = nil
	in.wakeLocked()
	in.mu.Unlock()
	in.free(queue)
}

// Drop is Fail, and lets go of everything else that the stream has received.
func (in *In) Drop(err error) {
	in.Fail(err)
	in.dropped.Store(true)
	in.clean()
}

// clean frees what was taken, unless a goroutine uses it, which does so then.
func (in *In) clean() {
	if in.busy.CompareAndSwap(false, true) {
		in.freeTaken()
		in.busy.Store(false)
	}
}

func (in *In) freeTaken() {
	in.free(in.taken)
	in.taken, in.at = nil, 0
}

func (in *In) free(pieces []piece) {
	for i := range pieces {
		in.freePiece(&pieces[i])
	}
}

func (in *In) freePiece(p *piece) {
	if p.chunk != nil {
		in.budget.Give(int64(cap(p.chunk.B)))
		bufpool.Put(p.chunk)
	}
	p.body.Release()
	*p = piece{}
}

// Next waits for the next value and calls use with its body, as it stands on the wire, and its gzip level.
// The body is valid until use returns. The error is use's, or that of End, Fail or Drop, or ErrBusy.
func (in *In) Next(use func(raw []byte, gzip int32) error) error {
	if !in.busy.CompareAndSwap(false, true) {
		return ErrBusy
	}
	defer in.leave()
	if in.dropped.Load() {
		in.freeTaken()
	}
	for len(in.taken) == 0 {
		if err := in.take(); err != nil {
			return err
		}
	}
	p := &in.taken[0]
	if p.chunk == nil {
		in.read += p.cost
		defer in.done()
		return use(p.body.B, p.gzip)
	}
	b := p.chunk.B[in.at:]
	n := int(binary.LittleEndian.Uint32(b))
	in.read += uint64(binary.LittleEndian.Uint32(b[4:]))
	gzip := int32(int8(b[8]))
	in.at += entryHead + n
	if in.at == len(p.chunk.B) {
		defer in.done()
	}
	return use(b[entryHead:entryHead+n], gzip)
}

// done frees the first piece, which was used up.
func (in *In) done() {
	in.freePiece(&in.taken[0])
	in.taken, in.at = in.taken[1:], 0
	in.tell()
}

// leave ends Next.
func (in *In) leave() {
	in.busy.Store(false)
	if in.dropped.Load() {
		in.clean()
	}
}

// tell gives the other side credit back for what was read.
func (in *In) tell() {
	if in.read == 0 {
		return
	}
	if other := in.stream.wire.OtherPackets(); other != in.toldAt { // which wait behind what is on the way
		in.toldAt = other
		in.credit.Shrink()
	}
	amount, due := in.credit.Handled(in.read)
	in.read = 0
	if due && !in.dropped.Load() {
		in.stream.grant(amount)
	}
}

// grow is called by the goroutine that reads when the sender waits for credit.
func (in *In) grow() {
	other := in.stream.wire.OtherPackets()
	if other != in.grownAt {
		in.grownAt = other
		return
	}
	next := min(2*in.credit.Window(), MaxWindow)
	if set := in.stream.set; set != nil && !set.grow(in.stream, next) {
		return
	}
	if amount, more := in.credit.Grow(); more {
		in.stream.grant(amount)
	}
}

// take waits until there is something in the queue, and takes all of it.
func (in *In) take() error {
	in.tell()
	in.mu.Lock()
	for len(in.queue) == 0 {
		if err := in.end; err != nil {
			in.mu.Unlock()
			return err
		}
		in.waiting = true
		in.mu.Unlock()
		in.woken.Wait()
		in.mu.Lock()
	}
	in.taken, in.queue = in.queue, nil
	in.mu.Unlock()
	return nil
}
