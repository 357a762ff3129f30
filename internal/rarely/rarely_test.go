package rarely_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/rarely"
)

func TestOneASecondOfAKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l rarely.Limiter[string]
		allow := func(kind string, left int, ok bool) {
			t.Helper()
			gotLeft, gotOk := l.Allow(kind)
			require.Equal(t, ok, gotOk)
			require.Equal(t, left, gotLeft)
		}
		allow("a", 0, true)
		allow("a", 0, false)
		allow("b", 0, true)
		time.Sleep(time.Second - 1)
		allow("a", 0, false)
		time.Sleep(time.Nanosecond)
		allow("a", 2, true)
		allow("b", 0, true)
		time.Sleep(time.Hour)
		allow("a", 0, true)
	})
}

func TestNoneIsLostOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l rarely.Limiter[int]
		var passed atomic.Int64
		var callers sync.WaitGroup
		for range 8 {
			callers.Go(func() {
				for range 1000 {
					if _, ok := l.Allow(1); ok {
						passed.Add(1)
					}
				}
			})
		}
		callers.Wait()
		require.EqualValues(t, 1, passed.Load())
		time.Sleep(time.Second)
		left, ok := l.Allow(1)
		require.True(t, ok)
		require.Equal(t, 7999, left)
	})
}

func TestMore(t *testing.T) {
	require.Empty(t, rarely.More(0))
	require.Equal(t, " (and 412 more like it)", rarely.More(412))
}

// Kinds that come once and never again are forgotten.
func TestOldKindsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l rarely.Limiter[int]
		l.Allow(-1)
		for i := range 100000 {
			if i%100 == 0 {
				time.Sleep(time.Second)
				_, ok := l.Allow(-1)
				require.True(t, ok)
			}
			_, ok := l.Allow(i)
			require.True(t, ok)
		}
		require.Less(t, l.Kinds(), 20000)
	})
}
