package etcd

import (
	"math/rand/v2"
	"time"
)

const (
	minPause = 100 * time.Millisecond
	maxPause = time.Second
)

// pause is how long to wait before what has failed is tried again. The zero value begins with the shortest.
type pause struct{ bound time.Duration }

// next returns a random time between half the bound and all of it, and doubles the bound. Without chance all
// servers would come back to an etcd at the same time.
func (p *pause) next() time.Duration {
	if p.bound == 0 {
		p.bound = minPause
	}
	d := jitter(p.bound)
	p.bound = min(2*p.bound, maxPause)
	return d
}

// reset makes the next pause the shortest.
func (p *pause) reset() { p.bound = 0 }

// jitter returns a random time between half of d and d.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }
