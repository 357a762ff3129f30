package keepalive

import (
	"sync"
	"time"
)

// Pings are those of one connection that measure how long an answer takes. One is on its way at a time, for
// all that wait. All methods are safe for concurrent use; the zero value is ready.
type Pings struct {
	mu      sync.Mutex // guards the fields below
	sent    time.Time
	waiting []func(time.Duration)
}

// Add has f called with the time that the answer took. It reports whether a ping is to be sent now, because
// none is on its way.
func (p *Pings) Add(f func(time.Duration)) (send bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	send = len(p.waiting) == 0
	if send {
		p.sent = time.Now()
	}
	p.waiting = append(p.waiting, f)
	return send
}

// Answered is called when the answer has come.
func (p *Pings) Answered() {
	waiting, took := p.take()
	for _, f := range waiting {
		f(took)
	}
}

func (p *Pings) take() ([]func(time.Duration), time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	waiting := p.waiting
	p.waiting = nil
	return waiting, time.Since(p.sent)
}
