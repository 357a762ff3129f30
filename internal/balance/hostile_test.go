package balance

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A push, a stream and a call that was given up at once say nothing of how long a call takes: a server that
// never answers must not look like the fastest of all for them.
func TestUnansweredIsNoProofOfSpeed(t *testing.T) {
	for name, took := range map[string]time.Duration{"a push": 0, "given up at once": time.Microsecond} {
		t.Run(name, func(t *testing.T) {
			silent, well := NewEndpoint(Config{Weight: 100}, 0), NewEndpoint(Config{Weight: 100}, 0)
			silent.Begin(0)
			silent.End(0, took, Unanswered)
			well.Begin(0)
			well.End(0, time.Millisecond, OK)
			p, from, calls := PowerOfTwo(), []*Endpoint{silent, well}, 0
			for range 1000 {
				if i := p.Pick(0, from, Call{}, nil); i == 0 {
					calls++
					silent.Begin(0)
				}
			}
			require.LessOrEqual(t, calls, 1, "calls to a server that never answers")
		})
	}
}

// Weights are numbers that somebody has written.
func TestHugeWeights(t *testing.T) {
	const most = maxWeight
	from := []*Endpoint{NewEndpoint(Config{Weight: most}, 0), NewEndpoint(Config{Weight: most}, 0),
		NewEndpoint(Config{Weight: 2}, 0)}
	for _, p := range []Policy{PowerOfTwo(), RoundRobin(), ConsistentHash(1.25)} {
		for key := range uint64(100) {
			skip := func(i int) bool { return i == int(key%3) }
			require.GreaterOrEqual(t, p.Pick(0, from, Call{Key: key}, skip), 0)
		}
	}
}

// Another weight is no reason to forget what the calls have shown.
func TestEndpointWithAnotherConfig(t *testing.T) {
	e := NewEndpoint(Config{Weight: 100}, 0)
	e.Begin(0)
	e.End(0, 10*time.Millisecond, OK)
	e.Begin(0)
	same := e.With(Config{Weight: 200})
	require.Equal(t, 1, same.Outstanding())
	require.InEpsilon(t, 15e6, same.Score(0), 0.001)
	same.End(0, 40*time.Millisecond, OK)
	require.Zero(t, e.Outstanding())
	require.InEpsilon(t, 40e6, e.Score(0), 0.001)
	require.Panics(t, func() { e.With(Config{}) })
}

// A stream that is open for ever is no trial for whose end the calls wait.
func TestHeldCallsAreNoTrial(t *testing.T) {
	now := time.Duration(0)
	held, well := NewEndpoint(Config{Weight: 100}, 0), NewEndpoint(Config{Weight: 100}, 0)
	held.Begin(now)
	held.Hold()
	well.Begin(now)
	well.End(now, time.Millisecond, OK)
	p, from := PowerOfTwo(), []*Endpoint{held, well}
	require.Zero(t, p.Pick(now, from, Call{}, nil), "it is to be tried")
	held.Begin(now)
	require.Equal(t, 1, p.Pick(now, from, Call{}, nil), "one at a time")
	held.End(now, time.Millisecond, OK)
	held.Release()
	held.End(now, 0, Untimed)
	require.Zero(t, held.Outstanding())
	require.Zero(t, held.Awaited())
	require.InEpsilon(t, 1e6, held.Score(now), 0.001)
}

// When a service of many servers is down each failed call costs little, and its servers are no outliers.
func TestManyThatAllFail(t *testing.T) {
	j := NewEjector(EjectorConfig{})
	members := make([]*Member, 20*fewMembers)
	for i := range members {
		members[i] = j.Join()
	}
	now := time.Duration(0)
	for range 20 {
		for _, m := range members {
			now += time.Microsecond
			require.False(t, m.Count(now, true))
		}
	}
	for i, m := range members { // all but the last one are well again
		for range 200 {
			m.Count(now+2*ejectWindow, i == len(members)-1)
		}
	}
	require.True(t, members[len(members)-1].Ejected(now+2*ejectWindow))
}
