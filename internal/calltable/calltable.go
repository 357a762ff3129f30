// Package calltable holds the calls of one connection by number. There is a table for the pulls of this side
// that wait for a reply, whose numbers count up, and one for the calls of the other side that run or wait,
// whose numbers are hashes of the ids that the other side has chosen.
//
// The table is generic over the struct of a call, and only holds pointers to it. It calls no method of the
// struct and makes no interface of it, so that no operation goes through a dictionary of the compiler.
package calltable

import (
	"sync"
	"sync/atomic"
)

const (
	minBuckets = 8
	// maxIdleBuckets is how many buckets are kept at most while the table is empty.
	maxIdleBuckets = 1 << 10
)

// Entry links a call into a table. It is a field of the call, and only the table uses it while the call is in
// the table. The zero value is ready to use.
type Entry[T any] struct {
	number uint64
	of     *T
	next   *Entry[T]
}

// Number returns the number with which the call was added last, 0 if it never was.
func (e *Entry[T]) Number() uint64 { return e.number }

// Table holds calls. The zero value is ready. All methods are safe for concurrent use.
type Table[T any] struct {
	mu sync.Mutex // guards the fields below
	// buckets are lists of the entries, by the low bits of their numbers. Their count is a power of two:
	// numbers that count up are each in a bucket of their own.
	buckets []*Entry[T]
	n       int
	taken   atomic.Uint64 // may be read without mu
	closed  bool
}

// Add enters the call under the number, with an entry that is in no table. It reports false, and does
// nothing, after Close.
func (t *Table[T]) Add(e *Entry[T], number uint64, of *T) bool {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return false
	}
	if t.n >= len(t.buckets) {
		t.growLocked()
	}
	t.n++
	at := &t.buckets[number&uint64(len(t.buckets)-1)]
	e.number, e.of, e.next = number, of, *at
	*at = e
	t.mu.Unlock()
	return true
}

func (t *Table[T]) growLocked() {
	old := t.buckets
	t.buckets = make([]*Entry[T], max(minBuckets, 2*len(old)))
	for _, e := range old {
		for e != nil {
			next := e.next
			at := &t.buckets[e.number&uint64(len(t.buckets)-1)]
			e.next = *at
			*at = e
			e = next
		}
	}
}

// Take takes out a call with the number and returns it, or nil if there is none. The caller then owns
// the call.
func (t *Table[T]) Take(number uint64) *T {
	t.mu.Lock()
	if t.n > 0 {
		for at := &t.buckets[number&uint64(len(t.buckets)-1)]; *at != nil; at = &(*at).next {
			if (*at).number == number {
				of := t.takeLocked(at)
				t.mu.Unlock()
				return of
			}
		}
	}
	t.mu.Unlock()
	return nil
}

// takeLocked takes out the entry that at points to.
func (t *Table[T]) takeLocked(at **Entry[T]) *T {
	e := *at
	of := e.of
	*at = e.next
	e.of, e.next = nil, nil
	t.taken.Add(1)
	if t.n--; t.n == 0 && len(t.buckets) > maxIdleBuckets {
		t.buckets = nil
	}
	return of
}

// Remove takes out the entry, and reports whether it was in the table. If it was not, the caller of Take or
// Close that has taken the call out owns it.
func (t *Table[T]) Remove(e *Entry[T]) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e.of == nil {
		return false
	}
	at := &t.buckets[e.number&uint64(len(t.buckets)-1)]
	for *at != e {
		at = &(*at).next
	}
	t.takeLocked(at)
	return true
}

// Has reports whether a call with the number is in the table.
func (t *Table[T]) Has(number uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n > 0 && t.findLocked(number) != nil
}

// findLocked returns the first entry with the number. The table is not empty.
func (t *Table[T]) findLocked(number uint64) *Entry[T] {
	e := t.buckets[number&uint64(len(t.buckets)-1)]
	for e != nil && e.number != number {
		e = e.next
	}
	return e
}

// Find returns all calls with the number, which stay in the table.
func (t *Table[T]) Find(number uint64) (found []*T) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == 0 {
		return nil
	}
	for e := t.findLocked(number); e != nil; e = e.next {
		if e.number == number {
			found = append(found, e.of)
		}
	}
	return found
}

// All returns all calls, which stay in the table.
func (t *Table[T]) All() []*T {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*T, 0, t.n)
	for _, e := range t.buckets {
		for ; e != nil; e = e.next {
			all = append(all, e.of)
		}
	}
	return all
}

// Close takes out all calls and returns them. From now on Add adds none.
func (t *Table[T]) Close() []*T {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	all := make([]*T, 0, t.n)
	for _, e := range t.buckets {
		for e != nil {
			next := e.next
			all = append(all, e.of)
			e.of, e.next = nil, nil
			e = next
		}
	}
	t.taken.Add(uint64(t.n))
	t.buckets, t.n = nil, 0
	return all
}

// Len returns how many calls are in the table.
func (t *Table[T]) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}

// Count returns what Taken reads, for those who read it often.
func (t *Table[T]) Count() *atomic.Uint64 { return &t.taken }

// Taken returns how many calls have been taken out of the table so far.
func (t *Table[T]) Taken() uint64 { return t.taken.Load() }
