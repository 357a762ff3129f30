package main

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/henrylee2cn/teleport/internal/balance"
)

// client is one of many that call the fleet.
type client struct {
	sim       *simulation
	policy    balance.Policy
	endpoints []*balance.Endpoint
	members   []*balance.Member // nil without ejection
	hedging   quantile
	budget    *balance.Budget
}

func newClient(s *simulation, seed uint64, number int) *client {
	random := rand.New(rand.NewPCG(seed, uint64(number)+1000))
	c := &client{sim: s, policy: s.policy(random.Uint64), hedging: quantile{of: 0.95}}
	var ejector *balance.Ejector
	if s.eject {
		ejector = balance.NewEjector(balance.EjectorConfig{})
	}
	if s.hedge {
		c.budget = balance.NewBudget(0.1, 1, 0)
	}
	for i := range s.fleet {
		config := balance.Config{Weight: 100, Hash: balance.Hash(fmt.Sprint("server ", i)), Preferred: true}
		c.endpoints = append(c.endpoints, balance.NewEndpoint(config, 0))
		if ejector != nil {
			c.members = append(c.members, ejector.Join())
		}
	}
	return c
}

// call is one call of a program's, with one attempt or more.
type call struct {
	from     *client
	key      uint64
	began    time.Duration
	counts   bool
	over     bool
	attempts []*attempt
}

// attempt is a call as it goes to a server.
type attempt struct {
	of        *call
	to        int
	began     time.Duration
	queued    time.Duration // when the server got it
	work      time.Duration // what it took the server
	cancelled bool
}

// call begins a call.
func (c *client) call(key uint64) {
	s := c.sim
	x := &call{from: c, key: key, began: s.now, counts: s.now >= s.warmUp}
	if x.counts {
		s.calls++
	}
	x.try()
	s.after(s.timeout, func() {
		if !x.over {
			x.end(nil, balance.Unanswered)
		}
	})
	if c.budget == nil {
		return
	}
	c.budget.Call()
	if after := c.hedging.value; after > 0 {
		s.after(after, func() {
			if !x.over && c.budget.Take(s.now) && x.try() && x.counts {
				s.again++
			}
		})
	}
}

// try sends the call to a server that does not have it yet, and reports whether there is one.
func (x *call) try() bool {
	c, s := x.from, x.from.sim
	i := c.policy.Pick(s.now, c.endpoints, balance.Call{Key: x.key}, func(i int) bool {
		for _, a := range x.attempts {
			if a.to == i {
				return true
			}
		}
		return c.members != nil && c.members[i].Skip(s.now, c.endpoints[i].Outstanding())
	})
	if i < 0 {
		return false
	}
	c.endpoints[i].Begin(s.now)
	a := &attempt{of: x, to: i, began: s.now}
	x.attempts = append(x.attempts, a)
	if x.counts {
		s.tries++
		if s.fleet[i].faulty {
			s.toFaulty++
		}
	}
	s.after(s.network, func() { s.fleet[i].take(a) })
	return true
}

// answer receives the server's answer, with what it says of itself.
func (a *attempt) answer(failed bool, waited time.Duration, load int) {
	x, s := a.of, a.of.from.sim
	if x.counts {
		s.work += a.work
		if a.cancelled {
			s.useless += a.work
		}
	}
	if a.cancelled {
		return
	}
	outcome := balance.OK
	if failed {
		outcome = balance.Failed
	} else if s.reports {
		x.from.endpoints[a.to].Report(s.now, waited, load)
	}
	x.end(a, outcome)
}

// end completes a call, by the answer to an attempt or, if that is nil, by giving up. What else is under way
// is cancelled.
func (x *call) end(by *attempt, o balance.Outcome) {
	c, s := x.from, x.from.sim
	x.over = true
	for _, a := range x.attempts {
		if a != by {
			a.cancelled = true
			c.endpoints[a.to].End(s.now, s.now-a.began, balance.Unanswered)
			continue
		}
		c.endpoints[a.to].End(s.now, s.now-a.began, o)
		if c.members != nil {
			c.members[a.to].Count(s.now, o == balance.Failed)
		}
	}
	took := s.now - x.began
	if o == balance.OK {
		c.hedging.add(took)
	}
	switch {
	case !x.counts:
		return
	case o == balance.Failed:
		s.failed++
		return
	case o == balance.Unanswered:
		s.late++
	}
	s.took.Record(took)
}

// quantile follows a quantile of durations: up a little when one is above, down a little when one is below,
// in the proportion that keeps it where it belongs.
type quantile struct {
	of    float64
	value time.Duration
}

func (q *quantile) add(d time.Duration) {
	const step = 0.05 // of the value
	switch {
	case q.value == 0:
		q.value = 2 * d
	case d > q.value:
		q.value += time.Duration(step * q.of * float64(q.value))
	default:
		q.value -= time.Duration(step * (1 - q.of) * float64(q.value))
	}
}
