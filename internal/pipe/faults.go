package pipe

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// Faults say what becomes of the bytes that are written to one end, on their way to the other. The zero value
// delivers them as they are, at once.
type Faults struct {
	// Delay is how long after they were written bytes can be read, and the end of the output too.
	Delay time.Duration
	// Bandwidth is how many bytes a second the direction carries; 0 means any number.
	Bandwidth int64
	// CutAfter closes the end that writes when it writes more than this many bytes: they still reach the
	// other end, then both directions are over. 0 means never, and a negative number at the first byte.
	CutAfter int64
	// FlipAt are the offsets of bytes of which every bit is inverted.
	FlipAt []int64
	// FlipRate is the probability with which a byte has one of its bits inverted. Seed decides which.
	FlipRate float64
	Seed     uint64
	// Silent makes bytes vanish: they can be written, without any wait, and are never read. Stalled keeps
	// them where they are: no more than the buffer can be written, and nothing is read until the faults
	// change. In both cases no end of the output, and no end of the connection, comes through either, until
	// the faults change.
	Silent, Stalled bool
}

// Problem says which field has a value that cannot be, and what was expected; empty if none has.
func (f *Faults) Problem() string {
	switch {
	case f.Delay < 0:
		return fmt.Sprintf("Delay: %v is negative; expected how long bytes are under way, or 0", f.Delay)
	case f.Bandwidth < 0:
		return fmt.Sprintf("Bandwidth: %d is negative; expected bytes a second, or 0 for no bound",
			f.Bandwidth)
	case !(f.FlipRate >= 0 && f.FlipRate <= 1):
		return fmt.Sprintf("FlipRate: %v is no probability; expected a number from 0 to 1", f.FlipRate)
	}
	for i, at := range f.FlipAt {
		if at < 0 {
			return fmt.Sprintf("FlipAt[%d]: %d is negative; expected the offset of a byte, from 0", i, at)
		}
	}
	return ""
}

// SetFaults changes what becomes of the bytes that are written to this end, while others read and write.
// Offsets and counts begin at the next byte. Bytes that are under way arrive as they would have before the
// change; they arrive at once if the new faults have neither Delay nor Bandwidth, and vanish if the new
// faults are Silent. The faults must have no [Faults.Problem].
func (e *End) SetFaults(f Faults) {
	s := e.out
	s.mu.Lock()
	defer s.mu.Unlock()
	s.f, s.offset, s.random, s.lineFree = f, 0, nil, time.Time{}
	if f.FlipRate > 0 {
		s.random = rand.New(rand.NewPCG(f.Seed, 0))
	}
	s.quiet.Store(f.Silent || f.Stalled)
	if f.Silent {
		s.vanishLocked()
	}
	if f.Delay == 0 && f.Bandwidth == 0 {
		for i := range s.flights {
			s.flights[i].at = time.Time{}
		}
	}
	s.arriveLocked()
	s.cond.Broadcast()
}

// Reset breaks the connection, whatever the faults are: from now on reads and writes of both ends fail as
// those of a connection that a network has cut, and what was not read is lost.
func (e *End) Reset() {
	e.in.reset()
	e.out.reset()
}

// flight is a number of bytes that were written together and cannot be read yet.
type flight struct {
	n    int
	at   time.Time // when they arrive, but not before the flight in front of them
	last bool      // the end of the output comes with them
}

// maxPieces is into how many pieces a second's bytes are taken apart if there is a Bandwidth.
const maxPieces = 100

// launchLocked sends the last n bytes of the buffer on their way, and the end of the output with them.
func (s *stream) launchLocked(n int, last bool) {
	f := &s.f
	if len(s.flights) == 0 && f.Delay == 0 && f.Bandwidth == 0 && !f.Silent && !f.Stalled {
		s.arrived += n
		s.finished = last
		s.cond.Broadcast()
		return
	}
	if f.Bandwidth == 0 || n == 0 {
		s.flights = append(s.flights, flight{n, time.Now().Add(f.Delay), last})
		return
	}
	piece := int(max(1, f.Bandwidth/maxPieces))
	for now := time.Now(); n > 0; {
		k := min(piece, n)
		if s.lineFree.Before(now) {
			s.lineFree = now
		}
		took := time.Duration(float64(k) / float64(f.Bandwidth) * float64(time.Second))
		s.lineFree = s.lineFree.Add(took)
		s.flights = append(s.flights, flight{k, s.lineFree.Add(f.Delay), false})
		n -= k
	}
	if last {
		s.flights[len(s.flights)-1].last = true
	}
}

// arriveLocked lets be read what has arrived, and sets the timer for what arrives next.
func (s *stream) arriveLocked() {
	if s.f.Silent || s.f.Stalled || len(s.flights) == 0 {
		return
	}
	now := time.Now()
	for len(s.flights) > 0 && !s.flights[0].at.After(now) {
		s.arrived += s.flights[0].n
		s.finished = s.finished || s.flights[0].last
		s.flights = s.flights[1:]
		s.cond.Broadcast()
	}
	if len(s.flights) == 0 || s.timer != nil {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(s.flights[0].at.Sub(now), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.timer == timer {
			s.timer = nil
			s.arriveLocked()
		}
	})
	s.timer = timer
}

// vanishLocked loses the bytes that are under way. The end of the output stays under way.
func (s *stream) vanishLocked() {
	s.buf = s.buf[:s.arrived]
	for i := range s.flights {
		s.flights[i].n = 0
	}
	s.cond.Broadcast()
}

// groundLocked loses everything that is under way: nobody can read it any more.
func (s *stream) groundLocked() {
	s.flights = nil
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
}

// flipLocked inverts bits of p, the bytes that are written next.
func (s *stream) flipLocked(p []byte) {
	for _, at := range s.f.FlipAt {
		if i := at - s.offset; i >= 0 && i < int64(len(p)) {
			p[i] = ^p[i]
		}
	}
	if s.random == nil {
		return
	}
	for i := range p {
		if s.random.Float64() < s.f.FlipRate {
			p[i] ^= 1 << s.random.IntN(8)
		}
	}
}

func (s *stream) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = true
	s.groundLocked()
	s.cond.Broadcast()
}
