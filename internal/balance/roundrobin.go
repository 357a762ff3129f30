package balance

import (
	"math"
	"sync/atomic"
	"time"
)

// RoundRobin returns a policy that picks one server after another, each as often as its weight says, and
// spread over the cycle: with weights of 5, 1 and 1 not five times the first one and then the others.
//
// Each server has its turn at a virtual time, and the next one is a stride of 1/weight later (Waldspurger and
// Weihl's stride scheduling, 1995). The first turn is half a stride after a server comes, which spreads them.
// One that comes back has missed its turns for good.
func RoundRobin() Policy { return new(roundRobin) }

type roundRobin struct {
	now atomic.Uint64 // the virtual time: the bits of the last turn, a float64
}

// Pick implements Policy.
func (p *roundRobin) Pick(_ time.Duration, from []*Endpoint, _ Call, skip func(i int) bool) int {
	preferred := preferredOnly(from, skip)
	for {
		now := math.Float64frombits(p.now.Load())
		best, bestTurn := -1, 0.0
		for i, e := range from {
			if preferred && !e.config.Preferred || skip != nil && skip(i) {
				continue
			}
			turn := e.turnFrom(now)
			if best < 0 || turn < bestTurn {
				best, bestTurn = i, turn
			}
		}
		if best < 0 {
			return -1
		}
		next := math.Float64bits(bestTurn + from[best].stride())
		if from[best].turn.CompareAndSwap(math.Float64bits(bestTurn), next) {
			p.pass(bestTurn)
			return best
		}
	}
}

// turnFrom returns when the server has its turn. One that is new, or has missed its turn, gets one.
func (e *Endpoint) turnFrom(now float64) float64 {
	for {
		old := e.turn.Load()
		if turn := math.Float64frombits(old); old != 0 && turn >= now {
			return turn
		}
		turn := now + e.stride()/2
		if e.turn.CompareAndSwap(old, math.Float64bits(turn)) {
			return turn
		}
	}
}

// pass moves the virtual time on, never back.
func (p *roundRobin) pass(turn float64) {
	for {
		old := p.now.Load()
		if math.Float64frombits(old) >= turn || p.now.CompareAndSwap(old, math.Float64bits(turn)) {
			return
		}
	}
}

func (e *Endpoint) stride() float64 { return 1 / e.weight }
