package tp

import (
	"hash/maphash"
	"sync"

	"github.com/henrylee2cn/teleport/packet"
)

// callTable holds the calls that a link has brought and that run or wait, so that each can
// be told when its caller gives up or the link ends. A quick call on the reading goroutine
// is not in it until it asks for its context, or the reader is replaced: before that
// nobody reads what the caller says.
//
// A call's hashed, next and entered are the table's, under mu and the call's own mu.
type callTable struct {
	mu      sync.Mutex   // guards the fields below
	buckets []*packetCtx // of a power of two, by hashed; each the first of a list
	n       int
	ended   bool // the link has; no call is entered any more
}

const (
	minBuckets = 8
	// maxIdleBuckets is the most that is kept while the table is empty.
	maxIdleBuckets = 1 << 10
)

// idSeed makes it hard to choose ids that meet in one bucket.
var idSeed = maphash.MakeSeed()

// enterLocked takes a call in, whose mu is held. It reports false if the link has ended.
func (t *callTable) enterLocked(c *packetCtx) bool {
	if c.entered {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return false
	}
	if t.n >= len(t.buckets) {
		t.growLocked()
	}
	c.entered = true
	c.hashed = maphash.String(idSeed, c.id)
	t.n++
	t.placeLocked(c)
	return true
}

func (t *callTable) placeLocked(c *packetCtx) {
	at := &t.buckets[c.hashed&uint64(len(t.buckets)-1)]
	c.next = *at
	*at = c
}

func (t *callTable) growLocked() {
	old := t.buckets
	t.buckets = make([]*packetCtx, max(minBuckets, 2*len(old)))
	for _, c := range old {
		for c != nil {
			next := c.next
			t.placeLocked(c)
			c = next
		}
	}
}

// leaveLocked takes a call out that is entered, and whose mu is held.
func (t *callTable) leaveLocked(c *packetCtx) {
	c.entered = false
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return
	}
	at := &t.buckets[c.hashed&uint64(len(t.buckets)-1)]
	for *at != c {
		at = &(*at).next
	}
	*at, c.next = c.next, nil
	if t.n--; t.n == 0 && len(t.buckets) > maxIdleBuckets {
		t.buckets = nil
	}
}

// pulls returns the pulls with the id: more than one only if the other side has used it
// more than once.
func (t *callTable) pulls(id []byte) (found []*packetCtx) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == 0 {
		return nil
	}
	for c := t.buckets[maphash.Bytes(idSeed, id)&uint64(len(t.buckets)-1)]; c != nil; c = c.next {
		if c.typ == packet.TypePull && c.id == string(id) {
			found = append(found, c)
		}
	}
	return found
}

// end takes all calls out and returns them; no other is entered from now on.
func (t *callTable) end() (calls []*packetCtx) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	for _, c := range t.buckets {
		for c != nil {
			next := c.next
			c.next = nil
			calls = append(calls, c)
			c = next
		}
	}
	t.buckets, t.n = nil, 0
	return calls
}

// len returns how many calls are in the table.
func (t *callTable) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}
