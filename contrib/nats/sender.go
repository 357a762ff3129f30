package nats

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"

	tp "github.com/henrylee2cn/teleport"
)

// A connection of nats.go has one lock, which is held while a broker that is slow takes what is written,
// and no call of it heeds a context. So one goroutine of the hub's publishes, and all others only queue.

const (
	// outWaits is how many messages may wait to be published, and outTime for how long one waits for a place
	// among them.
	outWaits = 8 << 10
	outTime  = time.Second
)

var errSlow = errors.New("the broker takes nothing")

// outgoing is a message to be published. That with a passed channel and nothing else is a mark in the queue.
type outgoing struct {
	subject, reply string
	b              []byte
	w              *waiter       // of a call; nil for other messages
	passed         chan struct{} // closed when all before it is with the connection
}

// publish queues a message. The error says that it is too large, or that the broker is away or takes nothing;
// nil says that it will be published unless the broker is lost before.
func (h *Hub) publish(subject, reply string, b []byte) tp.Xerror {
	return h.queue(h.ctx, outgoing{subject: subject, reply: reply, b: b})
}

// queue is publish with a context: when that has ended the message is not queued any more.
func (h *Hub) queue(ctx context.Context, o outgoing) tp.Xerror {
	switch most := h.most.Load(); {
	case h.isClosed():
		return closed()
	case !h.up.Load():
		return away(nil)
	case int64(len(o.b)) > most:
		return tooLarge(len(o.b), int(most))
	}
	select {
	case h.out <- o:
		return nil
	default:
	}
	timer := time.NewTimer(outTime)
	defer timer.Stop()
	select {
	case h.out <- o:
		return nil
	case <-h.ctx.Done():
		return closed()
	case <-ctx.Done():
		return ended(ctx, true)
	case <-timer.C:
		return away(errSlow)
	}
}

// sends publishes what is queued until the hub ends.
func (h *Hub) sends() {
	for {
		select {
		case o := <-h.out:
			h.send(o)
		case <-h.ctx.Done():
			return
		}
	}
}

func (h *Hub) send(o outgoing) {
	if o.passed != nil {
		close(o.passed)
		return
	}
	if o.w != nil && !o.w.take() { // its caller has given up
		return
	}
	var err error
	if o.reply == "" {
		err = h.nc.Publish(o.subject, o.b)
	} else {
		err = h.nc.PublishRequest(o.subject, o.reply, o.b)
	}
	if err == nil || o.w == nil {
		return
	}
	if errors.Is(err, nats.ErrMaxPayload) {
		o.w.fail(tooLarge(len(o.b), int(h.nc.MaxPayload())))
		return
	}
	o.w.fail(away(err))
}

// flush waits until the broker has what was queued and subscribed, for flushTime at most each.
func (h *Hub) flush() {
	if !h.Connected() {
		return
	}
	passed := make(chan struct{})
	if h.queue(h.ctx, outgoing{passed: passed}) != nil {
		return
	}
	select {
	case <-passed:
		_ = h.nc.FlushTimeout(flushTime)
	case <-time.After(flushTime):
	case <-h.ctx.Done():
	}
}
