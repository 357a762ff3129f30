package main

import (
	"context"
	"fmt"
)

// stalledMessages is how many messages there are in each measurement with a member that does not read. It is
// less than a hundred, so that one message that comes late to all shows in the 99th percentile.
const stalledMessages = 50

// besides is what the other members have of one system when a member does not read.
type besides struct {
	system
	Without []round `json:"without"` // all members read
	With    []round `json:"with"`
	Err     string  `json:"err,omitempty"`
}

// stalled is what all systems were like with so many members.
type stalled struct {
	Members int       `json:"members"`
	Systems []besides `json:"systems"`
}

// measureStalled measures how long messages take to the other members when one does not read, and when all
// do, in turns. Each measurement has processes of its own, because the member may be cut off. It ends early,
// with an error, only when ctx ends.
func (o options) measureStalled(ctx context.Context, members int) (stalled, error) {
	res := stalled{Members: members}
	for _, s := range o.systems {
		if s.Burst == 1 {
			res.Systems = append(res.Systems, besides{system: s})
		}
	}
	for n := range o.rounds {
		for turn := range res.Systems {
			b := &res.Systems[(n+turn)%len(res.Systems)]
			for _, with := range []bool{n%2 == 0, n%2 != 0} {
				if err := ctx.Err(); err != nil {
					return res, err
				}
				if b.Err != "" {
					continue
				}
				r, err := o.beside(ctx, b.system, members, with)
				switch {
				case err != nil:
					b.Err = err.Error()
					fmt.Fprintf(o.progress, "round %d, %s: %v\n", n+1, b.Name, err)
				case with:
					b.With = append(b.With, r)
				default:
					b.Without = append(b.Without, r)
				}
			}
		}
		fmt.Fprintf(o.progress, "%d members, one of whom does not read: %d of %d rounds\n", members, n+1,
			o.rounds)
	}
	return res, ctx.Err()
}

// beside makes one measurement. Without a member that does not read the server's buffers and timeouts are
// the same.
func (o options) beside(ctx context.Context, s system, members int, with bool) (round, error) {
	p, err := startPair(ctx, role{Room: s.Room, Stalled: true, AllRead: !with, Members: members,
		Patience: o.patience})
	if err != nil {
		return round{}, err
	}
	defer p.end()
	return p.send(s, stalledMessages)
}
