// Package stats has the few numbers that the harness computes: medians, spreads
// and the percentiles of a histogram.
package stats

import (
	"math"
	"slices"
)

// Median returns the middle one of the values, or the mean of the middle two; NaN
// if there are none. It leaves the slice as it is.
func Median(values []float64) float64 {
	n := len(values)
	if n == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

// Spread returns how far apart the largest and the smallest value are, as a
// fraction of the median; NaN if there are none.
func Spread(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	return (slices.Max(values) - slices.Min(values)) / Median(values)
}

// MedianRatio returns the median of values[i]/base[i], leaving out the pairs in
// which either is missing, which is to say NaN; NaN if no pair is left. What was
// measured one after the other is compared, so a machine that drifts from round to
// round does not show.
func MedianRatio(values, base []float64) float64 {
	var ratios []float64
	for i := range min(len(values), len(base)) {
		r := values[i] / base[i]
		if !math.IsNaN(r) && !math.IsInf(r, 0) {
			ratios = append(ratios, r)
		}
	}
	return Median(ratios)
}
