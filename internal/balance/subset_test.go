package balance

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func names(of string, n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf(of, i)
	}
	return list
}

// clientsOf returns how many clients the servers have, from the fewest to the most.
func clientsOf(servers, clients []string, size int) []int {
	of := make(map[string]int)
	for _, c := range clients {
		for _, s := range Subset(servers, c, size) {
			of[s]++
		}
	}
	counts := make([]int, len(servers))
	for i, s := range servers {
		counts[i] = of[s]
	}
	slices.Sort(counts)
	return counts
}

// A thousand clients with 20 of a thousand servers each: the servers have 20 clients, more or less.
func TestSubsetsAreEven(t *testing.T) {
	servers := names("10.0.0.%d:9000", 1000)
	counts := clientsOf(servers, names("web-%d", 1000), 20)
	t.Logf("numbered clients: a server has from %d to %d of them", counts[0], counts[999])
	require.GreaterOrEqual(t, counts[0], 17)
	require.LessOrEqual(t, counts[999], 23)

	hashed := names("%d-web", 1000)
	counts = clientsOf(servers, hashed, 20)
	t.Logf("hashed clients: a server has from %d to %d of them", counts[0], counts[999])
	require.GreaterOrEqual(t, counts[0], 4, "the lottery's bound, which fails once in ten thousand")
	require.LessOrEqual(t, counts[999], 42)
}

// A server that comes or goes changes one or two servers of a client's, and most clients have no change at
// all.
func TestSubsetsAreSteady(t *testing.T) {
	servers := names("10.0.0.%d:9000", 1000)
	without := slices.Delete(slices.Clone(servers), 500, 501)
	most, all, touched := 0, 0, 0
	for _, c := range names("web-%d", 1000) {
		before, after := Subset(servers, c, 20), Subset(without, c, 20)
		lost := 0
		for _, s := range before {
			if !slices.Contains(after, s) {
				lost++
			}
		}
		most, all = max(most, lost), all+lost
		if lost > 0 {
			touched++
		}
	}
	t.Logf("of 20,000 connections %d change, of %d clients, of one at most %d", all, touched, most)
	require.LessOrEqual(t, most, 2)
	require.Less(t, all, 1000)
}

func TestSubset(t *testing.T) {
	seeded(t, 200, func(t *testing.T, random *rand.Rand) {
		servers := names("s%d", random.IntN(50))
		size := random.IntN(60) - 5
		self := fmt.Sprint("client-", random.Uint64())
		got := Subset(servers, self, size)
		require.Len(t, got, min(max(size, 0), len(servers)))
		require.Equal(t, got, Subset(servers, self, size))
		for i, s := range got {
			require.Contains(t, servers, s)
			require.True(t, i == 0 || slices.Index(servers, got[i-1]) < slices.Index(servers, s))
		}
		random.Shuffle(len(servers), func(i, k int) { servers[i], servers[k] = servers[k], servers[i] })
		require.ElementsMatch(t, got, Subset(servers, self, size), "the order means nothing")
	})
}

// The names of clients and servers decide who calls whom, so a new version must hash them as this one does.
func TestHashStays(t *testing.T) {
	require.Equal(t, []string{"d", "e"}, Subset([]string{"a", "b", "c", "d", "e"}, "web-7", 2))
	require.Equal(t, uint64(0x6fdc231f30af7b3a), Hash("10.0.0.1:9000"))
}
