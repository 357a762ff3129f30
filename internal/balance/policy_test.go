package balance

import (
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// checkPick picks with every policy and says what is wrong with the choice.
func checkPick(t *testing.T, p Policy, list []*Endpoint, key uint64, forbidden func(int) bool) {
	t.Helper()
	allowed, preferred := 0, 0
	for i, e := range list {
		if !forbidden(i) {
			allowed++
			if e.config.Preferred {
				preferred++
			}
		}
	}
	i := p.Pick(time.Second, list, Call{Key: key}, forbidden)
	if allowed == 0 {
		require.Equal(t, -1, i)
		return
	}
	require.GreaterOrEqual(t, i, 0)
	require.Less(t, i, len(list))
	require.False(t, forbidden(i), "a forbidden server was picked")
	if _, byScore := p.(*powerOfTwo); preferred > 0 && !byScore {
		require.True(t, list[i].config.Preferred, "there is a preferred server")
	}
}

func TestPicksOnlyWhatIsAllowed(t *testing.T) {
	seeded(t, 300, func(t *testing.T, random *rand.Rand) {
		list := randomFleet(random)
		for _, p := range policies(random) {
			for range 20 {
				mask, share := random.Uint64(), random.IntN(4)
				checkPick(t, p, list, random.Uint64(), func(i int) bool {
					return share == 0 || share < 3 && mask>>(i%64)&1 == 1
				})
			}
		}
	})
}

func FuzzPick(f *testing.F) {
	f.Add([]byte{100, 1, 0, 200, 255}, uint64(7), uint64(0b101))
	f.Add([]byte{1}, uint64(0), uint64(1))
	f.Fuzz(func(t *testing.T, servers []byte, key, forbidden uint64) {
		random := rand.New(rand.NewPCG(key, forbidden))
		var list []*Endpoint
		for i, b := range servers[:min(len(servers), 64)] {
			e := NewEndpoint(Config{Weight: 1 + int(b), Hash: Hash(string(b)), Preferred: b%2 == 0}, 0)
			for range int(b) % 5 {
				e.Begin(0)
			}
			if b%7 == 0 {
				e.Begin(0)
				e.End(time.Duration(b)*time.Second, time.Duration(i)*time.Millisecond, Outcome(b%3))
			}
			list = append(list, e)
		}
		for _, p := range policies(random) {
			for range 3 {
				checkPick(t, p, list, key, func(i int) bool { return forbidden>>i&1 == 1 })
			}
		}
	})
}

func TestPickOfNone(t *testing.T) {
	for name, p := range policies(rand.New(rand.NewPCG(1, 1))) {
		require.Equal(t, -1, p.Pick(0, nil, Call{}, nil), name)
	}
}

func TestPickAllocatesNothing(t *testing.T) {
	for _, n := range []int{1, 3, 20, 1000} {
		list := equalFleet(n)
		for name, p := range policies(rand.New(rand.NewPCG(1, 1))) {
			p.Pick(0, list, Call{}, nil)
			key := uint64(0)
			skip := func(i int) bool { return i == 0 && n > 1 }
			require.Zero(t, testing.AllocsPerRun(100, func() {
				key++
				i := p.Pick(0, list, Call{Key: key}, skip)
				list[i].Begin(0)
				list[i].Report(0, time.Millisecond, 3)
				list[i].End(0, time.Millisecond, OK)
			}), "%s of %d", name, n)
		}
	}
}

// One endpoint, many goroutines: what is under way is counted exactly, whoever picks.
func TestOutstandingIsExact(t *testing.T) {
	for name, p := range policies(nil) {
		if name == "power of two" {
			p = PowerOfTwo()
		}
		list := fleet(100, 50, 300)
		var callers sync.WaitGroup
		kept := make([][]int, 8)
		for g := range kept {
			callers.Go(func() {
				random := rand.New(rand.NewPCG(uint64(g), 0))
				for range 500 {
					i := p.Pick(0, list, Call{Key: random.Uint64()}, nil)
					list[i].Begin(0)
					kept[g] = append(kept[g], i)
					assert.GreaterOrEqual(t, list[i].Outstanding(), 1)
					if random.IntN(2) == 0 {
						i := kept[g][len(kept[g])-1]
						kept[g] = kept[g][:len(kept[g])-1]
						list[i].End(time.Duration(random.Int64N(1e10)), time.Duration(random.Int64N(1e9)),
							Outcome(random.IntN(3)))
					}
				}
			})
		}
		callers.Wait()
		want := make([]int, len(list))
		for _, of := range kept {
			for _, i := range of {
				want[i]++
			}
		}
		for i, e := range list {
			require.Equal(t, want[i], e.Outstanding(), "%s: server %d", name, i)
		}
	}
}

func TestWeightsAreHonoured(t *testing.T) {
	weights := []int{50, 100, 100, 400}
	const calls = 20_000
	for name, within := range map[string]float64{
		"power of two": 0.15, "round robin": 0.001, "consistent hash": 0.1,
	} {
		random := rand.New(rand.NewPCG(2, 2))
		p, list := policies(random)[name], fleet(weights...)
		if name == "consistent hash" {
			p = ConsistentHash(math.Inf(1))
		}
		counts := make([]float64, len(weights))
		for n := range calls {
			now := time.Duration(n) * time.Millisecond
			i := p.Pick(now, list, Call{Key: random.Uint64()}, nil)
			counts[i]++
			list[i].Begin(now)
			list[i].End(now, time.Millisecond, OK)
		}
		for i, w := range weights {
			require.InEpsilon(t, float64(calls*w)/650, counts[i], within, "%s: server %d of weight %d", name,
				i, w)
		}
	}
}

func BenchmarkPick(b *testing.B) {
	for _, bench := range []struct {
		name string
		p    Policy
	}{
		{"PowerOfTwo", PowerOfTwo()}, {"RoundRobin", RoundRobin()}, {"ConsistentHash", ConsistentHash(1.25)},
	} {
		for _, n := range []struct {
			name string
			n    int
		}{{"3", 3}, {"20", 20}, {"1000", 1000}} {
			b.Run(bench.name+"/"+n.name, func(b *testing.B) {
				list := equalFleet(n.n)
				for _, e := range list {
					e.Begin(0)
					e.End(0, time.Millisecond, OK)
				}
				skip := func(i int) bool { return false }
				b.ReportAllocs()
				for key := uint64(0); b.Loop(); key++ {
					bench.p.Pick(time.Second, list, Call{Key: key}, skip)
				}
			})
		}
	}
}
