package balance

import (
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func taken(b *Budget, now time.Duration, tries int) (n int) {
	for range tries {
		if b.Take(now) {
			n++
		}
	}
	return n
}

func TestBudget(t *testing.T) {
	calls := func(b *Budget, n int) *Budget {
		for range n {
			b.Call()
		}
		return b
	}
	require.Zero(t, taken(NewBudget(0, 0, 0), time.Hour, 10), "nothing is nothing")
	require.Equal(t, 3, taken(NewBudget(0, 3, 0), 0, 10), "a second's worth at the beginning")
	require.Equal(t, 20, taken(calls(NewBudget(0.2, 0, 0), 100), 0, 100))
	require.Equal(t, 20, taken(calls(NewBudget(0.2, 0, 0), 100), 10*time.Second, 100))
	require.Equal(t, 2, taken(calls(NewBudget(0.2, 0, 0), 100), 100*time.Second, 100), "it was long ago")
	require.Equal(t, 30, taken(NewBudget(0, 3, 0), time.Hour, 100), "quiet times are not saved")

	half := calls(NewBudget(0.2, 0, 0), 100)
	require.Equal(t, 1, taken(half, 0, 1))
	require.Equal(t, 10, taken(half, 5*time.Second, 100), "of 19 one is kept, and half of the others is lost")

	rare := NewBudget(0, 0.01, 0) // once in 100 seconds
	n := 0
	for s := range 1000 {
		n += taken(rare, time.Duration(s)*time.Second, 1)
	}
	require.InDelta(t, 10, n, 1)
}

// Of any calls, at any times, no more is made again than the share and the few a second.
func TestBudgetNeverGivesMore(t *testing.T) {
	seeded(t, 200, func(t *testing.T, random *rand.Rand) {
		share, perSecond := random.Float64(), float64(random.IntN(20))
		start := time.Duration(random.Int64N(2e10) - 1e10)
		b, now := NewBudget(share, perSecond, start), start
		calls, took := 0, 0
		for range 1000 {
			switch random.IntN(3) {
			case 0:
				b.Call()
				calls++
			case 1:
				now += time.Duration(random.ExpFloat64() * 1e7)
			default:
				at := now - time.Duration(random.IntN(2))*time.Duration(random.Int64N(1e7)) // or late
				took += taken(b, at, 1+random.IntN(3))
			}
			most := share*float64(calls) + perSecond*(1+(now-start).Seconds())
			require.LessOrEqual(t, float64(took), most+1e-6)
		}
	})
}

func TestBudgetAtOnce(t *testing.T) {
	b := NewBudget(0.1, 0, 0)
	var took atomic.Int64
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for range 1000 {
				b.Call()
				if b.Take(time.Second) {
					took.Add(1)
				}
			}
		})
	}
	callers.Wait()
	require.InDelta(t, 800, took.Load(), 1, "none is lost, none is given twice")
}

func TestMistakesOfBudgets(t *testing.T) {
	for _, of := range []float64{-1, math.NaN(), math.Inf(1)} {
		require.Panics(t, func() { NewBudget(of, 0, 0) }, of)
		require.Panics(t, func() { NewBudget(0, of, 0) }, of)
	}
}
