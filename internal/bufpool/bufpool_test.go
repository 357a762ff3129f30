package bufpool_test

import (
	"bytes"
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

// edges are the sizes around those that buffers are lent in.
func edges() []int {
	all := []int{0, 1, 100, 1000, 10000, 100000, 1000000}
	for _, size := range []int{bufpool.First, bufpool.Small} {
		all = append(all, size-1, size, size+1)
	}
	for size := bufpool.Full; size <= bufpool.MaxKept; size *= 2 {
		all = append(all, size-1, size, size+1)
	}
	return all
}

func TestGetSizeGivesEnough(t *testing.T) {
	for range 2 { // new ones, and those that were put back
		var lent []*bufpool.Buffer
		for _, size := range edges() {
			b := bufpool.GetSize(size)
			require.Empty(t, b.B)
			require.GreaterOrEqual(t, cap(b.B), size)
			lent = append(lent, b)
		}
		for _, b := range lent {
			b.B = append(b.B, "left behind"...)
			bufpool.Put(b)
		}
	}
	for size := 0; size <= bufpool.MaxKept+1; size += 997 {
		b := bufpool.GetSize(size)
		require.Empty(t, b.B)
		require.GreaterOrEqual(t, cap(b.B), size)
		bufpool.Put(b)
	}
}

// Whatever memory a buffer comes back with, nobody gets it who asked for more.
func TestPutOfAnyCapacity(t *testing.T) {
	for _, given := range edges() {
		for range 4 {
			bufpool.Put(&bufpool.Buffer{B: make([]byte, given/2, given)})
		}
		for _, asked := range edges() {
			b := bufpool.GetSize(asked)
			require.Empty(t, b.B)
			require.GreaterOrEqual(t, cap(b.B), asked, "after a buffer of %d bytes", given)
			bufpool.Put(b)
		}
		require.NotZero(t, cap(bufpool.Get().B))
	}
}

// content returns so many bytes that differ, with that much room behind them.
func content(n, room int) []byte {
	b := make([]byte, n, n+room)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func TestGrow(t *testing.T) {
	for _, n := range []int{0, 1, 511, 512, 5000, bufpool.Full} {
		for _, room := range []int{0, 1, 100, 5000} {
			for _, more := range []int{0, 1, 100, 101, 4096, 5000, bufpool.Full, bufpool.MaxKept} {
				b := content(n, room)
				got := bufpool.Grow(b, more)
				require.True(t, bytes.Equal(content(n, 0), got), "%d bytes, %d more", n, more)
				require.GreaterOrEqual(t, cap(got)-len(got), more)
				if room >= more {
					require.Same(t, unsafe.SliceData(b), unsafe.SliceData(got), "there was room")
				} else {
					require.NotSame(t, unsafe.SliceData(b), unsafe.SliceData(got))
				}
				bufpool.Put(&bufpool.Buffer{B: got})
			}
		}
	}
}

// Pooled lends what the pools have, and takes no new memory.
func TestPooled(t *testing.T) {
	for _, size := range edges() {
		bufpool.Put(&bufpool.Buffer{B: make([]byte, size)})
	}
	for _, n := range append(edges(), bufpool.MaxKept+1) {
		if b := bufpool.Pooled(n); b != nil {
			require.GreaterOrEqual(t, cap(b.B), n)
			require.Empty(t, b.B)
		}
	}
	require.Nil(t, bufpool.Pooled(bufpool.MaxKept+1))
	require.Zero(t, testing.AllocsPerRun(10, func() {
		if bufpool.Pooled(bufpool.MaxKept+1) != nil {
			panic("new memory")
		}
	}))
}
