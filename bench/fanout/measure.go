package main

import (
	"context"
	"fmt"
	"io"
	"time"
)

// options says what is measured.
type options struct {
	systems []system
	members []int
	rounds  int
	// deliveries is how many there are at least in each round of a system.
	deliveries int
	withTP     bool
	patience   time.Duration
	progress   io.Writer
}

// round is what one system was like once.
type round struct {
	CPU       float64 `json:"cpu_us"` // of the server, a delivery
	Rate      float64 `json:"deliveries_per_second"`
	Allocs    float64 `json:"allocs"` // of the server, a message
	P50       float64 `json:"p50_ms"` // from when a message was sent until a member had it
	P99       float64 `json:"p99_ms"`
	Slowest   float64 `json:"slowest_ms"`
	Failed    int     `json:"failed,omitempty"` // deliveries that the server could not make
	Delivered int64   `json:"delivered"`
}

// outcome is what one system was like in all rounds.
type outcome struct {
	system
	Rounds []round `json:"rounds"`
	// PerMember is the server's memory for each member, in KiB.
	PerMember float64 `json:"kib_per_member,omitempty"`
	Err       string  `json:"err,omitempty"` // why there are not all rounds
}

// result is what all systems were like with so many members.
type result struct {
	Members int       `json:"members"`
	Systems []outcome `json:"systems"`
}

// firstBursts is how often a room's first system sends when its members are there: so often that a session of
// this framework has asked for credit, and has it.
const firstBursts = 16

// measure measures all systems with so many members. All rooms are there all the time, and the systems take
// turns, each round beginning with another one. It ends early, with an error, only when ctx ends.
func (o options) measure(ctx context.Context, members int) (result, error) {
	res := result{Members: members}
	pairs := make(map[string]*pair)
	defer func() {
		for _, p := range pairs {
			if p != nil {
				p.end()
			}
		}
	}()
	broken := make(map[string]error) // by room: why it cannot go on
	for _, s := range o.systems {
		res.Systems = append(res.Systems, outcome{system: s})
		if pairs[s.Room] != nil || broken[s.Room] != nil {
			continue
		}
		fmt.Fprintf(o.progress, "%d members of %s\n", members, s.Room)
		p, err := startPair(ctx, role{Room: s.Room, Members: members, WithTP: o.withTP, Patience: o.patience})
		if err == nil {
			pairs[s.Room] = p
			if _, err = p.send(s, firstBursts); err == nil {
				err = p.settle()
			}
		}
		if err != nil {
			broken[s.Room] = err
		}
	}
	for n := range o.rounds + 1 { // the first is a warm-up
		for turn := range res.Systems {
			out := &res.Systems[(n+turn)%len(res.Systems)]
			if err := ctx.Err(); err != nil {
				return res, err
			}
			if err := broken[out.Room]; err != nil {
				out.Err = err.Error()
				continue
			}
			times := max(1, (o.deliveries-1)/(members*out.Burst)+1)
			if n == 0 {
				times = 1
			}
			r, err := pairs[out.Room].send(out.system, times)
			if err != nil {
				err = fmt.Errorf("%s: %w", out.Name, err)
				broken[out.Room], out.Err = err, err.Error()
				fmt.Fprintf(o.progress, "round %d, %s: %v\n", n, out.Name, err)
				continue
			}
			if n > 0 {
				out.Rounds = append(out.Rounds, r)
				out.PerMember = pairs[out.Room].perMember()
			}
		}
		fmt.Fprintf(o.progress, "%d members: %d of %d rounds\n", members, n, o.rounds)
	}
	return res, ctx.Err()
}
