package outbox_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/henrylee2cn/teleport/internal/bufpool"
	"github.com/henrylee2cn/teleport/internal/outbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a budget, and the account of shared bytes.
type memory struct {
	left, taken int64
	waits       bool
}

func (m *memory) Force(n int64)    { m.left -= n; m.taken += n }
func (m *memory) Waits(waits bool) { m.waits = waits }

func (m *memory) Take(n int64) bool {
	if n > m.left {
		return false
	}
	m.left -= n
	m.taken += n
	return true
}

func (m *memory) Give(n int64) { m.left += n; m.taken -= n }

func (m *memory) push(text string, p outbox.Policy) outbox.Item {
	return outbox.Item{Shared: bufpool.Share([]byte(text), m), Amount: uint64(len(text)), Policy: p}
}

func newBox(m *memory, most int64) (*outbox.Box, *outbox.Set) {
	x, set := new(outbox.Box), new(outbox.Set)
	set.Init(&memory{})
	x.Init(nil, m, most, set)
	return x, set
}

// drain returns what waits, in order.
func drain(t *testing.T, x *outbox.Box) (all []string) {
	for it, ok := x.First(); ok; it, ok = x.First() {
		got, ok := x.Take(it.Amount)
		require.True(t, ok)
		require.Equal(t, it.B, got.B)
		all = append(all, string(got.B))
		got.Release()
	}
	require.False(t, x.Busy())
	return all
}

func TestPolicies(t *testing.T) {
	latest := func(of any, key string) outbox.Policy { return outbox.Policy{Of: of, Key: key} }
	newest := func(of any, n int) outbox.Policy { return outbox.Policy{Of: of, Most: n} }
	type add struct {
		text   string
		policy outbox.Policy
		want   outbox.Outcome
	}
	queued := outbox.Outcome{Queued: true}
	tests := map[string]struct {
		most, memory int64
		adds         []add
		want         []string
	}{
		"all wait": {-1, 1 << 20, []add{{"a", outbox.Policy{}, queued}, {"b", outbox.Policy{}, queued}},
			[]string{"a", "b"}},
		"too much is cut": {400, 1 << 20, []add{
			{"a", outbox.Policy{}, queued}, {"b", outbox.Policy{}, queued},
			{"c", outbox.Policy{}, outbox.Outcome{Cut: true}}}, []string{"a", "b"}},
		"one waits whatever its size": {10, 1 << 20, []add{{"a long one", outbox.Policy{}, queued}},
			[]string{"a long one"}},
		"no memory": {-1, 200, []add{{"a", outbox.Policy{}, queued},
			{"b", outbox.Policy{}, outbox.Outcome{Cut: true, NoMemory: true}}}, []string{"a"}},
		"must not wait behind others": {-1, 1 << 20, []add{
			{"a", outbox.Policy{Cut: true}, queued},
			{"b", outbox.Policy{Cut: true}, outbox.Outcome{Cut: true}},
			{"c", outbox.Policy{Cut: true, After: time.Hour}, queued}}, []string{"a", "c"}},
		"latest of a key": {-1, 1 << 20, []add{
			{"a1", latest(1, "a"), queued}, {"b1", latest(1, "b"), queued}, {"x", outbox.Policy{}, queued},
			{"a2!", latest(1, "a"), outbox.Outcome{Queued: true, Replaced: 1}},
			{"other", latest(2, "a"), queued}}, []string{"a2!", "b1", "x", "other"}},
		"latest finds no memory": {-1, 2*192 + 4, []add{
			{"a1", latest(1, "a"), queued}, {"b1", latest(1, "b"), queued},
			{"a2 is long", latest(1, "a"), outbox.Outcome{Cut: true, NoMemory: true}}}, []string{"a1", "b1"}},
		"drop oldest": {-1, 1 << 20, []add{
			{"w", outbox.Policy{}, queued}, {"1", newest(1, 2), queued}, {"2", newest(1, 2), queued},
			{"other", newest(2, 2), queued},
			{"3", newest(1, 2), outbox.Outcome{Queued: true, Dropped: 1}},
			{"4", newest(1, 1), outbox.Outcome{Queued: true, Dropped: 2}}}, []string{"w", "other", "4"}},
		"what may be dropped makes room": {600, 1 << 20, []add{
			{"1", newest(1, 9), queued}, {"w", outbox.Policy{}, queued}, {"2", newest(2, 9), queued},
			{"v", outbox.Policy{}, outbox.Outcome{Queued: true, Dropped: 1}},
			{"u", outbox.Policy{}, outbox.Outcome{Queued: true, Dropped: 1}},
			{"3", newest(1, 9), outbox.Outcome{Dropped: 1}}}, []string{"w", "v", "u"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m := &memory{left: test.memory}
			x, set := newBox(m, test.most)
			began := 0
			for _, a := range test.adds {
				got, begin := x.Add(m.push(a.text, a.policy))
				require.Equal(t, a.want, got, a.text)
				if begin {
					began++
				}
			}
			require.Equal(t, len(test.want) > 0, began == 1, "one goroutine sends")
			require.Equal(t, len(test.want) > 0, len(set.Stalled(0)) == 1)
			require.Equal(t, test.want, drain(t, x))
			require.Zero(t, m.taken)
			require.Empty(t, set.Stalled(0))
		})
	}
}

