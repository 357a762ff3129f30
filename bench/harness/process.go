package harness

import (
	"context"
	"time"

	"github.com/henrylee2cn/teleport/bench/child"
)

// process is a server or a client, seen from the process that runs the plan.
type process struct {
	*child.Process
	hello snapshot
}

// startTimeout bounds how long a child takes until it is ready, with all of its
// connections open.
const startTimeout = time.Minute

// startProcess starts this program again in the role, and returns when the child
// is ready. It is killed when ctx ends.
func startProcess(ctx context.Context, r role) (*process, error) {
	c, err := child.StartAs(ctx, childArg, r)
	if err != nil {
		return nil, err
	}
	p := &process{Process: c}
	if p.hello, err = p.wait(startTimeout); err != nil {
		p.End()
		return nil, err
	}
	return p, nil
}

// wait returns the child's next answer.
func (p *process) wait(timeout time.Duration) (s snapshot, err error) {
	err = p.Wait(timeout, &s)
	return s, err
}

// ask sends a command and returns its answer.
func (p *process) ask(cmd string, timeout time.Duration) (snapshot, error) {
	if err := p.Send(cmd); err != nil {
		return snapshot{}, err
	}
	return p.wait(timeout)
}
