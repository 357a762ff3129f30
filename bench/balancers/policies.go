package main

import (
	"time"

	"github.com/henrylee2cn/teleport/internal/balance"
)

// random picks any server.
type random struct{ number func() uint64 }

func newRandom(number func() uint64) balance.Policy { return random{number} }

func (p random) Pick(_ time.Duration, from []*balance.Endpoint, _ balance.Call, skip func(int) bool) int {
	return pickLeast(from, p.number, skip, func(*balance.Endpoint) int { return 0 })
}

// leastLoaded picks the server with the fewest calls of this client under way, and any of these if there are
// several.
type leastLoaded struct{ number func() uint64 }

func newLeastLoaded(number func() uint64) balance.Policy { return leastLoaded{number} }

func (p leastLoaded) Pick(_ time.Duration, from []*balance.Endpoint, _ balance.Call,
	skip func(int) bool) int {
	return pickLeast(from, p.number, skip, (*balance.Endpoint).Outstanding)
}

func pickLeast(from []*balance.Endpoint, number func() uint64, skip func(int) bool,
	load func(*balance.Endpoint) int) int {
	best, least, ties := -1, 0, uint64(0)
	for i, e := range from {
		if skip != nil && skip(i) {
			continue
		}
		switch n := load(e); {
		case best < 0 || n < least:
			best, least, ties = i, n, 1
		case n == least:
			if ties++; number()%ties == 0 {
				best = i
			}
		}
	}
	return best
}

func roundRobin(func() uint64) balance.Policy { return balance.RoundRobin() }

func consistentHash(func() uint64) balance.Policy { return balance.ConsistentHash(1.25) }

// setups are the ways to balance that are compared. The first one is the default.
var setups = []setup{
	{name: "power of two choices", policy: balance.PowerOfTwoBy, reports: true, eject: true},
	{name: "- without servers' reports", policy: balance.PowerOfTwoBy, eject: true},
	{name: "- without ejection", policy: balance.PowerOfTwoBy, reports: true},
	{name: "- with hedging", policy: balance.PowerOfTwoBy, reports: true, eject: true, hedge: true},
	{name: "least loaded", policy: newLeastLoaded, eject: true},
	{name: "- without ejection", policy: newLeastLoaded},
	{name: "consistent hash, bound 1.25", policy: consistentHash, eject: true},
	{name: "round robin", policy: roundRobin, eject: true},
	{name: "random", policy: newRandom, eject: true},
}