// While the sender waits for credit another push may come in the place of the one that it has seen.
func TestReplacedWhileTheSenderWaits(t *testing.T) {
	m := &memory{left: 1 << 20}
	x, _ := newBox(m, -1)
	x.Add(m.push("old", outbox.Policy{Key: "k"}))
	it, ok := x.First()
	require.True(t, ok)
	x.Add(m.push("newer", outbox.Policy{Key: "k"}))
	_, ok = x.Take(it.Amount)
	require.False(t, ok)
	require.Equal(t, []string{"newer"}, drain(t, x))
}

// At the end all is dropped and nothing waits any more.
func TestEnd(t *testing.T) {
	m := &memory{left: 1 << 20}
	x, _ := newBox(m, -1)
	for i := range 10 {
		x.Add(m.push(fmt.Sprint(i), outbox.Policy{Key: fmt.Sprint(i % 5), Most: i % 3}))
	}
	n, bytes := x.Waiting()
	require.Equal(t, m.taken, bytes)
	require.False(t, x.Busy() && !x.Waits())
	dropped, freed, first := x.End()
	require.Equal(t, n, dropped)
	require.Equal(t, bytes, freed)
	require.True(t, first)
	_, _, first = x.End()
	require.False(t, first)
	require.True(t, x.Busy(), "nothing passes by what was dropped")
	require.False(t, x.Waits())
	require.Zero(t, m.taken)
	o, begin := x.Add(m.push("late", outbox.Policy{}))
	require.Equal(t, outbox.Outcome{Dropped: 1}, o)
	require.False(t, begin)
	_, ok := x.First()
	require.False(t, ok)
}

// Whatever comes, what waits is in order, every push is accounted for, and so is memory.
func TestAnyPushes(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 1))
		m := &memory{left: 20_000}
		x, _ := newBox(m, 10_000)
		added, gone, sent := 0, 0, 0
		last := map[string]int{} // the number of the last push by kind
		for i := range 2000 {
			if r.IntN(3) == 0 {
				if it, ok := x.First(); ok {
					got, ok := x.Take(it.Amount)
					require.True(t, ok)
					got.Release()
					sent++
					var n int
					var kind string
					_, err := fmt.Sscanf(string(got.B), "%d %s", &n, &kind)
					require.NoError(t, err)
					if kind[0] != 'k' { // a replaced one has the place of the older
						require.Greater(t, n, last[kind])
						last[kind] = n
					}
				}
				continue
			}
			p, kind := outbox.Policy{}, "wait"
			switch r.IntN(3) {
			case 0:
				p = outbox.Policy{Of: 1, Key: fmt.Sprint(r.IntN(5)), Most: r.IntN(2) * 9}
				kind = "k" + p.Key
			case 1:
				p = outbox.Policy{Of: r.IntN(2), Most: 1 + r.IntN(20)}
				kind = fmt.Sprint("drop", p.Of)
			}
			o, _ := x.Add(m.push(fmt.Sprintf("%d %s", i+1, kind), p))
			added++
			gone += o.Dropped + o.Replaced
			if o.Cut {
				gone++
			}
			waiting, bytes := x.Waiting()
			require.Equal(t, added, gone+sent+waiting)
			require.Equal(t, m.taken, bytes)
			require.LessOrEqual(t, bytes, int64(10_000))
		}
		drain(t, x)
		require.Zero(t, m.taken)
	}
}
