package calltable

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A table that was large once gives its memory back when nothing is in it any more, and what has left it
// keeps nothing alive.
func TestEmptyTableIsSmall(t *testing.T) {
	type call struct{ entry Entry[call] }
	var table Table[call]
	calls := make([]call, 3*maxIdleBuckets)
	for round := range 2 {
		for i := range calls {
			require.True(t, table.Add(&calls[i].entry, uint64(i), &calls[i]))
		}
		require.GreaterOrEqual(t, len(table.buckets), len(calls))
		for i := range calls {
			require.Same(t, &calls[i], table.Take(uint64(i)))
			require.Equal(t, Entry[call]{number: uint64(i)}, calls[i].entry)
		}
		require.Nil(t, table.buckets, round)
	}
	table.Add(&calls[0].entry, 1, &calls[0])
	table.Take(1)
	require.Len(t, table.buckets, minBuckets, "a small one stays")
}
