package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/henrylee2cn/teleport/bench/child"
	"github.com/henrylee2cn/teleport/bench/stats"
)

// pair is a room and its members, two processes.
type pair struct {
	role            role
	server, members *child.Process

	// bare is the server's memory before the first member, in bytes, and full with all of them.
	bare, full int64
}

// startPair starts the processes, with all members connected. They are killed when ctx ends.
func startPair(ctx context.Context, r role) (p *pair, err error) {
	p = &pair{role: r}
	defer func() {
		if err != nil {
			p.end()
		}
	}()
	var hello answer
	server := role{Room: r.Room, Stalled: r.Stalled, Patience: r.Patience}
	if p.server, err = start(ctx, server, &hello); err != nil {
		return p, fmt.Errorf("server: %w", err)
	}
	bare, err := p.ask(command{Do: doSettle})
	if err != nil {
		return p, err
	}
	r.Addr, r.Link = hello.Addr, hello.Link
	if p.members, err = start(ctx, r, &hello); err != nil {
		return p, fmt.Errorf("members: %w", err)
	}
	if _, err = p.ask(command{Do: doReady, Members: r.Members}); err != nil {
		return p, err
	}
	p.bare = bare.RSS
	return p, nil
}

// start starts this program again in the role and decodes its first answer.
func start(ctx context.Context, r role, hello *answer) (*child.Process, error) {
	c, err := child.StartAs(ctx, childArg, r)
	if err != nil {
		return nil, err
	}
	// Every member takes a few round trips to connect, and there are many.
	if err := c.Wait(r.Patience+time.Minute, hello); err != nil {
		c.End()
		return nil, err
	}
	return c, nil
}

// readers is how many members read.
func (p *pair) readers() int {
	if p.role.Stalled && !p.role.AllRead {
		return p.role.Members - 1
	}
	return p.role.Members
}

// ask asks the server.
func (p *pair) ask(c command) (a answer, err error) {
	if err := put(p.server, c); err != nil {
		return a, fmt.Errorf("server: %w", err)
	}
	if err := p.server.Wait(time.Duration(c.Times+2)*p.role.Patience+time.Minute, &a); err != nil {
		return a, fmt.Errorf("server: %w", err)
	}
	return a, nil
}

// mark asks the members what they have counted.
func (p *pair) mark() (a answer, err error) {
	if err := put(p.members, command{Do: doMark}); err != nil {
		return a, fmt.Errorf("members: %w", err)
	}
	if err := p.members.Wait(time.Minute, &a); err != nil {
		return a, fmt.Errorf("members: %w", err)
	}
	return a, nil
}

func put(c *child.Process, what command) error {
	b, err := json.Marshal(what)
	if err != nil {
		return err
	}
	return c.Send(string(b))
}

// send has the system send so many bursts, and returns what that was like. Every reader has every message
// then, once and as it was sent.
func (p *pair) send(s system, times int) (round, error) {
	before, err := p.mark()
	if err != nil {
		return round{}, err
	}
	a, err := p.ask(command{Do: doSend, System: s.Name, Burst: s.Burst, Times: times, Readers: p.readers()})
	if err != nil {
		_, why := p.mark() // the members know better what was wrong
		return round{}, errors.Join(err, why)
	}
	after, err := p.mark()
	if err != nil {
		return round{}, err
	}
	messages := times * s.Burst
	want := int64(messages) * int64(p.readers())
	if n := after.Delivered - before.Delivered; n != want {
		return round{}, fmt.Errorf("%d deliveries were counted, where there were %d", n, want)
	}
	if a.Failed > 0 && p.readers() == p.role.Members {
		return round{}, fmt.Errorf("the server says that %d of %d deliveries have failed", a.Failed, want)
	}
	return figures(a, after.Times.Since(before.Times), messages, want), nil
}

// figures computes what a round was like in which the server has taken what a says.
func figures(a answer, took stats.Counts, messages int, deliveries int64) round {
	return round{
		CPU:       float64(a.CPU) / 1e3 / float64(deliveries),
		Rate:      float64(deliveries) / (float64(a.Took) / 1e9),
		Allocs:    float64(a.Mallocs) / float64(messages),
		P50:       milliseconds(took, 0.5),
		P99:       milliseconds(took, 0.99),
		Slowest:   milliseconds(took, 1),
		Failed:    a.Failed,
		Delivered: deliveries,
	}
}

func milliseconds(c stats.Counts, quantile float64) float64 { return c.Quantile(quantile) / 1e6 }

// settle takes the server's memory with all members.
func (p *pair) settle() error {
	a, err := p.ask(command{Do: doSettle})
	p.full = a.RSS
	return err
}

// perMember is how much memory the server has for each member, in KiB; 0 if that is not known.
func (p *pair) perMember() float64 {
	if p.bare == 0 || p.full == 0 {
		return 0
	}
	return float64(p.full-p.bare) / 1024 / float64(p.role.Members)
}

// end ends both processes.
func (p *pair) end() {
	for _, c := range []*child.Process{p.members, p.server} {
		if c != nil {
			c.End()
		}
	}
}
