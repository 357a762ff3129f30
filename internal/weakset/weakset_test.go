package weakset_test

import (
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/weakset"
)

type thing struct{ _ [1 << 10]byte }

// An element is there once, and goes when nobody else has it.
func TestSet(t *testing.T) {
	var s weakset.Set[thing]
	kept := new(thing)
	require.True(t, s.Add(kept))
	require.False(t, s.Add(kept))
	for range 100 {
		require.True(t, s.Add(new(thing)))
	}
	require.Eventually(t, func() bool {
		runtime.GC()
		return s.Len() == 1
	}, 20*time.Second, time.Millisecond)
	require.Equal(t, []*thing{kept}, s.All())
	runtime.KeepAlive(kept)
}
