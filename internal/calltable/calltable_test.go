package calltable_test

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/calltable"
)

type call struct {
	entry  calltable.Entry[call]
	number uint64
	owners atomic.Int32
}

// The table does what lists of calls by number do, whatever the order, with numbers that count up,
// that are chosen by chance, and that are used more than once.
func TestTableIsAMapOfLists(t *testing.T) {
	for seed := range uint64(10) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var table calltable.Table[call]
		model := make(map[uint64][]*call)
		var all []*call
		n, taken, counted := 0, 0, uint64(0)
		level := 1 << rnd.IntN(12) // how many there are at a time
		gone := func(c *call) {
			i := slices.Index(model[c.number], c)
			require.GreaterOrEqual(t, i, 0)
			model[c.number] = slices.Delete(model[c.number], i, i+1)
			all = slices.DeleteFunc(all, func(other *call) bool { return other == c })
			n--
			taken++
		}
		for range 3000 {
			number := rnd.Uint64N(uint64(2 * level))
			switch k := rnd.IntN(8); {
			case k < 3 || n < level && k < 6:
				if counted++; k == 0 {
					number = counted
				}
				c := &call{number: number}
				require.True(t, table.Add(&c.entry, number, c))
				model[number] = append(model[number], c)
				all = append(all, c)
				n++
			case k < 6:
				c := table.Take(number)
				if c == nil {
					require.Empty(t, model[number])
					continue
				}
				require.Equal(t, number, c.number)
				gone(c)
			case k < 7 && n > 0:
				c := all[rnd.IntN(n)]
				require.True(t, table.Remove(&c.entry))
				require.False(t, table.Remove(&c.entry), "only once")
				gone(c)
			default:
				require.ElementsMatch(t, model[number], table.Find(number))
				require.Equal(t, len(model[number]) > 0, table.Has(number))
			}
			require.Equal(t, n, table.Len())
			require.EqualValues(t, taken, table.Taken())
		}
		require.ElementsMatch(t, all, table.All())
		require.ElementsMatch(t, all, table.Close())
		require.Zero(t, table.Len())
		require.EqualValues(t, taken+n, table.Taken())
		require.Nil(t, table.Take(1))
		require.Nil(t, table.Find(1))
		require.False(t, table.Has(1))
		c := new(call)
		require.False(t, table.Add(&c.entry, 1, c))
		for _, c := range all {
			require.False(t, table.Remove(&c.entry), "Close has taken it out")
		}
	}
}

// Each call has one owner, who has taken it out, whatever happens at once.
func TestCallsHaveOneOwner(t *testing.T) {
	const each, workers = 2000, 4
	var table calltable.Table[call]
	var wg sync.WaitGroup
	var entered atomic.Int64
	own := func(c *call) {
		if c != nil {
			c.owners.Add(1)
		}
	}
	calls := make([]call, each*workers)
	closing := make(chan struct{})
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				c := &calls[w*each+i]
				if !table.Add(&c.entry, uint64(w*each+i), c) {
					c.owners.Add(1) // nobody else has seen it
					continue
				}
				if entered.Add(1) == each*workers*3/4 {
					close(closing)
				}
				if i%2 == 0 && table.Remove(&c.entry) {
					own(c)
				}
			}
		})
		wg.Go(func() {
			for i := range each * workers {
				own(table.Take(uint64(i * 7 % (each * workers))))
			}
		})
	}
	wg.Go(func() {
		<-closing
		for _, c := range table.Close() {
			own(c)
		}
	})
	wg.Wait()
	for i := range calls {
		require.EqualValues(t, 1, calls[i].owners.Load(), i)
	}
}

// A call costs the table no memory of its own.
func TestCallsAreNotAllocated(t *testing.T) {
	var table calltable.Table[call]
	calls := make([]call, 64)
	number := uint64(0)
	run := func() {
		for i := range calls {
			table.Add(&calls[i].entry, number+uint64(i), &calls[i])
		}
		for i := range calls {
			table.Take(number + uint64(i))
		}
		number += uint64(len(calls))
	}
	run()
	require.Zero(t, testing.AllocsPerRun(100, run))
}

func BenchmarkAddAndTake(b *testing.B) {
	for _, c := range []struct {
		name     string
		inFlight uint64
	}{{"1", 1}, {"16", 16}, {"1024", 1024}} {
		b.Run(c.name, func(b *testing.B) {
			var table calltable.Table[call]
			calls := make([]call, c.inFlight)
			for n := uint64(0); n < uint64(b.N); n++ {
				c := &calls[n%c.inFlight]
				table.Take(n - uint64(len(calls)))
				table.Add(&c.entry, n, c)
			}
		})
	}
}
