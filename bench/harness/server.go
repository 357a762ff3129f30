package harness

import (
	"errors"
	"fmt"

	"github.com/henrylee2cn/teleport/bench/payload"
	"github.com/henrylee2cn/teleport/bench/systems"
)

// serverChild is the server's side of a measurement.
type serverChild struct {
	work   *payload.Work
	server systems.Server
}

func startServer(r role) (*serverChild, error) {
	sys, ok := systems.Find(r.System)
	if !ok {
		return nil, fmt.Errorf("no system is called %q", r.System)
	}
	work := payload.NewWork(r.Spins)
	s, err := sys.Serve(work)
	if err != nil {
		return nil, err
	}
	return &serverChild{work: work, server: s}, nil
}

func (c *serverChild) snapshot() snapshot {
	s := take()
	s.Done = c.work.Notes()
	return s
}

var errClientOnly = errors.New("that command is for clients")

func (c *serverChild) fill() error { return errClientOnly }
func (c *serverChild) stop() error { return errClientOnly }
