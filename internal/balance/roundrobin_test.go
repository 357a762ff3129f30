package balance

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRoundRobinOrder(t *testing.T) {
	for _, tc := range []struct {
		name    string
		weights []int
		want    string
	}{
		{"one", []int{7}, "aaaa"},
		{"equal", []int{100, 100, 100}, "abcabcabc"},
		{"spread over the cycle", []int{5, 1, 1}, "aaabcaaaaabcaa"},
		{"halves", []int{200, 100}, "abaabaaba"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			list, p, got := fleet(tc.weights...), RoundRobin(), ""
			for range tc.want {
				got += string(rune('a' + p.Pick(0, list, Call{}, nil)))
			}
			require.Equal(t, tc.want, got)
		})
	}
}

// In every cycle, from wherever it is counted, a server has its weight's share, give or take one.
func TestRoundRobinIsFair(t *testing.T) {
	seeded(t, 100, func(t *testing.T, random *rand.Rand) {
		weights, sum := make([]int, 1+random.IntN(8)), 0
		for i := range weights {
			weights[i] = 1 + random.IntN(9)
			sum += weights[i]
		}
		list, p := fleet(weights...), RoundRobin()
		for range random.IntN(50) {
			p.Pick(0, list, Call{}, nil)
		}
		for range 20 {
			counts := make([]int, len(list))
			for range sum {
				counts[p.Pick(0, list, Call{}, nil)]++
			}
			for i, w := range weights {
				require.InDelta(t, w, counts[i], 1, "weights %v, counts %v", weights, counts)
			}
		}
	})
}

// Who was forbidden for a while is not given what it has missed.
func TestRoundRobinForgetsWhatWasMissed(t *testing.T) {
	list, p := equalFleet(3), RoundRobin()
	for n := range 300 {
		p.Pick(0, list, Call{}, func(i int) bool { return i == 1 && n > 10 })
	}
	list = append(list[:3:3], NewEndpoint(Config{Weight: 100, Preferred: true}, 0))
	counts := make([]int, 4)
	for range 40 {
		counts[p.Pick(0, list, Call{}, nil)]++
	}
	for _, n := range counts {
		require.InDelta(t, 10, n, 1)
	}
}

func TestRoundRobinAtOnce(t *testing.T) {
	list, p := equalFleet(4), RoundRobin()
	var counts [4]atomic.Int64
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for range 1000 {
				counts[p.Pick(0, list, Call{}, nil)].Add(1)
			}
		})
	}
	callers.Wait()
	for i := range counts {
		require.InDelta(t, 2000, counts[i].Load(), 8)
	}
}
