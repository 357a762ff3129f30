package balance

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPowerOfTwoPicksTheBetterOfTwo(t *testing.T) {
	seeded(t, 200, func(t *testing.T, random *rand.Rand) {
		list := equalFleet(2)
		for _, e := range list {
			for range 1 + random.IntN(5) {
				e.Begin(0)
			}
			e.End(0, time.Duration(1+random.Int64N(1e9)), OK)
		}
		now := time.Duration(random.Int64N(3e10))
		p := PowerOfTwoBy(random.Uint64)
		for range 5 {
			i := p.Pick(now, list, Call{}, nil)
			require.LessOrEqual(t, list[i].Score(now)*(1-alike), list[1-i].Score(now)*1.0001)
		}
	})
}

// Of two servers that do equally well, each is picked.
func TestPowerOfTwoBreaksTiesByChance(t *testing.T) {
	list, p, counts := equalFleet(2), PowerOfTwoBy(rand.New(rand.NewPCG(1, 1)).Uint64), [2]int{}
	for _, e := range list {
		e.Begin(0)
		e.End(0, time.Millisecond, OK)
	}
	for range 1000 {
		counts[p.Pick(0, list, Call{}, nil)]++
	}
	require.InDelta(t, 500, counts[0], 80)
}

func TestPowerOfTwoTriesTheNewOneCallAtATime(t *testing.T) {
	list := equalFleet(3)
	p := PowerOfTwoBy(rand.New(rand.NewPCG(1, 1)).Uint64)
	for _, e := range list[:2] {
		e.Begin(0)
		e.End(0, 10*time.Millisecond, OK)
	}
	tried := 0
	for range 50 { // nothing is answered
		i := p.Pick(0, list, Call{}, nil)
		list[i].Begin(0)
		if i == 2 {
			tried++
		}
	}
	require.Equal(t, 1, tried, "no answer has come from the new server")
	list[2].End(0, 10*time.Millisecond, OK)
	for range 100 {
		list[p.Pick(0, list, Call{}, nil)].Begin(0)
	}
	require.InDelta(t, 50, list[2].Outstanding(), 5, "it is one like the others now")
}

// Streams say nothing of how long a call takes, and are many on a client that makes no other calls: they are
// spread by their numbers, whatever is known of a server.
func TestPowerOfTwoSpreadsWhatIsUntimed(t *testing.T) {
	const ms = time.Millisecond
	stream := func(e *Endpoint) {
		e.Begin(0)
		e.Hold()
	}
	for _, tc := range []struct {
		name    string
		weights [3]int
		before  func(list []*Endpoint)
		want    [3]int
	}{
		{"nothing is known", [3]int{100, 100, 100}, func([]*Endpoint) {}, [3]int{30, 30, 30}},
		{"of one it is known", [3]int{100, 100, 100}, func(list []*Endpoint) {
			list[0].Begin(0)
			list[0].End(0, ms, OK)
		}, [3]int{30, 30, 30}},
		{"one has reported", [3]int{100, 100, 100}, func(list []*Endpoint) {
			list[0].Begin(0)
			list[0].End(0, ms, OK)
			list[0].Report(0, ms, 1000)
		}, [3]int{30, 30, 30}},
		{"one is on trial", [3]int{100, 100, 100}, func(list []*Endpoint) { list[1].Begin(0) },
			[3]int{30, 30, 30}},
		{"of one it is known that it is slow", [3]int{100, 100, 100}, func(list []*Endpoint) {
			list[0].Begin(0)
			list[0].End(0, time.Hour, OK)
		}, [3]int{30, 30, 30}},
		{"of all it is known", [3]int{100, 100, 100}, func(list []*Endpoint) {
			for i, e := range list {
				e.Begin(0)
				e.End(0, time.Duration(1+i/2)*ms, OK) // the third one takes twice as long
			}
		}, [3]int{36, 36, 18}},
		{"weights", [3]int{100, 100, 400}, func([]*Endpoint) {}, [3]int{15, 15, 60}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			seeded(t, 20, func(t *testing.T, random *rand.Rand) {
				list, p, before := fleet(tc.weights[:]...), PowerOfTwoBy(random.Uint64), [3]int{}
				tc.before(list)
				for i, e := range list {
					before[i] = e.Outstanding()
				}
				for range 90 {
					stream(list[p.Pick(0, list, Call{Untimed: true}, nil)])
				}
				for i, e := range list {
					require.InDelta(t, tc.want[i], e.Outstanding()-before[i], 8, "server %d", i)
				}
			})
		})
	}
}

