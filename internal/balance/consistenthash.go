package balance

import (
	"fmt"
	"math"
	"time"
)

// ConsistentHash returns a policy that sends calls with the same key to the same server, unless that has too
// much to do: no server has more calls under way than bound times its share of all, rounded up (Mirrokni,
// Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2016). What is over the bound goes to
// the server that is the next for this key. A bound of 1.25 is usual; the nearer to 1, the more calls leave
// the server of their key. ConsistentHash panics if bound is less than 1 or not a number; +Inf is no bound.
//
// Which server a key has is found by rendezvous hashing (Thaler and Ravishankar, 1996), with the weights of
// Schindelhauer and Schomaker (2005), and not on a ring: it needs no table that has to be made anew, takes
// weights as they are, and the calls that a full or lost server cannot take spread over all others, where on
// a ring they all fall to the next one. It looks at every server, which takes a few microseconds for a
// thousand.
//
// If several goroutines pick at once, each may take the last place of a server, so the bound may be exceeded
// by as many as pick between the Pick and the Begin of another.
func ConsistentHash(bound float64) Policy {
	if !(bound >= 1) {
		panic(fmt.Sprintf("balance: the bound of a consistent hash is %v, must be 1 or more", bound))
	}
	return consistentHash{bound}
}

type consistentHash struct{ bound float64 }

// Pick implements Policy.
func (p consistentHash) Pick(_ time.Duration, from []*Endpoint, call Call, skip func(i int) bool) int {
	preferred := preferredOnly(from, skip)
	may := func(i int) bool {
		return (!preferred || from[i].config.Preferred) && (skip == nil || !skip(i))
	}
	calls, weights := 1.0, 0.0
	for i, e := range from {
		if may(i) {
			calls += float64(e.Outstanding())
			weights += e.weight
		}
	}
	key := mix(call.Key)
	best, bestDraw, first, firstDraw := -1, 0.0, -1, 0.0
	for i, e := range from {
		if !may(i) {
			continue
		}
		d := rendezvous(key, e)
		if first < 0 || d < firstDraw {
			first, firstDraw = i, d
		}
		if best >= 0 && d >= bestDraw {
			continue
		}
		if float64(e.Outstanding())+1 <= math.Ceil(p.bound*calls*e.weight/weights) {
			best, bestDraw = i, d
		}
	}
	if best < 0 {
		return first // loads have changed between the two passes
	}
	return best
}

// rendezvous returns the server's draw for a key: exponentially distributed, with the weight as its rate. The
// server with the lowest draw has the key.
func rendezvous(key uint64, e *Endpoint) float64 {
	u := (float64(mix(key^e.config.Hash)>>11) + 0.5) / (1 << 53)
	return -math.Log(u) / e.weight
}
