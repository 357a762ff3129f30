package nats

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Beat has a hub say more often that it is there, and find out sooner that others are not.
func Beat(d time.Duration) Option { return option(func(o *options) { o.beat = d }) }

// Ask has a hub wait so long for what it asks of a stream.
func Ask(d time.Duration) Option { return option(func(o *options) { o.ask = d }) }

// SpreadSettings is what is made of another hub's words on the delivery of a push.
var SpreadSettings = spreadSettings

// MaxName is how many bytes a name may have.
const MaxName = maxName

// Known is how many sessions are in the hub's own group.
func (h *Hub) Known() int { return h.all.Len() }

// Hold has the members of a group on this server get nothing until release is called.
func (h *Hub) Hold(group string) (release func()) {
	r := h.room(group)
	r.turn <- struct{}{}
	return r.giveBack
}

// BeforeReads has f called before each message that the hub reads from a stream, of those it has by now.
func (h *Hub) BeforeReads(f func()) {
	h.histories.mu.Lock()
	defer h.histories.mu.Unlock()
	for c, s := range h.histories.streams {
		h.histories.streams[c] = &stream{hookedStream{s.Stream, f}, s.epoch, s.ask}
	}
}

type hookedStream struct {
	jetstream.Stream
	f func()
}

func (s hookedStream) GetMsg(ctx context.Context, seq uint64,
	opts ...jetstream.GetMsgOpt) (*jetstream.RawStreamMsg, error) {
	s.f()
	return s.Stream.GetMsg(ctx, seq, opts...)
}
