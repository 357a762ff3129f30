package load_test

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/load"
)

const ms = time.Millisecond

func TestDelay(t *testing.T) {
	type begun struct{ at, waited time.Duration }
	for _, c := range []struct {
		name  string
		calls []begun
		at    time.Duration
		want  time.Duration
	}{
		{"no call", nil, 5 * ms, 0},
		{"one call", []begun{{10 * ms, 4 * ms}}, 10 * ms, 4 * ms},
		{"a call that has not waited", []begun{{10 * ms, 0}}, 10 * ms, 0},
		{"a negative wait", []begun{{10 * ms, -4 * ms}}, 10 * ms, 0},
		{"the mean of two", []begun{{10 * ms, 4 * ms}, {12 * ms, 8 * ms}}, 12 * ms, 6 * ms},
		{"all at once count alike", []begun{{0, 4 * ms}, {0, 4 * ms}, {0, 4 * ms}, {0, 0}}, 0, 3 * ms},
		{"until it is forgotten", []begun{{10 * ms, 4 * ms}}, 10*ms + 2*load.Window - 1, 4 * ms},
		{"it is forgotten", []begun{{10 * ms, 4 * ms}}, 10*ms + 2*load.Window, 0},
		{"half of the last window counts", []begun{{0, 6 * ms}, {0, 6 * ms}, {load.Window, 0}},
			load.Window * 3 / 2, 3 * ms},
		{"the window before the last does not count", []begun{{0, 6 * ms}, {load.Window, 2 * ms}},
			2 * load.Window, 2 * ms},
		{"after idle time the first call counts alone", []begun{{0, 6 * ms}, {9 * load.Window, 2 * ms}},
			9 * load.Window, 2 * ms},
		{"before the moment that time is counted from", []begun{{-900 * load.Window, 4 * ms}},
			-900 * load.Window, 4 * ms},
		{"and forgotten there", []begun{{-900 * load.Window, 4 * ms}}, -898 * load.Window, 0},
		{"times in another order", []begun{{20 * ms, 4 * ms}, {10 * ms, 2 * ms}}, 15 * ms, 3 * ms},
	} {
		t.Run(c.name, func(t *testing.T) {
			var d load.Delay
			for _, b := range c.calls {
				d.Add(b.at, b.waited)
			}
			require.Equal(t, c.want, d.Mean(c.at))
		})
	}
}

// Whatever is added, the mean is none that no call has had.
func TestDelayIsBetweenItsCalls(t *testing.T) {
	const seed = 7
	random := rand.New(rand.NewPCG(seed, seed))
	var d load.Delay
	now := time.Duration(0)
	for range 20_000 {
		now += time.Duration(random.Int64N(int64(load.Window) >> random.IntN(20)))
		waited := time.Duration(random.Int64N(int64(10*ms))) + ms
		if random.IntN(3) == 0 {
			d.Add(now, waited)
		}
		mean := d.Mean(now)
		require.True(t, mean == 0 || ms-1 <= mean && mean <= 11*ms, "%v", mean)
	}
}

func TestDelayFromManyGoroutines(t *testing.T) {
	var d load.Delay
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 1000 {
				d.Add(time.Duration(j)*ms, 3*ms)
				if mean := d.Mean(time.Duration(j) * ms); i == 0 && mean != 0 && (mean-3*ms).Abs() > 1 {
					t.Errorf("the mean of calls that have all waited 3ms is %v", mean)
				}
			}
		})
	}
	all.Wait()
	require.InDelta(t, 3*ms, d.Mean(999*ms), 1)
}
