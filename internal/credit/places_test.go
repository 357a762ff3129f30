package credit_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/credit"
)

func newPlaces(most uint64) (p *credit.Places, taken *atomic.Uint64) {
	p, taken = new(credit.Places), new(atomic.Uint64)
	p.Init(taken)
	if most > 0 {
		p.Open(most)
	}
	return p, taken
}

func nothing() {}

func TestPlacesBeforeTheReceiverHasSpoken(t *testing.T) {
	p, taken := newPlaces(0)
	for i := range credit.FirstPlaces {
		_, ok, scarce := p.Try()
		require.True(t, ok)
		require.Equal(t, i+1 > credit.FirstPlaces/2, scarce, i)
	}
	_, ok, _ := p.Try()
	require.False(t, ok)
	require.EqualValues(t, credit.FirstPlaces, p.Unanswered())
	p.Open(credit.FirstPlaces + 1)
	p.Open(1) // which does not count
	_, ok, scarce := p.Try()
	require.True(t, ok)
	require.False(t, scarce)
	_, ok, _ = p.Try()
	require.False(t, ok)
	taken.Add(1)
	p.Freed()
	_, ok, _ = p.Try()
	require.True(t, ok)
	require.True(t, p.Awaited())
	require.False(t, p.Sent(1000))
}

// A request that is given up has its place until the answer comes, and an answer that comes twice frees no
// other.
func TestPlacesThatAreGivenUp(t *testing.T) {
	p, taken := newPlaces(2)
	for range 2 {
		_, ok, _ := p.Try()
		require.True(t, ok)
	}
	p.GiveUp()
	taken.Add(1)
	require.EqualValues(t, 2, p.Unanswered())
	_, ok, _ := p.Try()
	require.False(t, ok)
	p.Late()
	p.Late()
	require.EqualValues(t, 1, p.Unanswered())
	_, ok, _ = p.Try()
	require.True(t, ok)
	_, ok, _ = p.Try()
	require.False(t, ok)
	p.GiveUp()
	p.KeepOn()
	require.EqualValues(t, 2, p.Unanswered())
	p.Unused()
	require.EqualValues(t, 1, p.Unanswered())
}

// Those that wait have their places in their order.
func TestPlacesAreGivenInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, taken := newPlaces(1)
		first, ok, _ := p.Try()
		require.True(t, ok)
		const n = 10
		got := make(chan int, n)
		for i := range n {
			go func() {
				if _, err := p.Take(t.Context(), nothing); err == nil {
					got <- i
				}
			}()
			synctest.Wait()
			require.Equal(t, i+1, p.Waiting())
		}
		_, ok, _ = p.Try()
		require.False(t, ok, "others wait")
		for i := range n {
			taken.Add(1)
			p.Freed()
			require.Equal(t, i, <-got)
			require.EqualValues(t, 1, p.Unanswered())
		}
		require.NotZero(t, first)
		require.Zero(t, p.Waiting())
	})
}

func TestWaitsForPlacesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, taken := newPlaces(1)
		_, ok, _ := p.Try()
		require.True(t, ok)
		errs := make(chan error, 1)
		wait := func(ctx context.Context) {
			go func() {
				_, err := p.Take(ctx, nothing)
				errs <- err
			}()
			synctest.Wait()
		}
		ctx, cancel := context.WithCancel(t.Context())
		wait(ctx)
		cancel()
		require.ErrorIs(t, <-errs, context.Canceled)
		require.Zero(t, p.Waiting())

		some, over := errors.New("some"), errors.New("over")
		wait(t.Context())
		p.Interrupt(some)
		require.Equal(t, some, <-errs)
		wait(t.Context())
		p.End(over)
		require.Equal(t, over, <-errs)
		p.End(some)
		wait(t.Context())
		require.Equal(t, over, <-errs)
		taken.Add(1)
		p.Freed()
		require.Zero(t, p.Unanswered())
	})
}

// Whatever many goroutines do at once, no more requests have a place than may, and none waits for ever.
func TestPlacesAreNeverTooMany(t *testing.T) {
	for _, most := range []uint64{1, 3, 40} {
		p, taken := newPlaces(most)
		var inUse, failed, done atomic.Int64
		var wg sync.WaitGroup
		const goroutines, each = 16, 3000
		for g := range goroutines {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(g), most))
				for range each {
					ctx, cancel := context.WithCancel(context.Background())
					if rnd.IntN(8) == 0 {
						go cancel()
					}
					number, ok := uint64(0), false
					if rnd.IntN(2) == 0 {
						number, ok, _ = p.Try()
					} else {
						n, err := p.Take(ctx, nothing)
						number, ok = n, err == nil
					}
					cancel()
					if !ok {
						failed.Add(1)
						continue
					}
					if n := inUse.Add(1); n > int64(most) || number == 0 {
						t.Errorf("%d have a place of %d", n, most)
					}
					switch rnd.IntN(4) {
					case 0: // not sent
						inUse.Add(-1)
						p.Unused()
					case 1: // given up, and answered later
						p.GiveUp()
						taken.Add(1)
						inUse.Add(-1)
						p.Late()
					default:
						if rnd.IntN(8) == 0 {
							p.GiveUp()
							p.KeepOn()
						}
						inUse.Add(-1)
						taken.Add(1)
						p.Freed()
					}
					done.Add(1)
				}
			})
		}
		wg.Wait()
		require.Zero(t, p.Unanswered())
		require.Zero(t, p.Waiting())
		require.False(t, p.Awaited())
		require.EqualValues(t, goroutines*each, failed.Load()+done.Load())
	}
}
