package packet_test

import (
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/packet"
)

// owner notes what it was asked to give back.
type owner struct {
	asked []int64
	give  bool // at once
}

func (o *owner) Reclaim(b *packet.Budget, held int64) {
	o.asked = append(o.asked, held)
	if o.give {
		b.Give(b.Used())
	}
}

func join(p *packet.Pool, o packet.Owner) *packet.Budget {
	b := new(packet.Budget)
	p.Join(b, o)
	return b
}

// A budget has its share whatever others hold, and what is lent beyond that leaves
// something for a newcomer.
func TestPoolIsShared(t *testing.T) {
	const most, share, step = 128 << 20, 64 << 10, 100 << 10
	p := packet.NewPool(most, share)
	for n := 1; n <= 400; n++ {
		b := join(p, nil)
		require.True(t, b.Take(share), "the share of number %d", n)
		took := int64(0)
		for b.Take(step) {
			took += step
		}
		if n == 1 {
			require.Greater(t, took, int64(most*3/4), "who is alone may have most of it")
		}
		require.Less(t, p.Lent(), int64(most))
	}
	b := join(p, nil)
	require.True(t, b.Take(share))
	require.False(t, b.Take(most))
}

// Many that want all they can get have about the same.
func TestPoolIsFair(t *testing.T) {
	const most, step, members = 128 << 20, 16 << 10, 20
	p := packet.NewPool(most, 0)
	var took [members]int64
	var all [members]*packet.Budget
	for i := range all {
		all[i] = join(p, nil)
	}
	for more := true; more; {
		more = false
		for i, b := range all {
			if b.Take(step) {
				took[i] += step
				more = true
			}
		}
	}
	least, largest := int64(math.MaxInt64), int64(0)
	for _, n := range took {
		least, largest = min(least, n), max(largest, n)
	}
	require.Less(t, largest, 2*least)
	require.Greater(t, least, int64(most/members/2))
}

// When there is nothing left, those end that have waited with most for longest, and
// nobody else.
func TestPoolReclaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 1 << 20
		p := packet.NewPool(most, 0)
		var owners [4]*owner
		var budgets [4]*packet.Budget
		for i := range owners {
			owners[i] = &owner{give: true}
			budgets[i] = join(p, owners[i])
		}
		idle, small, large, asks := budgets[0], budgets[1], budgets[2], budgets[3]
		require.True(t, idle.Take(400<<10)) // and waits for nobody
		require.True(t, large.Take(300<<10))
		large.Waits(true)
		require.True(t, small.Take(100<<10))
		small.Waits(true)
		require.False(t, asks.Take(300<<10), "nobody has waited for long")
		time.Sleep(2 * packet.Patience)
		require.False(t, asks.Take(500<<10), "all of them do not hold so much")
		require.Empty(t, owners[1].asked)
		time.Sleep(time.Second)
		require.True(t, asks.Take(300<<10))
		require.Len(t, owners[2].asked, 1)
		require.Empty(t, owners[0].asked)
		require.Empty(t, owners[1].asked)
		small.Waits(false)
		time.Sleep(2 * packet.Patience)
		require.False(t, asks.Take(600<<10))
		require.Empty(t, owners[1].asked, "it waits no more")

		// What is held by one that does not give it back is held once.
		owners[1].give = false
		small.Waits(true)
		time.Sleep(2 * packet.Patience)
		for asks.Take(50 << 10) {
		}
		require.Len(t, owners[1].asked, 1)
		for _, b := range budgets {
			b.Give(b.Used())
		}
		require.Zero(t, p.Lent())
	})
}

// What is larger than the pool has its turn when nobody else has any of it.
func TestBudgetTakesAlone(t *testing.T) {
	p := packet.NewPool(1<<20, 0)
	a, b := join(p, nil), join(p, nil)
	require.True(t, a.Take(1000))
	require.False(t, b.TakeAlone(2<<20))
	a.Give(1000)
	require.False(t, b.TakeAlone(1000), "which others may have")
	require.True(t, b.TakeAlone(2<<20))
	require.False(t, a.Take(1))
	b.Give(2 << 20)
	require.True(t, a.Take(1))
}

