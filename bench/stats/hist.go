package stats

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

// A Hist counts durations in fixed buckets, 32 to each power of two, so that a
// percentile is off by 3% at most. Recording is one atomic addition. The zero
// value is ready to use; it is safe for concurrent use.
type Hist struct {
	counts [histBuckets]atomic.Uint64
}

const (
	subBits     = 5
	subBuckets  = 1 << subBits
	histBuckets = (40 - subBits + 1) * subBuckets // up to 2^40 ns, 18 minutes
)

// Record counts a duration. Those that are too long are counted as the longest.
func (h *Hist) Record(d time.Duration) { h.counts[bucket(d)].Add(1) }

func bucket(d time.Duration) int {
	v := uint64(max(d, 0))
	if v < subBuckets {
		return int(v)
	}
	shift := bits.Len64(v) - 1 - subBits
	return min((shift+1)*subBuckets+int(v>>shift)-subBuckets, histBuckets-1)
}

// bounds returns the bucket's durations in nanoseconds: from low up to high.
func bounds(i int) (low, high float64) {
	if i < subBuckets {
		return float64(i), float64(i + 1)
	}
	shift := i/subBuckets - 1
	v := uint64(i%subBuckets + subBuckets)
	return float64(v << shift), float64((v + 1) << shift)
}

// Counts is what histograms have counted, by bucket.
type Counts map[int]uint64

// AddTo adds what h has counted so far to c.
func (h *Hist) AddTo(c Counts) {
	for i := range h.counts {
		if n := h.counts[i].Load(); n > 0 {
			c[i] += n
		}
	}
}

// Since returns what was counted after the older counts were taken.
func (c Counts) Since(older Counts) Counts {
	d := make(Counts, len(c))
	for i, n := range c {
		if n > older[i] {
			d[i] = n - older[i]
		}
	}
	return d
}

// Quantile returns the duration in nanoseconds that the fraction q of what was
// counted does not exceed; NaN if nothing was counted.
func (c Counts) Quantile(q float64) float64 {
	var total uint64
	for _, n := range c {
		total += n
	}
	if total == 0 {
		return math.NaN()
	}
	rank, seen := q*float64(total), 0.0
	last := 0.0
	for i := range histBuckets {
		n := float64(c[i])
		if n == 0 {
			continue
		}
		low, high := bounds(i)
		if seen+n >= rank {
			return low + (high-low)*max(rank-seen, 0)/n
		}
		seen += n
		last = high
	}
	return last
}
