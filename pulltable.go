package tp

import (
	"math"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// pullTable holds the pulls in flight on one connection. Taking an entry out is
// owning the command. Ids are counted up, so most entries are in a ring, where
// nothing has to be hashed.
type pullTable struct {
	last   atomic.Uint64
	unsent atomic.Uint64 // ids of pulls that were never entered

	mu   sync.Mutex // guards the fields below
	ring []*PullCmd // the pull n is at n modulo its length, a power of two,
	// or in more, if an older one that is still in flight has that place.
	more   map[uint64]*PullCmd
	n      int // in flight
	taken  uint64
	closed bool
}

const (
	minRing = 8
	// maxIdleRing is the longest ring that is kept while nothing is in flight.
	maxIdleRing = 1 << 10
)

func (t *pullTable) newId() uint64 { return t.last.Add(1) }

// add enters the command under its id, for so long at most if timeout is not zero; false
// means that the connection has ended.
func (t *pullTable) add(cmd *PullCmd, timeout time.Duration) bool {
	t.mu.Lock()
	open := !t.closed
	if open {
		if t.n >= len(t.ring)/2 {
			t.growLocked()
		}
		t.n++
		t.placeLocked(cmd)
		if timeout > 0 { // nobody can settle the pull before mu is free
			cmd.startTimer(timeout)
		}
	}
	t.mu.Unlock()
	return open
}

func (t *pullTable) placeLocked(cmd *PullCmd) {
	if at := &t.ring[cmd.id&uint64(len(t.ring)-1)]; *at == nil {
		*at = cmd
		return
	}
	if t.more == nil {
		t.more = make(map[uint64]*PullCmd)
	}
	t.more[cmd.id] = cmd
}

func (t *pullTable) growLocked() {
	ring, more := t.ring, t.more
	t.ring, t.more = make([]*PullCmd, max(minRing, 2*len(ring))), nil
	for _, cmd := range ring {
		if cmd != nil {
			t.placeLocked(cmd)
		}
	}
	for _, cmd := range more {
		t.placeLocked(cmd)
	}
}

// take removes and returns the command with the id, nil if there is none.
func (t *pullTable) take(id uint64) *PullCmd {
	t.mu.Lock()
	cmd := t.takeLocked(id)
	t.mu.Unlock()
	return cmd
}

// has reports whether the command with the id is in flight.
func (t *pullTable) has(id uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == 0 {
		return false
	}
	at := t.ring[id&uint64(len(t.ring)-1)]
	return at != nil && at.id == id || t.more[id] != nil
}

func (t *pullTable) takeLocked(id uint64) *PullCmd {
	if t.n == 0 {
		return nil
	}
	at := &t.ring[id&uint64(len(t.ring)-1)]
	cmd := *at
	if cmd != nil && cmd.id == id {
		*at = nil
	} else if cmd = t.more[id]; cmd != nil {
		delete(t.more, id)
	} else {
		return nil
	}
	t.taken++
	if t.n--; t.n == 0 && len(t.ring) > maxIdleRing {
		t.ring, t.more = nil, nil
	}
	return cmd
}

// awaited reports whether any pull is in flight, or about to be.
func (t *pullTable) awaited() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	done := t.taken + t.unsent.Load() // counted after the id
	return t.last.Load() != done
}

func (t *pullTable) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}

// close refuses newcomers from now on and returns what was in flight.
func (t *pullTable) close() []*PullCmd {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	cmds := make([]*PullCmd, 0, t.n)
	for _, cmd := range t.ring {
		if cmd != nil {
			cmds = append(cmds, cmd)
		}
	}
	for _, cmd := range t.more {
		cmds = append(cmds, cmd)
	}
	t.taken += uint64(t.n)
	t.ring, t.more, t.n = nil, nil, 0
	return cmds
}

// appendPullId and parsePullId turn a pull's number into its id on the wire and
// back. No two ids are the same number.
func appendPullId(dst []byte, n uint64) []byte { return strconv.AppendUint(dst, n, 10) }

func parsePullId(id []byte) (uint64, bool) {
	if len(id) == 0 || id[0] == '0' {
		return 0, false
	}
	var n uint64
	for _, c := range id {
		d := uint64(c - '0')
		if d > 9 || n > (math.MaxUint64-d)/10 {
			return 0, false
		}
		n = 10*n + d
	}
	return n, true
}