// A push to a server of which nothing is known finds nothing out, so it is no reason to go there.
func TestPowerOfTwoPushesAreNoTrials(t *testing.T) {
	list, p := equalFleet(2), PowerOfTwoBy(rand.New(rand.NewPCG(1, 1)).Uint64)
	list[0].Begin(0)
	list[0].End(0, time.Millisecond, OK)
	list[0].Report(0, 0, 1)
	counts := [2]int{}
	for range 1000 {
		i := p.Pick(0, list, Call{Untimed: true}, nil)
		list[i].Begin(0)
		list[i].End(0, 0, Untimed)
		counts[i]++
	}
	require.InDelta(t, 500, counts[0], 80)
	require.Equal(t, 1, p.Pick(0, list, Call{}, nil), "a pull finds out")
}

// A server that was slow is tried again, and has calls again when it is well.
func TestPowerOfTwoComesBackToASlowServer(t *testing.T) {
	list := equalFleet(3)
	p := PowerOfTwoBy(rand.New(rand.NewPCG(1, 1)).Uint64)
	slow := true
	second := func(from time.Duration) (to2 int) {
		for n := range 100 {
			now := from + time.Duration(n)*10*time.Millisecond
			i := p.Pick(now, list, Call{}, nil)
			took := 10 * time.Millisecond
			if i == 2 {
				to2++
				if slow {
					took = time.Second
				}
			}
			list[i].Begin(now)
			list[i].End(now, took, OK)
		}
		return to2
	}
	require.LessOrEqual(t, second(0), 2)
	tries := 0
	for s := range 120 {
		tries += second(time.Duration(s+1) * time.Second)
	}
	require.Greater(t, tries, 1, "it is tried")
	require.Less(t, tries, 120, "but rarely")
	slow = false
	for s := range 130 { // no more than three half-lives that have doubled twice
		second(time.Duration(s+121) * time.Second)
	}
	require.Greater(t, second(251*time.Second), 10)
}

func TestPowerOfTwoAndZones(t *testing.T) {
	zones := func(near, far int) (list []*Endpoint) {
		for i := range near + far {
			e := NewEndpoint(Config{Weight: 100, Preferred: i < near}, 0)
			e.Begin(0)
			e.End(0, 10*time.Millisecond, OK)
			list = append(list, e)
		}
		return list
	}
	pick := func(list []*Endpoint, call Call, skip func(int) bool) (far int) {
		p := PowerOfTwoBy(rand.New(rand.NewPCG(1, 1)).Uint64)
		for range 1000 {
			if i := p.Pick(0, list, call, skip); !list[i].config.Preferred {
				far++
			}
		}
		return far
	}
	load := func(list []*Endpoint, calls int) []*Endpoint {
		for _, e := range list {
			if e.config.Preferred {
				for range calls {
					e.Begin(0)
				}
			}
		}
		return list
	}
	require.Zero(t, pick(zones(3, 6), Call{}, nil))
	require.Zero(t, pick(load(zones(3, 6), 2), Call{}, nil), "the others are not so much better")
	require.Equal(t, 1000, pick(load(zones(3, 6), 5), Call{}, nil), "the others are much better")
	require.Equal(t, 1000, pick(zones(3, 6), Call{}, func(i int) bool { return i < 3 }), "no other is there")
	require.Zero(t, pick(zones(1, 500), Call{}, nil), "one of many")

	unknown := load(zones(3, 0), 5)
	for range 3 {
		unknown = append(unknown, NewEndpoint(Config{Weight: 100}, 0))
	}
	far := pick(unknown, Call{}, nil)
	require.Greater(t, far, 2, "somebody finds out")
	require.Less(t, far, 40)
	require.Zero(t, pick(unknown, Call{Untimed: true}, nil), "not by what finds out nothing")
	require.Zero(t, pick(load(zones(3, 6), 2), Call{Untimed: true}, nil))
	require.Equal(t, 1000, pick(load(zones(3, 6), 5), Call{Untimed: true}, nil))
}

// The heaviest servers that there may be do not make the sum of weights wrap around to 0.
func TestPowerOfTwoOfHeavyServers(t *testing.T) {
	var from []*Endpoint
	for i := range 500 {
		weight := []int{maxWeight, maxWeight, 2, 100}[min(i, 3)]
		from = append(from, NewEndpoint(Config{Weight: weight}, 0))
	}
	p := PowerOfTwo()
	for range 1000 {
		require.Less(t, p.Pick(0, from, Call{}, func(i int) bool { return i > 2 }), 3)
	}
}
