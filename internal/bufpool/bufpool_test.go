package bufpool_test

import (
	"sync"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/bufpool"
)

func TestGetLendsEmptyBuffers(t *testing.T) {
	for range 100 {
		b := bufpool.Get()
		require.Empty(t, b.B)
		require.NotZero(t, cap(b.B))
		b.B = append(b.B, "left behind"...)
		bufpool.Put(b)
	}
}

func TestPutOfNil(t *testing.T) {
	bufpool.Put(nil)
	require.NotNil(t, bufpool.Get())
}

// A buffer of which somebody took the memory is as good as any other.
func TestPutOfABufferWithoutMemory(t *testing.T) {
	b := bufpool.Get()
	b.B = nil
	bufpool.Put(b)
	for range 10 {
		b := bufpool.Get()
		b.B = append(b.B, 'x')
		require.Equal(t, "x", string(b.B))
	}
}

func TestBuffersLentAtOneTimeAreDistinct(t *testing.T) {
	lent := make(map[*bufpool.Buffer]bool)
	memory := make(map[*byte]bool)
	for range 100 {
		b := bufpool.Get()
		require.False(t, lent[b])
		lent[b] = true
		b.B = append(b.B, 'x')
		p := unsafe.SliceData(b.B)
		require.False(t, memory[p])
		memory[p] = true
	}
	for b := range lent {
		bufpool.Put(b)
	}
}

// A large buffer is not lent again: it would be held for ever.
func TestLargeBuffersAreNotKept(t *testing.T) {
	for _, size := range []int{bufpool.MaxKept + 1, 16 << 20} {
		b := bufpool.Get()
		b.B = make([]byte, 0, size)
		bufpool.Put(b)
		for range 100 {
			got := bufpool.Get()
			require.NotSame(t, b, got)
			require.LessOrEqual(t, cap(got.B), bufpool.MaxKept)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 500 {
				b := bufpool.Get()
				for range i {
					b.B = append(b.B, byte(g))
				}
				for _, got := range b.B {
					assert.Equal(t, byte(g), got)
				}
				bufpool.Put(b)
			}
		})
	}
	wg.Wait()
}
