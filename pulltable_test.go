package tp

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// countEntries returns how many commands the table holds in the ring and beside
// it, and checks that each is where take looks.
func countEntries(t *testing.T, table *pullTable) (ring, more int) {
	t.Helper()
	for i, cmd := range table.ring {
		if cmd != nil {
			ring++
			require.Equal(t, cmd.id%uint64(len(table.ring)), uint64(i))
		}
	}
	for id, cmd := range table.more {
		more++
		require.Equal(t, id, cmd.id)
	}
	require.Equal(t, table.n, ring+more)
	return ring, more
}

// The table does what a map does, whatever the order, with ids that count up and
// entries that stay in it for long.
func TestPullTableIsAMap(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var table pullTable
		model := make(map[uint64]*PullCmd)
		var ids []uint64 // of the model
		level := 1 << rnd.IntN(12)
		for range 8000 {
			if rnd.IntN(500) == 0 {
				level = 1 << rnd.IntN(12)
			}
			switch {
			case rnd.IntN(20) == 0: // ids that are not there: future, past or foreign
				id := rnd.Uint64N(2*table.last.Load() + 10)
				if rnd.IntN(4) == 0 {
					id = rnd.Uint64()
				}
				if model[id] == nil {
					require.Nil(t, table.take(id))
				}
			case len(ids) < level && rnd.IntN(3) > 0 || len(ids) == 0:
				cmd := &PullCmd{id: table.newId()}
				require.True(t, table.add(cmd, 0))
				require.Nil(t, model[cmd.id], "the id %d was used before", cmd.id)
				model[cmd.id] = cmd
				ids = append(ids, cmd.id)
			default:
				i := rnd.IntN(len(ids))
				if rnd.IntN(2) == 0 { // one of the newest, so that old ones stay
					i = max(i, len(ids)-1-rnd.IntN(4))
				}
				id := ids[i]
				ids[i] = ids[len(ids)-1]
				ids = ids[:len(ids)-1]
				require.Same(t, model[id], table.take(id))
				require.Nil(t, table.take(id), "taken twice")
				delete(model, id)
			}
			require.Equal(t, len(model), table.len())
		}
		countEntries(t, &table)
		rest := table.close()
		require.Len(t, rest, len(model))
		for _, cmd := range rest {
			require.Same(t, model[cmd.id], cmd)
			delete(model, cmd.id)
		}
		require.Empty(t, model)
	}
}

// An entry whose place in the ring an older one has is kept beside it.
func TestPullTableKeepsWhatCollides(t *testing.T) {
	var table pullTable
	add := func(id uint64) *PullCmd {
		cmd := &PullCmd{id: id}
		require.True(t, table.add(cmd, 0))
		return cmd
	}
	old, second, third := add(1), add(1+minRing), add(1+2*minRing)
	require.Len(t, table.ring, minRing)
	ring, more := countEntries(t, &table)
	require.Equal(t, []int{1, 2}, []int{ring, more})

	require.Nil(t, table.take(1+3*minRing), "the place is taken by another id")
	require.Same(t, second, table.take(second.id))
	require.Nil(t, table.take(second.id))
	require.Same(t, old, table.take(old.id))
	// The place is free again and the third is still found, though not there.
	fourth := add(1 + 4*minRing)
	ring, more = countEntries(t, &table)
	require.Equal(t, []int{1, 1}, []int{ring, more})
	require.Same(t, third, table.take(third.id))
	require.Same(t, fourth, table.take(fourth.id))
	ring, more = countEntries(t, &table)
	require.Equal(t, []int{0, 0}, []int{ring, more})

	// Growth takes what was beside the ring into it, where there is room.
	var all []*PullCmd
	for i := range uint64(minRing / 2) {
		all = append(all, add(1+i*minRing))
	}
	_, more = countEntries(t, &table)
	require.Equal(t, minRing/2-1, more)
	all = append(all, add(2))
	require.Len(t, table.ring, 2*minRing)
	_, more = countEntries(t, &table)
	require.Equal(t, minRing/2-2, more)
	for _, cmd := range all {
		require.Same(t, cmd, table.take(cmd.id))
	}
}