// Those that have waited for long do not keep what is larger than the pool waiting, but if somebody else has
// some of the pool too nobody gives anything back.
func TestBudgetReclaimsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := packet.NewPool(1<<20, 0)
		stalled, other := &owner{give: true}, &owner{give: true}
		a, b, c := join(p, stalled), join(p, other), join(p, nil)
		require.True(t, a.Take(100<<10))
		require.True(t, b.Take(100<<10))
		a.Waits(true)
		require.False(t, c.TakeAlone(2<<20), "nobody has waited for long")
		time.Sleep(2 * packet.Patience)
		require.False(t, c.TakeAlone(2<<20), "one of them does not wait")
		require.Empty(t, stalled.asked)
		b.Waits(true)
		time.Sleep(2 * packet.Patience)
		require.True(t, c.TakeAlone(2<<20))
		require.Len(t, stalled.asked, 1)
		require.Len(t, other.asked, 1)
		c.Give(2 << 20)
		synctest.Wait()
		require.Zero(t, p.Lent())
	})
}

// A budget whose owner has ended is still counted.
func TestBudgetThatEnds(t *testing.T) {
	p := packet.NewPool(1<<20, 1000)
	b := join(p, nil)
	require.True(t, b.Take(500))
	require.Zero(t, p.Left())
	b.End()
	b.End()
	require.EqualValues(t, 500, p.Left())
	b.Force(100_000)
	require.EqualValues(t, 100_500, p.Left())
	b.Give(100_500)
	require.Zero(t, p.Left())
	require.Zero(t, p.Lent())

	var none *packet.Pool
	b = join(none, nil)
	require.True(t, b.Take(1<<60))
	b.Force(1)
	b.Waits(true)
	b.Give(1 << 60)
	b.End()
	require.True(t, b.TakeAlone(1<<60))
	require.Zero(t, none.Lent()+none.Left()+b.Used())
}

// Whatever is taken, given back and ended, in whatever order: nothing is ever negative,
// and when all is given back nothing is left.
func FuzzBudget(f *testing.F) {
	f.Add([]byte{0, 10, 1, 200, 2, 10, 3, 4, 5, 6, 7})
	f.Fuzz(func(t *testing.T, ops []byte) {
		p := packet.NewPool(1<<20, 4<<10)
		var budgets [3]*packet.Budget
		var took [3]int64
		for i := range budgets {
			budgets[i] = join(p, &owner{})
		}
		for i := 0; i+1 < len(ops); i += 2 {
			k := int(ops[i]>>4) % len(budgets)
			b, n := budgets[k], int64(ops[i+1])<<(ops[i]&7)*16
			switch ops[i] & 15 {
			case 0, 1, 2, 3, 4, 5, 6, 7:
				if b.Take(n) {
					took[k] += n
				}
			case 8:
				b.Force(n)
				took[k] += n
			case 9:
				if b.TakeAlone(n << 8) {
					took[k] += n << 8
				}
			case 10:
				b.Waits(n%2 == 0)
			case 11:
				b.End()
			default:
				n = min(n, took[k])
				b.Give(n)
				took[k] -= n
			}
			require.Equal(t, took[k], b.Used())
			require.GreaterOrEqual(t, p.Lent(), int64(0))
			require.GreaterOrEqual(t, p.Left(), int64(0))
		}
		for k, b := range budgets {
			b.Give(took[k])
			require.Zero(t, b.Used())
		}
		require.Zero(t, p.Lent())
		require.Zero(t, p.Left())
	})
}

// The same from many goroutines.
func TestBudgetsAreConcurrent(t *testing.T) {
	p := packet.NewPool(1<<20, 4<<10)
	var wg sync.WaitGroup
	for range 4 {
		b := join(p, &owner{})
		for i := range 4 {
			wg.Go(func() {
				for n := range 2000 {
					size := int64(1 + (n*7919+i)%100_000)
					b.Waits(n%2 == 0)
					if b.Take(size) {
						b.Give(size)
					}
				}
			})
		}
	}
	wg.Wait()
	require.Zero(t, p.Lent())
}
