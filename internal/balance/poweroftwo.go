package balance

import (
	"math/rand/v2"
	"sync/atomic"
	"time"
)

const (
	// drawsAtMost is how often a server is drawn at random before all are looked at.
	drawsAtMost = 16
	// alike is the part of a score by which another one must be lower to count as lower: scores are not that
	// exact, and of two that are alike the weights and chance should decide, not who was picked last.
	alike = 1. / 8
	// spillOver is how much better than the preferred servers another one must be to be picked.
	spillOver = 4
	// tryOthers is how many calls there are to one that may go to a server of which nothing is known, while
	// preferred ones are busy.
	tryOthers = 64
)

// PowerOfTwo returns a policy that draws two servers at random, by their weights, and picks the one with the
// lower [Endpoint.Score]. If that is lower by less than an eighth, the first one is picked. A call that is
// Untimed goes by the numbers of this client's calls alone if the latency of one of the two is not known: it
// could not find that out. What the servers have reported does not count then, as one that has reported
// nothing would look idle.
//
// The best of two random choices is nearly as good as the best of all (Azar, Broder, Karlin, Upfal 1994;
// Mitzenmacher 2001), and clients that know nothing of each other do not all run to the same server. That the
// score is load times peak latency is from Finagle.
//
// Servers that are not preferred are picked if all others are forbidden, and when the preferred ones do four
// times worse.
func PowerOfTwo() Policy { return PowerOfTwoBy(rand.Uint64) }

// PowerOfTwoBy returns the policy of PowerOfTwo with a source of random numbers, which is called by all
// goroutines that pick.
func PowerOfTwoBy(random func() uint64) Policy { return &powerOfTwo{random: random} }

type powerOfTwo struct {
	random func() uint64
	seen   atomic.Pointer[listSeen] // of the last list
}

// listSeen is what drawing needs to know of a list. It is never changed, so that what is known of one list is
// not taken for another's while several goroutines look at two of them.
type listSeen struct {
	list     **Endpoint // where the slice begins
	heaviest int
	zones    uint32
}

const (
	somePreferred = 1 << iota
	someOthers
)

// look finds out about a new list what drawing needs to know.
func (p *powerOfTwo) look(from []*Endpoint) (heaviest int, zones uint32) {
	if seen := p.seen.Load(); seen != nil && seen.list == &from[0] {
		return seen.heaviest, seen.zones
	}
	for _, e := range from {
		heaviest = max(heaviest, e.config.Weight)
		if e.config.Preferred {
			zones |= somePreferred
		} else {
			zones |= someOthers
		}
	}
	p.seen.Store(&listSeen{&from[0], heaviest, zones})
	return heaviest, zones
}

// Pick implements Policy.
func (p *powerOfTwo) Pick(now time.Duration, from []*Endpoint, call Call, skip func(i int) bool) int {
	if len(from) == 0 {
		return -1
	}
	heaviest, zones := p.look(from)
	d := draw{p.random, from, skip, call.Untimed, heaviest, zones&somePreferred != 0}
	best := d.better(now)
	if zones != somePreferred|someOthers {
		return best.i
	}
	d.preferred = false
	if best.i < 0 {
		return d.better(now).i
	}
	if i := d.one(-1); i >= 0 && d.spills(best, d.scored(now, i)) {
		return i
	}
	return best.i
}

// draw takes servers at random.
type draw struct {
	random    func() uint64
	from      []*Endpoint
	skip      func(int) bool
	untimed   bool
	heaviest  int
	preferred bool // which servers are drawn
}

// drawn is a server that was drawn, by its index, and its score.
type drawn struct {
	i     int
	score float64
	known bool // the latency is
}

func (d *draw) scored(now time.Duration, i int) drawn {
	score, known := d.from[i].score(now)
	return drawn{i, score, known}
}

// better draws two and returns the one with the lower score, or the first if they are alike. Its index is -1
// if there is none.
func (d *draw) better(now time.Duration) drawn {
	i := d.one(-1)
	if i < 0 {
		return drawn{i: -1}
	}
	a := d.scored(now, i)
	if i = d.one(i); i < 0 {
		return a
	}
	b := d.scored(now, i)
	x, y := a.score, b.score
	if d.untimed && !(a.known && b.known) {
		x, y = d.from[a.i].own(), d.from[b.i].own()
	}
	if y < x*(1-alike) {
		return b
	}
	return a
}

// spills reports whether the call goes to a server that is not preferred, instead of the best one that is.
func (d *draw) spills(best, other drawn) bool {
	if d.untimed {
		return best.known && other.known && other.score*spillOver < best.score
	}
	if other.known {
		return other.score*spillOver < best.score
	}
	return other.score == 0 && d.from[best.i].Outstanding() > 0 && d.random()%tryOthers == 0
}

// one draws a server other than not.
func (d *draw) one(not int) int {
	for range drawsAtMost {
		r := d.random()
		i := int(uint64(uint32(r)) * uint64(len(d.from)) >> 32)
		// The upper half of the random number decides whether the weight lets it pass.
		if int(uint64(uint32(r>>32))*uint64(d.heaviest)>>32) < d.from[i].config.Weight && d.may(i, not) {
			return i
		}
	}
	// Most are forbidden or light: each is looked at, and takes the place of the one before by its weight.
	found, sum := -1, uint64(0)
	for i, e := range d.from {
		if !d.may(i, not) {
			continue
		}
		w := uint64(e.config.Weight)
		sum += w
		if d.random()%sum < w {
			found = i
		}
	}
	return found
}

func (d *draw) may(i, not int) bool {
	return i != not && d.from[i].config.Preferred == d.preferred && (d.skip == nil || !d.skip(i))
}
