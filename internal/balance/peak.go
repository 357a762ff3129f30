package balance

import (
	"math"
	"sync/atomic"
	"time"
)

// peak is a latency that was smoothed: the peak EWMA of Finagle's load balancers. A latency above it becomes
// its value at once; lower ones bring it down as an exponentially weighted mean does, by the time that has
// passed since the last one. So it says what a careful caller expects, and a server that slows down is
// avoided from the first slow answer on. Without any calls it falls by half in HalfLife, so that the server
// is tried again.
//
// A trial that finds the server as slow as before makes the next one later: the half-life doubles, twice at
// most. Many clients with few calls would otherwise keep a slow server busy with nothing but trials.
//
// Everything is one word, which makes it one atomic operation to change it: 27 bits of a float32 without its
// sign, 2 bits for how often the half-life has doubled, and 35 bits of a time in steps of 4 ms, which are
// four years. 0 is not known.
type peak struct{ word atomic.Uint64 }

// peakState is what a peak knows.
type peakState struct {
	value   float64 // nanoseconds, as it was at since
	since   uint64  // in steps
	doubled uint64
	known   bool // false: there was no call yet
}

const (
	peakStep    = 4 * time.Millisecond
	stepBits    = 35
	doubledBits = 2
	lostBits    = 4 // of the float32's mantissa, of 23
	maxSteps    = 1<<stepBits - 1
	maxDoubled  = 2
	leastPeak   = 1 // nanosecond; 0 is for what is not known
	mostPeak    = float64(24 * time.Hour)
	// staleHalves is after how many half-lives of silence a latency is unknown again.
	staleHalves = 3
	// confirms is which part of the old value an answer must be, after a half-life of silence, to say that
	// the server is as slow as it was. It is small because a peak is at the upper end of latencies that vary.
	confirms = 1. / 8
)

func (s peakState) pack() uint64 {
	bits := math.Float32bits(float32(min(max(s.value, leastPeak), mostPeak)))
	return uint64(bits>>lostBits)<<(stepBits+doubledBits) | s.doubled<<stepBits | s.since
}

func unpack(word uint64) peakState {
	bits := uint32(word>>(stepBits+doubledBits)) << lostBits
	return peakState{
		value:   float64(math.Float32frombits(bits)),
		since:   word & maxSteps,
		doubled: word >> stepBits & (1<<doubledBits - 1),
		known:   word != 0,
	}
}

// silent returns for how many half-lives there was no answer.
func (s peakState) silent(step uint64) float64 {
	if step <= s.since {
		return 0
	}
	return float64(step-s.since) * (float64(peakStep) / float64(HalfLife)) / float64(uint64(1)<<s.doubled)
}

func (s peakState) stale(step uint64) bool { return s.silent(step) > staleHalves }

// decayed is what is left of the value.
func (s peakState) decayed(step uint64) float64 { return s.value * math.Exp2(-s.silent(step)) }

func stepOf(age time.Duration) uint64 { return min(uint64(max(age, 0)/peakStep), maxSteps) }

// observe counts one answer. Of those within one step all but the first count only if they are higher.
func (p *peak) observe(age, took time.Duration) {
	step, sample := stepOf(age), float64(max(took, 0))
	for {
		old := p.word.Load()
		s := unpack(old)
		silent := s.silent(step)
		switch {
		case !s.known:
		case silent < 1:
		case sample < s.value*confirms:
			s.doubled = 0
		default:
			s.doubled = min(s.doubled+1, maxDoubled)
		}
		switch {
		case !s.known || sample >= s.value || silent > staleHalves:
			s.value = sample
		case silent == 0:
			return
		default:
			s.value = sample + (s.value-sample)*math.Exp2(-silent)
		}
		s.since = max(s.since, step)
		if p.word.CompareAndSwap(old, s.pack()) {
			return
		}
	}
}

// atLeast counts a call of which only is known that it would have taken so long. It is no news that a server
// is quick: one of which nothing is known counts as slow, as after a failure.
func (p *peak) atLeast(age, took time.Duration) {
	step := stepOf(age)
	for {
		old := p.word.Load()
		s := unpack(old)
		value := float64(took)
		if !s.known || s.stale(step) {
			value = max(value, s.value, float64(unknownLatency))
		} else if value < s.decayed(step) {
			return
		}
		s.value, s.since = value, max(s.since, step)
		if p.word.CompareAndSwap(old, s.pack()) {
			return
		}
	}
}

// fail counts a call that failed: the value is what it was, and news.
func (p *peak) fail(age, took time.Duration) {
	step := stepOf(age)
	for {
		old := p.word.Load()
		s := unpack(old)
		if !s.known || s.stale(step) {
			s.value = max(s.value, float64(unknownLatency))
		}
		s.value, s.since = max(s.value, float64(took)), max(s.since, step)
		if p.word.CompareAndSwap(old, s.pack()) {
			return
		}
	}
}

// at returns the value, and whether it is known. If it is stale, it is that of back then.
func (p *peak) at(age time.Duration) (nanoseconds float64, known bool) {
	word := p.word.Load()
	if word == 0 {
		return 0, false
	}
	s, step := unpack(word), stepOf(age)
	if s.stale(step) {
		return s.value, false
	}
	return s.decayed(step), true
}
