package role

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A route becomes quick when enough of its calls were, on average.
func TestPaceOfARoute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Pace
		for range tryAfter - 1 {
			p.Sample(time.Microsecond)
			require.False(t, p.Quick())
		}
		p.Sample(time.Microsecond)
		require.True(t, p.Quick())

		// One slow call, whatever its time, does not count for more than it is.
		p.Sample(time.Hour)
		require.True(t, p.Quick())
		for range 100 {
			p.Sample(time.Microsecond)
		}
		// Slow ones do.
		for range 20 {
			p.Sample(200 * time.Microsecond)
		}
		require.False(t, p.Quick())
		for range 1000 {
			p.Sample(200 * time.Microsecond)
			require.False(t, p.Quick())
		}
	})
}

// A route that holds up readers again and again is tried more and more rarely;
// one that does it now and then stays quick.
func TestPaceOfARouteThatBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Pace
		tries := func() (n int) {
			for !p.Quick() {
				p.Sample(time.Microsecond)
				n++
			}
			return n
		}
		for i := range maxWary + 3 {
			require.Equal(t, tryAfter<<min(i, maxWary), tries())
			p.HeldUp()
			require.False(t, p.Quick(), "held up at once")
		}
		require.Equal(t, tryAfter<<maxWary, tries())
		for range maxWary {
			time.Sleep(longCalm + 1) // of the bubble's time
			p.HeldUp()
			require.True(t, p.Quick(), "held up after a long time")
		}
		p.HeldUp()
		require.False(t, p.Quick(), "held up twice in a short time")
		require.Equal(t, tryAfter<<1, tries())
		time.Sleep(calmTime)
		p.HeldUp()
		require.True(t, p.Quick())
		p.demoteLocked()
		p.HeldUp() // by a call that began before
		require.False(t, p.Quick())
		require.Equal(t, tryAfter<<2, tries())
	})
}
