package balance

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheSameKeyGoesToTheSameServer(t *testing.T) {
	list, p := fleet(100, 50, 200, 100, 100), ConsistentHash(1.25)
	owner := func(key uint64, skip func(int) bool) int { return p.Pick(0, list, Call{Key: key}, skip) }
	moved := make(map[int]int)
	for key := range uint64(2000) {
		was := owner(key, nil)
		require.Equal(t, was, owner(key, nil))
		// The third server is gone: its keys move, to all others, and no other does.
		is := owner(key, func(i int) bool { return i == 2 })
		if was != 2 {
			require.Equal(t, was, is)
		} else {
			moved[is]++
		}
	}
	require.Len(t, moved, 4)
	// The order of the list means nothing.
	other := []*Endpoint{list[4], list[2], list[0], list[1], list[3]}
	for key := range uint64(200) {
		require.Same(t, list[owner(key, nil)], other[p.Pick(0, other, Call{Key: key}, nil)])
	}
}

// Whatever begins and ends, no server has more than its share times the bound, rounded up, and a key is with
// its own server if that has room.
func TestConsistentHashKeepsTheBound(t *testing.T) {
	seeded(t, 100, func(t *testing.T, random *rand.Rand) {
		bound := 1 + random.Float64()
		weights, sum := make([]int, 1+random.IntN(12)), 0
		for i := range weights {
			weights[i] = 1 + random.IntN(300)
			sum += weights[i]
		}
		list, p, free := fleet(weights...), ConsistentHash(bound), ConsistentHash(math.Inf(1))
		var under []int
		for range 300 {
			if len(under) > 0 && random.IntN(5) < 2 {
				k := random.IntN(len(under))
				list[under[k]].End(0, 0, OK)
				under[k] = under[len(under)-1]
				under = under[:len(under)-1]
				continue
			}
			key := random.Uint64N(20)
			i, own := p.Pick(0, list, Call{Key: key}, nil), free.Pick(0, list, Call{Key: key}, nil)
			most := func(i int) int {
				share := float64(weights[i]) / float64(sum)
				return int(math.Ceil(bound*float64(len(under)+1)*share - 1e-9))
			}
			if list[own].Outstanding() < most(own) {
				require.Equal(t, own, i, "its own server has room")
			}
			list[i].Begin(0)
			under = append(under, i)
			require.LessOrEqual(t, list[i].Outstanding(), int(math.Ceil(bound*float64(len(under))*
				float64(weights[i])/float64(sum)+1e-9)))
		}
	})
}

func TestMistakesOfBounds(t *testing.T) {
	for _, bound := range []float64{0, 0.99, -1, math.NaN()} {
		require.Panics(t, func() { ConsistentHash(bound) }, bound)
	}
}