func TestPullTableTakesOnlyWhatIsThere(t *testing.T) {
	var table pullTable
	ids := []uint64{0, 1, minRing, 1 << 32, math.MaxUint64}
	for _, id := range ids { // nothing was ever in it
		require.Nil(t, table.take(id))
	}
	cmd := &PullCmd{id: 5}
	require.True(t, table.add(cmd, 0))
	for _, id := range append(ids, 5+minRing, 5+1<<32) {
		require.Nil(t, table.take(id))
	}
	require.Equal(t, 1, table.len())
	require.Same(t, cmd, table.take(5))
	require.Nil(t, table.take(5))
	require.Zero(t, table.len())
}

// A burst does not cost memory for ever, and an ordinary load does not allocate
// again and again.
func TestPullTableDropsALongRing(t *testing.T) {
	for _, c := range []struct {
		burst int
		kept  int // length of the ring
	}{
		{1, minRing},
		{minRing / 2, minRing},
		{minRing/2 + 1, 2 * minRing},
		{maxIdleRing / 2, maxIdleRing},
		{maxIdleRing/2 + 1, 0},
		{5000, 0},
	} {
		t.Run(strconv.Itoa(c.burst), func(t *testing.T) {
			var table pullTable
			for round := range 2 { // the second finds a table that works
				first := uint64(round*c.burst + 1)
				for range c.burst {
					require.True(t, table.add(&PullCmd{id: table.newId()}, 0))
				}
				require.GreaterOrEqual(t, len(table.ring), 2*c.burst)
				for i := range c.burst {
					require.NotZero(t, table.len())
					require.NotNil(t, table.take(first+uint64(i)))
				}
				require.Len(t, table.ring, c.kept)
				require.Empty(t, table.more)
				require.Zero(t, table.len())
			}
		})
	}
}

func TestPullTableClose(t *testing.T) {
	var table pullTable
	want := map[*PullCmd]bool{}
	for _, id := range []uint64{1, 1 + minRing, 1 + 2*minRing, 2} {
		cmd := &PullCmd{id: id}
		want[cmd] = true
		require.True(t, table.add(cmd, 0))
	}
	got := map[*PullCmd]bool{}
	for _, cmd := range table.close() {
		require.False(t, got[cmd])
		got[cmd] = true
	}
	require.Equal(t, want, got)
	require.Zero(t, table.len())
	require.False(t, table.add(&PullCmd{id: 100}, 0), "closed")
	require.Nil(t, table.take(1), "close has given it away")
	require.Nil(t, table.take(100))
	require.Empty(t, table.close())

	var empty pullTable
	require.Empty(t, empty.close())
	require.False(t, empty.add(&PullCmd{id: 1}, 0))
}

// An id is read exactly if it is what appendPullId writes for a number above 0,
// so no two texts are one pull.
func TestParsePullId(t *testing.T) {
	texts := []string{
		"", "0", "00", "01", "+1", "-1", " 1", "1 ", "1_0", "0x1", "1e3", "1.0", "a", "1a", "a1", "١", "\x00", "1\x00", "/", ":", "1/", "1:",
		"1", "9", "10", "12345678901234567890",
		strconv.FormatUint(math.MaxUint64, 10), "18446744073709551616", "18446744073709551620", "18446744073709551619", "18446744073709551610",
		"99999999999999999999", "27670116110564327424", "36893488147419103232", "184467440737095516150", "184467440737095516160",
		"018446744073709551615", strings.Repeat("9", 21), strings.Repeat("1", 20), strings.Repeat("1", 21), strings.Repeat("0", 20), strings.Repeat("1", 1000),
		"9223372036854775807", "9223372036854775808", "1844674407370955161", "1844674407370955162",
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		n := rnd.Uint64() >> rnd.IntN(64)
		text := []byte(strconv.FormatUint(n, 10))
		texts = append(texts, string(text))
		text[rnd.IntN(len(text))] = byte(rnd.IntN(256))
		texts = append(texts, string(text), fmt.Sprint(n, rnd.IntN(10)))
	}
	for _, text := range texts {
		want, err := strconv.ParseUint(text, 10, 64)
		canonical := err == nil && want > 0 && strconv.FormatUint(want, 10) == text
		got, ok := parsePullId([]byte(text))
		require.Equal(t, canonical, ok, "%q", text)
		if ok {
			require.Equal(t, want, got, "%q", text)
			require.Equal(t, text, string(appendPullId(nil, got)))
		}
	}
}
