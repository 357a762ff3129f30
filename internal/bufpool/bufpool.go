// Package bufpool lends byte buffers that no user of the framework ever holds.
package bufpool

import "sync"

// MaxKept is the capacity in bytes above which a returned buffer is left to the
// garbage collector, so that one large packet does not pin memory for ever.
const MaxKept = 64 << 10

// Buffer is a borrowed byte slice. Whoever holds the pointer owns B; nobody
// else may read or write it until Put.
type Buffer struct {
	B []byte
}

var pool = sync.Pool{New: func() any { return &Buffer{B: make([]byte, 0, 512)} }}

// Get lends an empty buffer. It is safe for concurrent use.
func Get() *Buffer {
	return pool.Get().(*Buffer)
}

// Put takes a buffer back; nil is allowed. The caller must not use b, or any
// slice of b.B, afterwards.
func Put(b *Buffer) {
	if b == nil || cap(b.B) > MaxKept {
		return
	}
	b.B = b.B[:0]
	pool.Put(b)
}
