package quantile

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Each time is in the bucket that ends behind it, and not more than an eighth behind.
func TestBuckets(t *testing.T) {
	for _, d := range []time.Duration{-1, 0, 1, time.Microsecond, 1500 * time.Nanosecond, time.Millisecond,
		17 * time.Millisecond, time.Second, time.Minute, 10 * time.Minute} {
		end := endOf(bucketOf(d))
		require.Greater(t, end, d)
		if d > 1<<least {
			require.LessOrEqual(t, float64(end), float64(d)*(1+1.0/steps)+1, "%v", d)
		}
	}
	last := 0
	for d := time.Duration(1); d > 0 && d < time.Hour; d += d/16 + 1 {
		i := bucketOf(d)
		require.GreaterOrEqual(t, i, last)
		require.LessOrEqual(t, i, last+1, "no bucket is left out at %v", d)
		last = i
	}
	require.Equal(t, steps*powers-1, bucketOf(math.MaxInt64))
}

// A quantile is that of the times, as far as the buckets tell, for any distribution.
func TestQuantiles(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, tc := range []struct {
		name string
		draw func() time.Duration
	}{
		{"even", func() time.Duration { return time.Duration(1e5 + r.IntN(1e7)) }},
		{"exponential", func() time.Duration { return time.Duration(1e4 + r.ExpFloat64()*1e6) }},
		{"one", func() time.Duration { return time.Millisecond }},
		{"two", func() time.Duration { return time.Duration(1e6 * (1 + 99*(r.IntN(10)/9))) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var s Sketch
			all := make([]time.Duration, Kept-1)
			for i := range all {
				all[i] = tc.draw()
				s.Add(all[i])
			}
			slices.Sort(all)
			for _, q := range []float64{0.1, 0.5, 0.8, 0.95, 0.99} {
				got, ok := s.Of(q)
				require.True(t, ok)
				want := all[max(int(q*float64(len(all)))-1, 0)]
				require.GreaterOrEqual(t, got, want, "%v", q)
				require.LessOrEqual(t, float64(got), 1.2*float64(want), fmt.Sprint(q))
			}
		})
	}
}

// Nothing is said of a few times, and old times are forgotten.
func TestForgets(t *testing.T) {
	var s Sketch
	for range Enough - 1 {
		s.Add(time.Second)
		_, ok := s.Of(0.95)
		require.False(t, ok)
	}
	s.Add(time.Second)
	got, ok := s.Of(0.95)
	require.True(t, ok)
	require.InDelta(t, time.Second, got, float64(time.Second)/steps)
	for range 10 * Kept {
		s.Add(time.Millisecond)
	}
	got, _ = s.Of(0.95)
	require.InDelta(t, time.Millisecond, got, float64(time.Millisecond)/steps)
	require.Less(t, s.count.Load(), int64(Kept))
}

// The count is that of the buckets whatever runs at the same time.
func TestConcurrent(t *testing.T) {
	var s Sketch
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 5000 {
				s.Add(time.Duration(g*i) * time.Microsecond)
				_, _ = s.Of(0.5)
			}
		})
	}
	wg.Wait()
	sum := int64(0)
	for i := range s.buckets {
		sum += s.buckets[i].Load()
	}
	require.Equal(t, s.count.Load(), sum)
	require.LessOrEqual(t, sum, int64(Kept))
}
