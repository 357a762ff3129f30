package grown_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/grown"
)

// Each element is made once, whoever asks for it first.
func TestMap(t *testing.T) {
	var m grown.Map[int, *int]
	_, ok := m.Get(1)
	require.False(t, ok)
	require.Zero(t, m.Len())
	var made atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 100 {
				v := m.Add(i, func() *int { made.Add(1); return new(int) })
				if got, ok := m.Get(i); !ok || got != v {
					t.Error("another one")
				}
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 100, made.Load())
	require.Equal(t, 100, m.Len())
}
