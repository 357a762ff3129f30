package auth

import (
	"net/netip"
	"sync"
	"time"
)

// How many attempts may fail from one address, and within which time, without the option Failures.
const (
	defaultFailures    = 10
	defaultFailureTime = time.Minute
)

// maxAddresses is how many addresses are remembered in each half of the time. More are not: the memory that
// attempts take must have a bound.
const maxAddresses = 1 << 16

// attempts counts those that have failed, by address: in a window of time that moves on by halves, so that
// memory is given back without looking at each address.
type attempts struct {
	most int
	half time.Duration

	mu        sync.Mutex // guards the fields below
	began     time.Time  // of now
	now, last map[netip.Prefix]int
}

func (t *attempts) init(most int, within time.Duration) { t.most, t.half = most, within/2 }

// turnLocked makes now the half that the time is in.
func (t *attempts) turnLocked(now time.Time) {
	switch past := now.Sub(t.began); {
	case past < t.half && past >= 0:
		return
	case past < 2*t.half && past >= 0:
		t.last = t.now
	default:
		t.last = nil
	}
	t.now, t.began = make(map[netip.Prefix]int), now
}

// failed counts an attempt from the address.
func (t *attempts) failed(address netip.Prefix, now time.Time) {
	if t.most < 0 || !address.IsValid() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turnLocked(now)
	if _, known := t.now[address]; known || len(t.now) < maxAddresses {
		t.now[address]++
	}
}

// wait returns how long the address has to wait, and 0 if it has not.
func (t *attempts) wait(address netip.Prefix, now time.Time) time.Duration {
	if t.most < 0 || !address.IsValid() {
		return 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turnLocked(now)
	if t.now[address]+t.last[address] < t.most {
		return 0
	}
	return t.half - now.Sub(t.began) + time.Millisecond
}
