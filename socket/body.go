package socket

import (
	"fmt"
	"unsafe"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/internal/bufpool"
	"github.com/henrylee2cn/teleport/packet"
)

// A Body is the body of a received packet as it stands on the wire, with its codec id first; it is empty if
// the packet has none. The Body owns its memory, and what was taken from the budget for it, until Release. It
// is not safe for concurrent use. A copy takes the place of the original, which must not be used any more.
// The zero value is no body.
type Body struct {
	B      []byte
	buf    *bufpool.Buffer // the buffer that holds B; nil if B is in other memory
	cost   int64           // taken from budget
	budget *packet.Budget
}

// Release ends the use of the body. It may be called more than once.
func (b *Body) Release() {
	if b.buf != nil || b.cost > 0 {
		b.giveBack()
	}
	b.B = nil
}

func (b *Body) giveBack() {
	b.budget.Give(b.cost)
	bufpool.Put(b.buf)
	*b = Body{}
}

// Detach makes B ordinary memory that the garbage collector frees. Release then only gives back what was
// taken from the budget.
func (b *Body) Detach() { b.buf = nil }

// handOver is the least length of a body that HandOver takes.
const handOver = 32 << 10

// HandOver makes the body the value of v without a copy, if the body is a large one of the string codec and
// not compressed, the limits let it be decoded, and v is a *[]byte or a *string. It reports whether it has.
// The body is empty then, but for what it has taken from the budget.
//
// The pools get memory of the same size in its place, so that the goroutine that reads finds some there: to
// make large memory may take long, when it is the turn of whoever makes it to collect garbage.
func (b *Body) HandOver(v interface{}, gzip int32, limits packet.Limits) bool {
	if len(b.B) < handOver || b.B[0] != codec.IdString || gzip != 0 || b.Oversized() ||
		!limits.AllowsDecoded(int64(len(b.B))) {
		return false
	}
	data := b.B[1:len(b.B):len(b.B)]
	switch p := v.(type) {
	case *[]byte:
		if p == nil {
			return false
		}
		*p = data
	case *string:
		if p == nil {
			return false
		}
		*p = unsafe.String(&data[0], len(data))
	default:
		return false
	}
	if b.buf != nil {
		b.buf.B = bufpool.Make(cap(b.buf.B))
		bufpool.Put(b.buf)
	}
	b.B, b.buf = nil, nil
	return true
}

// TakeCost returns how many bytes are taken from the budget for the body, which the caller is to give back
// from now on.
func (b *Body) TakeCost() int64 {
	cost := b.cost
	b.cost = 0
	return cost
}

// Oversized reports whether the body is in a buffer of the pools that is more than twice as large.
func (b *Body) Oversized() bool { return b.buf != nil && cap(b.B) > 2*len(b.B) }

// Trim moves a body that is Oversized into memory of its own size: for a body that is kept for some time.
func (b *Body) Trim() {
	if !b.Oversized() {
		return
	}
	exact := append(bufpool.Make(len(b.B)), b.B...)
	bufpool.Put(b.buf)
	if most := int64(cap(exact)); b.cost > most {
		b.budget.Give(b.cost - most)
		b.cost = most
	}
	b.B, b.buf = exact, nil
}

// Cost returns how many bytes are taken from the budget for the body.
func (b *Body) Cost() int64 { return b.cost }

// room makes space for n more bytes, in a buffer of the pools or in new memory, and takes that from the
// budget.
func (b *Body) room(n int, announced int64) error {
	if cap(b.B)-len(b.B) >= n {
		return nil
	}
	return b.move(bufpool.GetSize(len(b.B)+n), len(b.B)+n, announced)
}

// move copies the body into another buffer, of which need bytes are needed. A buffer of the pools may be much
// larger than that; if the budget has not enough for it, move makes one of the size that is needed.
func (b *Body) move(to *bufpool.Buffer, need int, announced int64) error {
	cost := int64(cap(to.B))
	ok := b.budget.Take(cost - b.cost)
	if !ok {
		bufpool.Put(to)
		if cost > int64(need) {
			to, cost = &bufpool.Buffer{B: bufpool.Make(need)}, int64(need)
			ok = b.budget.Take(cost - b.cost)
		}
	}
	if !ok {
		return fmt.Errorf("socket: a body of %d bytes: %w", announced, packet.ErrBudget)
	}
	if cost < b.cost {
		b.budget.Give(b.cost - cost)
	}
	b.cost = cost
	to.B = append(to.B, b.B...)
	bufpool.Put(b.buf)
	b.B, b.buf = to.B, to
	return nil
}

// copyBody is readBody for a body that has come and fits into what b has.
func (r *reader) copyBody(b *Body) bool {
	n := r.w - r.r
	if r.body > int64(n) || r.body > int64(cap(b.B)) {
		return false
	}
	if n = int(r.body); n > 0 { // the reader may have no buffer if n is 0
		b.B = append(b.B, r.buf.B[r.r:r.r+n]...)
		r.r += n
		r.body = 0
	}
	return true
}

// wholeFrom is the part of a body that must have come before there is memory for the whole of it.
const wholeFrom = 8

// readBody reads the current body into b, which is empty, and may have memory. It takes
// memory for what has come, and for as much again, until an eighth of the body has come, unless the pools
// have some.
func (r *reader) readBody(b *Body) error {
	b.budget = r.budget
	waits := r.body > int64(r.w-r.r) && !r.parting()
	if waits {
		r.budget.Waits(true)
	}
	err := r.readInto(b, r.body)
	if waits {
		r.budget.Waits(false)
	}
	return err
}

// nextRoom returns for how many more bytes of a body there is to be memory, of which so many have come.
func nextRoom(have, length int64) int64 {
	if have >= length/wholeFrom {
		return length - have
	}
	return max(have, fullBuffer-have)
}

// readInto reads what is left of the current body behind what b has, of a body of the length in all. After an
// error b has nothing.
func (r *reader) readInto(b *Body, length int64) (err error) {
	defer func() {
		if err != nil {
			b.Release()
		}
	}()
	if len(b.B) == 0 && int64(cap(b.B)) < length {
		if other := bufpool.Pooled(int(length)); other != nil {
			if err := b.move(other, int(length), length); err != nil {
				return err
			}
		}
	}
	if n := int(min(r.body, int64(r.w-r.r))); n > 0 {
		if err := b.room(n, length); err != nil {
			return err
		}
		b.B = append(b.B, r.buf.B[r.r:r.r+n]...)
		r.r += n
		r.body -= int64(n)
	}
	for r.body > 0 {
		if len(b.B) == cap(b.B) {
			if err := b.room(int(nextRoom(int64(len(b.B)), length)), length); err != nil {
				return err
			}
		}
		free := int(min(r.body, int64(cap(b.B)-len(b.B))))
		r.arm()
		k, err := r.fill(b.B[len(b.B) : len(b.B)+free])
		b.B = b.B[:len(b.B)+k]
		r.body -= int64(k)
		if err != nil && r.body > 0 && !r.again(err) {
			return readError(r.explain(err), false)
		}
	}
	if b.buf != nil {
		b.buf.B = b.B
	}
	return nil
}
