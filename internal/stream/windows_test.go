package stream

import (
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// silent is a connection on which nothing else is sent.
type silent struct{}

func (silent) SendStreamCredit(string, map[string]string) {}
func (silent) OtherPackets() uint32                       { return 0 }

// The windows of a connection's streams grow by so much in all, and a stream that ends makes room for others.
func TestWindowsOfAllStreams(t *testing.T) {
	var set Set
	var all []*Stream
	grown := func() (sum uint64) {
		for _, s := range all {
			sum += s.In.credit.Window() - Window
		}
		return sum
	}
	for i := range 10 {
		s := new(Stream)
		s.Init(silent{}, strconv.Itoa(i), i%2 == 0, nil)
		require.Equal(t, Added, set.Add(s, -1))
		all = append(all, s)
	}
	for range 10 {
		for _, s := range all {
			s.In.grow()
		}
	}
	require.LessOrEqual(t, grown(), uint64(maxGrown))
	require.Greater(t, grown(), uint64(maxGrown-MaxWindow))
	last := all[9]
	require.Less(t, last.In.credit.Window(), uint64(MaxWindow))
	for _, s := range all[:9] {
		set.Remove(s)
		set.Remove(s)
	}
	for range 10 {
		last.In.grow()
	}
	require.EqualValues(t, MaxWindow, last.In.credit.Window())
	last.In.credit.Shrink()
	last.In.grow()
	require.EqualValues(t, 2*Window, last.In.credit.Window())
	set.Remove(last)
	require.Zero(t, set.grown)
	last.In.grow()
	require.Zero(t, set.grown, "it is over")
}
