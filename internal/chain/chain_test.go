package chain_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/chain"
)

// element is in two lists at a time.
type element struct {
	n        int
	one, two chain.Link[*element]
}

func numbers(l *chain.List[*element]) (all []int) {
	for x := l.First(); x != nil; x = x.Next() {
		all = append(all, x.Of.n)
	}
	return all
}

// Whatever is put in and taken out, both lists have what slices have.
func TestLists(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var one, two chain.List[*element]
	var want []int
	elements := map[int]*element{}
	for n := range 1000 {
		if len(want) > 0 && r.IntN(2) == 0 {
			i := r.IntN(len(want))
			e := elements[want[i]]
			one.Remove(&e.one)
			two.Remove(&e.two)
			want = slices.Delete(want, i, i+1)
			if r.IntN(2) == 0 {
				one.PushBack(&e.one)
				two.PushBack(&e.two)
				want = append(want, e.n)
			}
		} else {
			e := &element{n: n}
			e.one.Of, e.two.Of = e, e
			elements[n] = e
			one.PushBack(&e.one)
			two.PushBack(&e.two)
			want = append(want, n)
		}
		if len(want) == 0 {
			require.Nil(t, one.First())
			continue
		}
		require.Equal(t, want, numbers(&one))
		require.Equal(t, want, numbers(&two))
	}
}
