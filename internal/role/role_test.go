package role_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/role"
)

// owner counts how often its reader was replaced.
type owner struct{ replaced atomic.Int32 }

func (o *owner) ReplaceReader() { o.replaced.Add(1) }

func inBubble(t *testing.T, f func(t *testing.T, w *role.Watch)) {
	synctest.Test(t, func(t *testing.T) {
		var w role.Watch
		closed := make(chan struct{})
		w.Init(closed)
		f(t, &w)
		close(closed)
	})
}

// A reader that is held up for two ticks is replaced, once; one that is back sooner is not.
func TestHeldUpReadersAreReplaced(t *testing.T) {
	inBubble(t, func(t *testing.T, w *role.Watch) {
		var o owner
		var r role.Role
		r.Init(&o, w, 1)
		turn := r.Begin()
		for range 100 {
			require.True(t, turn.Watched())
			turn.Enter()
			require.True(t, turn.Away())
			time.Sleep(role.Tick / 2)
			require.True(t, turn.Leave())
			require.False(t, turn.Away())
		}
		require.Zero(t, o.replaced.Load())
		turn.Enter()
		time.Sleep(10 * role.Tick)
		synctest.Wait()
		require.EqualValues(t, 1, o.replaced.Load())
		next := r.Begin() // who reads now
		require.True(t, next.Watched())
		next.Enter()
		require.False(t, turn.Leave(), "who comes back finds that another one reads")
		require.True(t, next.Leave())
		next.Unwatch()
		turn.Unwatch()
	})
}

// A reader that reads, for however long, is left alone, and the watch ends when there is nobody.
func TestReadersThatReadAreLeftAlone(t *testing.T) {
	inBubble(t, func(t *testing.T, w *role.Watch) {
		var o owner
		var r role.Role
		r.Init(&o, w, 1)
		turn := r.Begin()
		require.False(t, w.Running())
		require.True(t, turn.Watched())
		require.True(t, w.Running())
		time.Sleep(time.Second)
		require.Zero(t, o.replaced.Load())
		require.True(t, w.Running())
		turn.Unwatch()
		time.Sleep((role.IdleTicks + 1) * role.Tick)
		synctest.Wait()
		require.False(t, w.Running())
		require.True(t, turn.Watched(), "and begins again")
		require.True(t, w.Running())
	})
}

// There are slots for some; the others are told so, and can have one when it is given back.
func TestSlotsAreBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, w *role.Watch) {
		var turns []role.Turn
		n := 0
		for i := range uint32(1000) {
			r := new(role.Role)
			r.Init(new(owner), w, i)
			turn := r.Begin()
			if turn.Watched() {
				turns = append(turns, turn)
				n++
			}
		}
		require.Equal(t, 64, n)
		for i := range turns {
			turns[i].Unwatch()
		}
		r := new(role.Role)
		r.Init(new(owner), w, 5)
		turn := r.Begin()
		require.True(t, turn.Watched())
	})
}
