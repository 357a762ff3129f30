// Package quantile keeps how long things have taken lately, so that a part of them can be told: the time that
// 95 of 100 did not exceed, for example.
package quantile

import (
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	// steps is in how many buckets each power of two of nanoseconds is divided, so that a quantile is at most
	// an eighth too long.
	steps    = 8
	stepBits = 3
	// least is the power of two of nanoseconds, about a microsecond, that the first bucket begins with, and
	// powers how many follow: the last one is of 18 minutes, and of all that is longer.
	least  = 10
	powers = 31
	// Enough is how many times must be known before a quantile is.
	Enough = 20
	// Kept is after how many times each counts for half of what it did, so that old times are forgotten.
	Kept = 1000
)

// Sketch is a histogram of times, with buckets that grow with the times. The zero value is empty. All methods
// are safe for concurrent use, and take no lock.
type Sketch struct {
	count   atomic.Int64
	halving atomic.Bool
	buckets [steps * powers]atomic.Int64
}

// Add counts a time.
func (s *Sketch) Add(d time.Duration) {
	s.buckets[bucketOf(d)].Add(1)
	if s.count.Add(1) >= Kept && s.halving.CompareAndSwap(false, true) {
		s.halve()
		s.halving.Store(false)
	}
}

// halve makes each time count for half of what it did.
func (s *Sketch) halve() {
	for i := range s.buckets {
		if gone := s.buckets[i].Load() / 2; gone > 0 {
			s.buckets[i].Add(-gone)
			s.count.Add(-gone)
		}
	}
}

// Of returns a time that the part q of the times, between 0 and 1, did not exceed. It reports false if fewer
// than Enough are known.
func (s *Sketch) Of(q float64) (time.Duration, bool) {
	count := s.count.Load()
	if count < Enough {
		return 0, false
	}
	left := int64(q * float64(count))
	for i := range s.buckets {
		if left -= s.buckets[i].Load(); left <= 0 {
			return endOf(i), true
		}
	}
	return endOf(len(s.buckets) - 1), true
}

// bucketOf returns the bucket of a time.
func bucketOf(d time.Duration) int {
	n := uint64(max(d, 0))
	power := bits.Len64(n) - 1
	if power < least {
		return 0
	}
	step := int(n>>(power-stepBits)) & (steps - 1)
	return min((power-least)*steps+step, steps*powers-1)
}

// endOf returns the time that the bucket ends with.
func endOf(i int) time.Duration {
	power, step := least+i/steps, i%steps
	return time.Duration(1)<<power + time.Duration(step+1)<<(power-stepBits)
}
