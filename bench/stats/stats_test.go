package stats

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		values []float64
		want   float64
	}{
		{nil, math.NaN()},
		{[]float64{7}, 7},
		{[]float64{9, 1}, 5},
		{[]float64{9, 1, 2}, 2},
		{[]float64{4, 3, 2, 1}, 2.5},
	} {
		before := slices.Clone(tc.values)
		if got := Median(tc.values); !same(got, tc.want) {
			t.Errorf("the median of %v is %v, want %v", tc.values, got, tc.want)
		}
		if !slices.Equal(before, tc.values) {
			t.Errorf("Median has changed %v into %v", before, tc.values)
		}
	}
}

func TestSpread(t *testing.T) {
	if got := Spread([]float64{90, 100, 120}); got != 0.3 {
		t.Errorf("the spread is %v, want 0.3", got)
	}
	if got := Spread(nil); !math.IsNaN(got) {
		t.Errorf("the spread of nothing is %v", got)
	}
}

func TestMedianRatio(t *testing.T) {
	nan := math.NaN()
	for _, tc := range []struct {
		name         string
		values, base []float64
		want         float64
	}{
		{"a machine that drifts", []float64{20, 10, 40}, []float64{10, 5, 20}, 2},
		{"not the ratio of the medians", []float64{1, 10, 100}, []float64{1, 100, 10}, 1},
		{"a missing round", []float64{nan, 6, 8}, []float64{1, 2, nan}, 3},
		{"unequal lengths", []float64{6, 8, 9}, []float64{2}, 3},
		{"a zero", []float64{6, 8}, []float64{0, 2}, 4},
		{"nothing", nil, []float64{2}, nan},
	} {
		if got := MedianRatio(tc.values, tc.base); !same(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

func same(a, b float64) bool { return a == b || math.IsNaN(a) && math.IsNaN(b) }

func TestBucketsAreWhereTheirBoundsSay(t *testing.T) {
	last := 0.0
	for i := range histBuckets {
		low, high := bounds(i)
		if low != last || high <= low {
			t.Fatalf("bucket %d goes from %v to %v, the one before it to %v", i, low, high, last)
		}
		last = high
		if got := bucket(time.Duration(low)); got != i {
			t.Errorf("%v ns is in bucket %d, want %d", low, got, i)
		}
		if got := bucket(time.Duration(high) - 1); got != i {
			t.Errorf("%v ns is in bucket %d, want %d", high-1, got, i)
		}
	}
	for _, d := range []time.Duration{-1, math.MinInt64} {
		if bucket(d) != 0 {
			t.Errorf("%d ns is in bucket %d", d, bucket(d))
		}
	}
	if got := bucket(math.MaxInt64); got != histBuckets-1 {
		t.Errorf("the longest duration is in bucket %d", got)
	}
}

func TestQuantile(t *testing.T) {
	var h Hist
	rng := rand.New(rand.NewPCG(1, 2))
	var values []float64
	for range 20000 {
		v := math.Exp(rng.NormFloat64()+12) + 1
		values = append(values, v)
		h.Record(time.Duration(v))
	}
	slices.Sort(values)
	c := make(Counts)
	h.AddTo(c)
	for _, q := range []float64{0, 0.01, 0.5, 0.9, 0.99, 1} {
		want := values[min(int(q*float64(len(values))), len(values)-1)]
		if got := c.Quantile(q); math.Abs(got/want-1) > 0.04 {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if got := (Counts{}).Quantile(0.5); !math.IsNaN(got) {
		t.Errorf("the median of nothing is %v", got)
	}
}

func TestSince(t *testing.T) {
	var h Hist
	h.Record(5)
	h.Record(100)
	older, newer := make(Counts), make(Counts)
	h.AddTo(older)
	h.Record(100)
	h.Record(7)
	h.AddTo(newer)
	got := newer.Since(older)
	if len(got) != 2 || got[7] != 1 || got[bucket(100)] != 1 {
		t.Errorf("counted since: %v", got)
	}
}

func BenchmarkRecord(b *testing.B) {
	var h Hist
	for b.Loop() {
		h.Record(12345)
	}
}
