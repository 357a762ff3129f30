package balance

import (
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func join(j *Ejector, n int) []*Member {
	list := make([]*Member, n)
	for i := range list {
		list[i] = j.Join()
	}
	return list
}

func count(m *Member, now time.Duration, failed bool, times int) (ejected bool) {
	for range times {
		ejected = m.Count(now, failed) || ejected
	}
	return ejected
}

func TestEjectsWhoFailsInARow(t *testing.T) {
	all := join(NewEjector(EjectorConfig{}), 3)
	m := all[0]
	require.False(t, count(m, 0, true, 4))
	require.False(t, m.Count(0, false))
	require.False(t, count(m, 0, true, 4), "the row was interrupted")
	require.True(t, m.Count(0, true))
	require.True(t, m.Ejected(0))
	require.True(t, m.Skip(0, 0))
	require.True(t, m.Ejected(5*time.Second-1))
	require.False(t, all[1].Skip(0, 100))
	require.False(t, count(all[1], 0, true, 100), "one of three is out, which is the most")
}

func TestProbation(t *testing.T) {
	m := join(NewEjector(EjectorConfig{}), 2)[0]
	out := func(now time.Duration) time.Duration { // fails, and returns for how long the member is out
		for !m.Count(now, true) {
		}
		for d := time.Duration(0); ; d += time.Second / 2 {
			if !m.Ejected(now + d) {
				return d
			}
		}
	}
	require.Equal(t, 5*time.Second, out(0))
	now := 5 * time.Second
	require.False(t, m.Skip(now, 0), "a call may try")
	require.True(t, m.Skip(now, 1), "but one at a time")
	require.True(t, m.Count(now, true), "the first failure is one too many")
	require.True(t, m.Ejected(now+10*time.Second-1))
	require.False(t, m.Ejected(now+10*time.Second))
	now += 10 * time.Second
	require.False(t, count(m, now, false, passes-1))
	require.True(t, m.Skip(now, 1))
	require.False(t, m.Count(now, false))
	require.False(t, m.Skip(now, 1), "it is one like the others")
	require.Equal(t, 20*time.Second, out(now+time.Second), "it was not well for long")
	now += 21 * time.Second
	count(m, now, false, passes)
	require.Equal(t, 5*time.Second, out(now+time.Minute), "it was well for long")
	for now += 2 * time.Minute; ; now += 6 * time.Minute {
		if d := out(now); d == 5*time.Minute {
			break
		} else {
			require.Less(t, d, 5*time.Minute)
		}
	}
	now += 5 * time.Minute
	require.Equal(t, 5*time.Minute, out(now), "that is the longest")
}

func TestEjectsWhoFailsMoreThanOthers(t *testing.T) {
	for _, tc := range []struct {
		name        string
		own, others int // failures of a hundred calls
		out         bool
	}{
		{"no more than others", 10, 10, false},
		{"a little more", 30, 10, false},
		{"much more", 45, 10, true},
		{"what all have in common", 90, 55, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			all := join(NewEjector(EjectorConfig{Consecutive: -1}), 4)
			out := false
			for n := range 100 {
				for i, m := range all {
					failures := tc.others
					if i == 0 {
						failures = tc.own
					}
					failed := n*failures/100 != (n+1)*failures/100
					ejected := m.Count(time.Duration(n)*10*time.Millisecond, failed)
					out = out || i == 0 && ejected
					require.False(t, i > 0 && ejected)
				}
			}
			require.Equal(t, tc.out, out)
		})
	}
	few := join(NewEjector(EjectorConfig{Consecutive: -1}), 4)[0]
	require.False(t, count(few, 0, true, 19), "too few calls to judge by")
	old := join(NewEjector(EjectorConfig{Consecutive: -1}), 4)[0]
	require.False(t, count(old, 0, true, 19))
	require.False(t, old.Count(time.Minute, true), "what was a minute ago does not count")
}

// Whatever happens, no more than the share is out, and in the end everyone is back.
func TestNoMoreThanTheShareIsOut(t *testing.T) {
	seeded(t, 200, func(t *testing.T, random *rand.Rand) {
		share := random.Float64()
		j := NewEjector(EjectorConfig{MaxShare: share, Consecutive: 1 + random.IntN(5),
			Base: time.Duration(1 + random.Int64N(1e9))})
		all := join(j, 1+random.IntN(12))
		now := -time.Minute
		check := func() {
			out := 0
			for _, m := range all {
				if m.Ejected(now) {
					out++
				}
			}
			require.LessOrEqual(t, out, int(share*float64(len(all))))
		}
		for range 500 {
			now += time.Duration(random.Int64N(3e8))
			check()
			switch k := random.IntN(len(all)); random.IntN(20) {
			case 0:
				all = append(all, j.Join())
			case 1:
				if len(all) > 1 {
					gone := all[k]
					all = append(all[:k:k], all[k+1:]...)
					gone.Leave(now)
					gone.Count(now, true)
				}
			default:
				if !all[k].Ejected(now) || random.IntN(4) == 0 {
					all[k].Count(now, random.IntN(3) == 0)
				}
			}
			check()
		}
		now += 5 * time.Minute
		for _, m := range all {
			require.False(t, m.Skip(now, 0), "everyone may be tried again")
			count(m, now, false, passes)
		}
		for _, m := range all {
			require.False(t, m.Skip(now, 10), "and is back")
		}
	})
}

func TestEjectorAtOnce(t *testing.T) {
	j := NewEjector(EjectorConfig{Base: time.Millisecond})
	all := join(j, 6)
	var callers sync.WaitGroup
	for g := range 8 {
		callers.Go(func() {
			random := rand.New(rand.NewPCG(uint64(g), 0))
			for n := range 2000 {
				now := time.Duration(n) * 10 * time.Microsecond
				m := all[random.IntN(len(all))]
				if !m.Skip(now, random.IntN(2)) {
					m.Count(now, random.IntN(2) == 0)
				}
				if random.IntN(500) == 0 {
					j.Join().Leave(now)
				}
			}
		})
	}
	callers.Wait()
}

func TestMistakesOfEjectors(t *testing.T) {
	for _, c := range []EjectorConfig{
		{MaxShare: 1.1}, {MaxShare: -0.1}, {MaxShare: math.NaN()}, {Base: -1}, {Base: time.Second, Max: 1},
		{Excess: math.NaN()}, {MinCalls: -1},
	} {
		require.Panics(t, func() { NewEjector(c) }, "%+v", c)
	}
	require.NotPanics(t, func() { NewEjector(EjectorConfig{Base: time.Hour}) })
}
