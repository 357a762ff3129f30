package main

import (
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/teleport/bench/stats"
)

// tally counts what all members have received. All methods are safe for concurrent use, but wait, of which
// one call runs at a time.
type tally struct {
	delivered atomic.Int64
	target    atomic.Int64  // how many deliveries wait waits for
	reached   chan struct{} // has a value when delivered was target
	took      stats.Hist    // from when a message was sent until a member had it

	once   sync.Once // for err
	err    error     // the first failure; read it only after failed is closed
	failed chan struct{}
}

func newTally() *tally {
	return &tally{reached: make(chan struct{}, 1), failed: make(chan struct{})}
}

// deliver counts a delivery.
func (t *tally) deliver(took time.Duration) {
	t.took.Record(took)
	if t.delivered.Add(1) == t.target.Load() {
		select {
		case t.reached <- struct{}{}:
		default:
		}
	}
}

// fail notes a failure. Only the first one counts.
func (t *tally) fail(err error) {
	t.once.Do(func() {
		t.err = err
		close(t.failed)
	})
}

// failure returns the first failure; nil if there is none.
func (t *tally) failure() error {
	select {
	case <-t.failed:
		return t.err
	default:
		return nil
	}
}

// wait waits until so many deliveries were counted in all, no longer than the patience lasts. That more were
// counted is an error.
func (t *tally) wait(target int64, patience time.Duration) error {
	t.target.Store(target)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		if err := t.failure(); err != nil {
			return err
		}
		switch n := t.delivered.Load(); {
		case n == target:
			return nil
		case n > target:
			return fmt.Errorf("%d deliveries were counted, where %d messages were sent to members", n, target)
		}
		select {
		case <-t.reached:
		case <-t.failed:
		case <-timer.C:
			return fmt.Errorf("%d of %d deliveries have come in %v", t.delivered.Load(), target, patience)
		}
	}
}

// member checks what one member receives: each message once. Its methods are called by one goroutine, unless
// it was made for messages in any order.
type member struct {
	tally *tally
	next  uint64 // the number of the first message that has not come

	// With anyOrder messages may come before earlier ones, and by several goroutines.
	anyOrder bool
	mu       sync.Mutex // guards next and early of a member with anyOrder
	early    uint64     // a bit for each of the messages after next that has come
}

// receive takes a message.
func (m *member) receive(b []byte) error {
	number, at, err := read(b)
	if err != nil {
		return err
	}
	took := time.Since(at)
	switch {
	case m.anyOrder:
		if err := m.count(number); err != nil {
			return err
		}
	case number != m.next:
		return fmt.Errorf("message %d came where %d was expected", number, m.next)
	default:
		m.next++
	}
	m.tally.deliver(took)
	return nil
}

var errFarAhead = errors.New("64 messages or more have come before it")

// count counts a message that may come before earlier ones.
func (m *member) count(number uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	ahead := number - m.next
	switch {
	case number < m.next || ahead < 64 && m.early>>ahead&1 != 0:
		return fmt.Errorf("message %d came twice", number)
	case ahead >= 64:
		return fmt.Errorf("message %d: %w", m.next, errFarAhead)
	}
	m.early |= 1 << ahead
	n := bits.TrailingZeros64(^m.early)
	m.next += uint64(n)
	m.early >>= n
	return nil
}
