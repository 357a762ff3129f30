package follow

import (
	"testing"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
)

// A push that was lost holds the position, until it comes again; when very many come after it nothing is
// remembered any more, and all comes again after the next join.
func TestPushesThatAreLost(t *testing.T) {
	at := func(n uint64) tp.Position { return tp.Position{Epoch: "e", Seq: n} }
	f := new(followed)
	handle := func(n uint64, call any, lost bool) {
		t.Helper()
		require.True(t, f.acceptLocked(at(n), call))
		f.overLocked(at(n), call, lost)
	}
	handle(5, "a", false)
	handle(6, "b", true)
	handle(7, "c", false)
	require.Equal(t, at(5), f.at)
	require.False(t, f.acceptLocked(at(5), "d"), "handled")
	require.False(t, f.acceptLocked(at(7), "d"), "handled")
	require.False(t, f.acceptLocked(tp.Position{Epoch: "e", Seq: 1}, "d"), "before what was known")
	f.overLocked(at(6), "d", false)
	require.Equal(t, at(5), f.at, "another call's end says nothing")
	handle(6, "e", false)
	require.Equal(t, at(7), f.at)

	handle(8, "f", true)
	for n := range uint64(3 * maxPushes) {
		handle(9+n, n, false)
	}
	require.Equal(t, at(7), f.at)
	require.Empty(t, f.order)
	f.beginLocked(f.at) // as a new connection does
	handle(8, "g", false)
	require.Equal(t, at(8), f.at)
}

func TestTooManyGroups(t *testing.T) {
	w := New()
	for i := range maxGroups + 10 {
		f := w.followedLocked(string(rune(i + 1)))
		require.Equal(t, i < maxGroups, f != nil)
	}
	require.Nil(t, New().followedLocked(string(make([]byte, maxName+1))))
}
