package tp

import (
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// However park and unpark meet, park returns, and not before unpark.
func TestParker(t *testing.T) {
	var p parker
	p.init()
	rounds := 20_000
	turn := make(chan int, 1)
	var what int // the parker makes it safe to look at
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := range turn {
			if n%3 == 0 {
				runtime.Gosched()
			}
			what = n
			p.unpark()
		}
	})
	for n := range rounds {
		turn <- n
		if n%2 == 0 {
			runtime.Gosched()
		}
		p.park()
		require.Equal(t, n, what)
	}
	close(turn)
	wg.Wait()
}

// A parked goroutine lets a bubble's clock go on, and one that was used in
// another bubble is as good as new.
func TestParkerInBubbles(t *testing.T) {
	var p parker
	p.init()
	for range 3 {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			time.AfterFunc(time.Hour, p.unpark)
			p.park()
			require.Equal(t, time.Hour, time.Since(start))
		})
	}
}
