// Package bufpool lends byte buffers for use inside the framework. No program that uses the framework ever
// holds one.
package bufpool

import (
	"strings"
	"sync"
	"unsafe"
)

// Sizes of the buffers that are lent, in bytes. From Full on each is twice the one
// before, with room for what goes with a body of 64 KiB, 128 KiB and so on.
const (
	First = 512 // what Get lends
	Small = 4 << 10
	Full  = 65 << 10
)

// MaxKept is the capacity above which a returned buffer is left to the garbage
// collector at once. What is kept is kept for a while only: the collector
// empties the pools in two rounds.
const MaxKept = Full << 7

var sizes = [...]int{First, Small, Full, Full << 1, Full << 2, Full << 3, Full << 4, Full << 5, Full << 6,
	MaxKept}

// Buffer is a borrowed byte slice. The holder of the pointer owns B until Put; nobody else may read or
// write it.
type Buffer struct {
	B []byte
	// Shared is not nil if B is a part of bytes that are shared, which the Buffer holds: nobody writes
	// them, and Put releases them.
	Shared *Shared
}

var pools [len(sizes)]sync.Pool // for each of sizes: buffers with at least that capacity

// Get lends an empty buffer. It is safe for concurrent use.
func Get() *Buffer { return GetSize(First) }

// GetSize lends an empty buffer with a capacity of at least n bytes.
func GetSize(n int) *Buffer {
	b, size := pooled(n)
	if b == nil {
		b = &Buffer{B: Make(size)}
	}
	return b
}

// notCleared is the size from which Make does not clear memory.
const notCleared = 32 << 10

// Make returns an empty slice with a capacity of n bytes. Large memory is not cleared: that takes about as
// long as to copy it, and whoever does it holds up others, in the end for nothing, as all of it is written
// before anybody reads it.
func Make(n int) []byte {
	if n < notCleared {
		return make([]byte, 0, n)
	}
	var b strings.Builder // whose memory is not cleared
	b.Grow(n)
	b.WriteByte(0)
	return unsafe.Slice(unsafe.StringData(b.String()), b.Cap())[:0:n]
}

// pooled lends what the pools have of the least size that n bytes fit in, and
// returns that size; the buffer is nil if they have none.
func pooled(n int) (b *Buffer, size int) {
	for i, size := range sizes {
		if n <= size {
			b, _ = pools[i].Get().(*Buffer)
			return b, size
		}
	}
	return nil, n
}

// Put takes a buffer back; nil is allowed. The caller must
// not use b, or any slice of b.B, afterwards.
func Put(b *Buffer) {
	if b == nil {
		return
	}
	if b.Shared != nil {
		b.Shared.Release()
		return
	}
	size := cap(b.B)
	if size > MaxKept {
		return
	}
	b.B = b.B[:0]
	for i := len(sizes) - 1; i >= 0; i-- {
		if size >= sizes[i] {
			pools[i].Put(b)
			return
		}
	}
}

// Grow returns b with room for n more bytes behind its length. Where it needs
// other memory it takes that from the pools if there is some, however large.
func Grow(b []byte, n int) []byte {
	if cap(b)-len(b) >= n {
		return b
	}
	// The memory goes back to the pools if b is a buffer's: with that buffer.
	return append(GetSize(len(b)+n).B, b...)
}

// Pooled lends an empty buffer with room for n bytes if the pools have one, and nil if it
// would be new memory: it is for bytes that have been announced and not received.
func Pooled(n int) *Buffer {
	b, _ := pooled(n)
	return b
}
