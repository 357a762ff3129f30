package balance

import (
	"math/rand/v2"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// seeded calls do with many sources of random numbers, each in a test of its own name.
func seeded(t *testing.T, seeds int, do func(t *testing.T, random *rand.Rand)) {
	t.Helper()
	for seed := range seeds {
		random := rand.New(rand.NewPCG(uint64(seed), 0))
		do(t, random)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// fleet returns endpoints with the weights.
func fleet(weights ...int) []*Endpoint {
	list := make([]*Endpoint, len(weights))
	for i, w := range weights {
		list[i] = NewEndpoint(Config{Weight: w, Hash: Hash(string(rune('a' + i))), Preferred: true}, 0)
	}
	return list
}

func equalFleet(n int) []*Endpoint {
	weights := make([]int, n)
	for i := range weights {
		weights[i] = normalWeight
	}
	return fleet(weights...)
}

// policies are all of them, by name.
func policies(random *rand.Rand) map[string]Policy {
	return map[string]Policy{
		"power of two":    PowerOfTwoBy(random.Uint64),
		"round robin":     RoundRobin(),
		"consistent hash": ConsistentHash(1.25),
	}
}

// randomFleet returns 1 to 40 endpoints with a past.
func randomFleet(random *rand.Rand) []*Endpoint {
	zones := random.IntN(3)
	list := make([]*Endpoint, 1+random.IntN(40))
	for i := range list {
		c := Config{Weight: 1 + random.IntN(300), Hash: random.Uint64()}
		c.Preferred = zones == 0 || zones == 1 && random.IntN(2) == 0
		list[i] = NewEndpoint(c, time.Duration(random.Int64N(2e9)-1e9))
		for range random.IntN(4) {
			list[i].Begin(0)
		}
		if random.IntN(2) == 0 {
			list[i].Begin(0)
			list[i].End(time.Second, time.Duration(random.Int64N(1e9)), Outcome(random.IntN(3)))
		}
	}
	return list
}
