package balance

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLatency(t *testing.T) {
	const ms = time.Millisecond
	type step struct {
		at, took time.Duration
		outcome  Outcome
	}
	for _, tc := range []struct {
		name  string
		steps []step
		at    time.Duration
		want  time.Duration
		known bool
	}{
		{"nothing is known", nil, time.Second, 0, false},
		{"the first answer", []step{{0, 8 * ms, OK}}, 0, 8 * ms, true},
		{"up at once", []step{{0, 8 * ms, OK}, {1, 80 * ms, OK}}, 1, 80 * ms, true},
		{"down slowly", []step{{0, 80 * ms, OK}, {HalfLife, 8 * ms, OK}}, HalfLife, 44 * ms, true},
		{"half in a half-life of silence", []step{{0, 8 * ms, OK}}, HalfLife, 4 * ms, true},
		{"unknown again", []step{{0, 8 * ms, OK}}, staleHalves*HalfLife + 10*ms, 8 * ms, false},
		{"given up", []step{{0, 8 * ms, OK}, {ms, 50 * ms, Unanswered}}, ms, 50 * ms, true},
		{"given up early", []step{{0, 8 * ms, OK}, {0, ms, Unanswered}}, 0, 8 * ms, true},
		{"failed quickly", []step{{0, 8 * ms, OK}, {0, ms, Failed}}, 0, 8 * ms, true},
		{"failed slowly", []step{{0, 8 * ms, OK}, {0, 70 * ms, Failed}}, 0, 70 * ms, true},
		{"failed after a while", []step{{0, 8 * ms, OK}, {HalfLife, ms, Failed}}, HalfLife, 8 * ms, true},
		{"failed after long", []step{{0, 8 * ms, OK}, {time.Hour, ms, Failed}}, time.Hour, unknownLatency,
			true},
		{"as slow as before", []step{{0, time.Second, OK}, {time.Minute, time.Second, OK}},
			time.Minute + 2*HalfLife, time.Second / 2, true},
		{"as slow as before, again and again", []step{{0, time.Second, OK}, {time.Minute, time.Second, OK},
			{2 * time.Minute, time.Second, OK}, {5 * time.Minute, time.Second, OK}},
			5*time.Minute + 4*HalfLife, time.Second / 2, true},
		{"no more as slow", []step{{0, time.Second, OK}, {time.Minute, time.Second, OK},
			{3 * time.Minute, 8 * ms, OK}}, 3*time.Minute + HalfLife, 4 * ms, true},
		{"well again", []step{{0, time.Second, OK}, {time.Hour, ms, OK}}, time.Hour, ms, true},
		{"nothing but a failure", []step{{0, ms, Failed}}, 0, unknownLatency, true},
		{"a clock that begins below zero", []step{{-HalfLife, 8 * ms, OK}}, 0, 4 * ms, true},
		{"an answer that is late", []step{{5 * ms, 8 * ms, OK}, {0, 2 * ms, OK}}, 5 * ms, 8 * ms, true},
		{"a time below zero", []step{{0, -ms, OK}}, 0, 0, true},
		{"a very long time", []step{{0, 1 << 62, OK}}, 0, 24 * time.Hour, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := NewEndpoint(Config{Weight: 100}, -time.Minute)
			for _, s := range tc.steps {
				e.Begin(s.at)
				e.End(s.at, s.took, s.outcome)
			}
			got, known := e.Latency(tc.at)
			require.Equal(t, tc.known, known)
			require.InDelta(t, float64(tc.want), float64(got), float64(tc.want)/1000+1)
		})
	}
}

// After any calls the latency is between the lowest and the highest, as long as answers come.
func TestLatencyStaysInBounds(t *testing.T) {
	seeded(t, 100, func(t *testing.T, random *rand.Rand) {
		e := NewEndpoint(Config{Weight: 100}, 0)
		low, high := time.Hour, time.Duration(0)
		now := time.Duration(0)
		for range 200 {
			took := time.Duration(random.Int64N(1e8))
			low, high = min(low, took), max(high, took)
			now += time.Duration(random.Int64N(1e8))
			e.Begin(now)
			e.End(now, took, OK)
			got, known := e.Latency(now)
			require.True(t, known)
			// Answers of the same few milliseconds weigh nothing, and the word has 19 bits for a value.
			require.GreaterOrEqual(t, float64(got), float64(low)*0.999-1)
			require.LessOrEqual(t, float64(got), float64(high)*1.001+1)
		}
	})
}

func TestScore(t *testing.T) {
	e := NewEndpoint(Config{Weight: 200}, 0)
	require.Zero(t, e.Score(0), "somebody has to try")
	e.Begin(0)
	require.GreaterOrEqual(t, e.Score(0), float64(unknownLatency), "but not two at a time")
	e.End(0, 10*time.Millisecond, OK)
	require.InEpsilon(t, 10e6, e.Score(0), 0.001)
	e.Begin(0)
	e.Begin(0)
	require.InEpsilon(t, 20e6, e.Score(0), 0.001, "two calls are one for a server of twice the weight")
}

func TestReport(t *testing.T) {
	known := func() *Endpoint {
		e := NewEndpoint(Config{Weight: 100}, -time.Minute)
		e.Begin(0)
		e.End(0, 10*time.Millisecond, OK)
		return e
	}
	for _, tc := range []struct {
		name  string
		delay time.Duration
		load  int
		after time.Duration
		want  float64 // milliseconds
	}{
		{"nothing to do", 0, 0, 0, 10},
		{"three calls", 0, 3, 0, 20},
		{"three calls, a second ago", 0, 3, time.Second, 18.04}, // of a latency that has faded too
		{"three calls, long ago", 0, 3, 10 * time.Second, 7.5},
		{"calls wait for a second", time.Second, 0, 0, 1000},
		{"less than the latency", time.Millisecond, 0, 0, 10},
		{"below zero", math.MinInt64, math.MinInt, 0, 10},
		{"more than can be", math.MaxInt64, math.MaxInt, 0, 3600e3 * 16.5},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := known()
			e.Report(0, tc.delay, tc.load)
			require.InEpsilon(t, tc.want*1e6, e.Score(tc.after), 0.01)
		})
	}
	e := NewEndpoint(Config{Weight: 100}, 0)
	e.Report(0, time.Second, 100)
	require.Zero(t, e.Score(0), "a report is no answer to a call")
}

func TestMistakesOfEndpoints(t *testing.T) {
	require.PanicsWithValue(t, "balance: the weight of an endpoint is 0, must be 1 to 16777216",
		func() { NewEndpoint(Config{}, 0) })
	require.PanicsWithValue(t, "balance: End of an endpoint without a Begin",
		func() { NewEndpoint(Config{Weight: 1}, 0).End(0, 0, OK) })
}
