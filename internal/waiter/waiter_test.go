package waiter_test

import (
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/waiter"
)

// However Wait and Done meet, Wait returns, and not before Done.
func TestWaiter(t *testing.T) {
	var w waiter.Waiter
	w.Init()
	rounds := 20_000
	turn := make(chan int, 1)
	var what int // the Waiter makes it safe to look at
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := range turn {
			if n%3 == 0 {
				runtime.Gosched()
			}
			what = n
			w.Done()
		}
	})
	for n := range rounds {
		turn <- n
		if n%2 == 0 {
			runtime.Gosched()
		}
		w.Wait()
		require.Equal(t, n, what)
	}
	close(turn)
	wg.Wait()
}

// A goroutine that waits lets a bubble's clock go on, and one that was used in
// another bubble is as good as new.
func TestWaiterInBubbles(t *testing.T) {
	var w waiter.Waiter
	w.Init()
	for range 3 {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			time.AfterFunc(time.Hour, w.Done)
			w.Wait()
			require.Equal(t, time.Hour, time.Since(start))
		})
	}
}
