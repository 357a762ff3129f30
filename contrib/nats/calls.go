package nats

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/packet"
)

// isNowhere is the number of a reply without a packet that says that the session is not here.
const isNowhere = 1

// calls are the pulls and pushes of other hubs to sessions of this one.
type calls struct {
	most int

	mu  sync.Mutex // guards the map
	all map[callKey]*call
}

// callKey is a hub's id and the number of its call.
type callKey struct {
	hub    string
	number uint64
}

type call struct {
	began   time.Time
	replyTo string
	cancel  context.CancelFunc
}

func (c *calls) init(most int) { c.most, c.all = most, make(map[callKey]*call) }

// add reports false if there are too many.
func (c *calls) add(k callKey, one *call) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.all) >= c.most {
		return false
	}
	c.all[k] = one
	return true
}

func (c *calls) remove(k callKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.all, k)
}

func (c *calls) get(k callKey) *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all[k]
}

// dispatch takes what comes to the sessions of this hub, until the hub ends. It waits for nothing else: what
// may take long is done by a goroutine for each call.
func (h *Hub) dispatch() {
	for {
		select {
		case m := <-h.requests:
			if m == nil { // Close waits for it
				close(h.drained)
				continue
			}
			h.request(m)
		case <-h.ctx.Done():
			return
		}
	}
}

func (h *Hub) request(m *nats.Msg) {
	msg, err := parse(m.Data)
	if err != nil {
		h.foreign(m, err)
		return
	}
	switch msg.kind {
	case kindPull, kindPush:
		h.serve(m, &msg)
	case kindCancel:
		if c := h.calls.get(callKey{msg.from, msg.number}); c != nil {
			c.cancel()
		}
	}
}

// serve begins a call.
func (h *Hub) serve(m *nats.Msg, msg *message) {
	if len(msg.more) != 1 || m.Reply == "" {
		h.foreign(m, errForeign)
		return
	}
	key := nameKey{msg.more[0], msg.name}
	sess := h.here(key)
	if sess == nil || h.leaves.Load() {
		_ = h.publish(m.Reply, "", (&message{kind: kindReply, number: isNowhere, from: h.id}).append(nil))
		return
	}
	if open, ok := h.peer.GetSession(sess.Id()); !ok || open != sess {
		h.refuse(m.Reply, tp.StatusServiceUnavailable, "the session's handshake is not over, or it ends")
		return
	}
	p, err := msg.packet()
	if err != nil {
		h.refuse(m.Reply, tp.StatusBadRequest, err.Error())
		return
	}
	ctx, cancel := h.ctx, context.CancelFunc(nil)
	if ms := p.Header.Timeout; ms > 0 {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(min(ms, maxTimeout))*time.Millisecond)
	} else {
		ctx, cancel = context.WithCancel(ctx)
	}
	k := callKey{msg.from, msg.number}
	if !h.calls.add(k, &call{time.Now(), m.Reply, cancel}) {
		cancel()
		h.refuse(m.Reply, tp.StatusOverloaded,
			fmt.Sprintf("%d calls of other servers are under way on this one", h.calls.most))
		return
	}
	what := msg.kind
	h.tasks.Go(func() { // dispatch is one of them, so that Close waits
		defer h.calls.remove(k)
		defer cancel()
		h.run(ctx, sess, what, p, m.Reply)
	})
}

// maxTimeout is a year in milliseconds: what is longer is no bound.
const maxTimeout = 365 * 24 * 3600 * 1000

// run makes the call to the session, and replies.
func (h *Hub) run(ctx context.Context, sess *tp.Session, what kind, p *packet.Packet, replyTo string) {
	set, body := settings(p), p.Body.(packet.RawBody)
	if what == kindPush {
		h.reply(replyTo, nil, sess.PushContext(ctx, p.Header.Uri, body, set...), nil)
		return
	}
	var reply packet.RawBody
	cmd := sess.PullContext(ctx, p.Header.Uri, body, &reply, set...)
	h.reply(replyTo, cmd, cmd.Xerror, reply)
}

// settings make the packet to a session what the one received is.
func settings(p *packet.Packet) []tp.PacketSetting {
	set := make([]tp.PacketSetting, 0, 3+len(p.Header.Meta))
	set = append(set, tp.WithHeaderCodec(p.HeaderCodec), tp.WithGzip(p.Header.Gzip))
	for k, v := range p.Header.Meta {
		set = append(set, tp.WithMeta(k, v))
	}
	return set
}

// reply answers a call with its result; cmd is nil for a push.
func (h *Hub) reply(to string, cmd *tp.PullCmd, x tp.Xerror, body packet.RawBody) {
	hdr := &packet.Header{Type: packet.TypeReply, StatusCode: tp.StatusOK}
	p := &packet.Packet{HeaderCodec: codec.NameProtobuf, Header: hdr, Body: body}
	if cmd != nil {
		hdr.Meta, hdr.Gzip = cmd.Meta(), cmd.Input().Header.Gzip
	}
	if x != nil {
		hdr.StatusCode, hdr.Status, hdr.NotRun = x.Code(), x.Text(), tp.NotRun(x)
		var details packet.RawBody
		_, _ = tp.Details(x, &details) // none, if this side cannot take them
		p.Body = details
	}
	h.answer(to, p)
}

// refuse answers a call that has not run.
func (h *Hub) refuse(to string, code int32, text string) {
	h.answer(to, &packet.Packet{HeaderCodec: codec.NameProtobuf, Header: &packet.Header{
		Type: packet.TypeReply, StatusCode: code, Status: text, NotRun: true}})
}

// answer sends a reply. One that is too large becomes an error. If the broker is away the caller is told by
// its own hub that nobody was heard.
func (h *Hub) answer(to string, p *packet.Packet) {
	m := &message{kind: kindReply, from: h.id}
	b, err := m.withFrame(p)
	if err == nil {
		x := h.publish(to, "", b)
		if x == nil || x.Code() != tp.StatusTooLarge {
			return
		}
		err = x
	}
	p.Body, p.Header.Meta, p.Header.Gzip = packet.RawBody(nil), nil, 0
	p.Header.StatusCode, p.Header.Status = tp.StatusTooLarge, "the reply was not sent: "+err.Error()
	if b, err = m.withFrame(p); err == nil {
		_ = h.publish(to, "", b)
	}
}

// saysRuns tells the callers of pulls that take long that these have not ended.
func (h *Hub) saysRuns() {
	var list []string
	before := time.Now().Add(-h.o.beat)
	h.calls.mu.Lock()
	for _, c := range h.calls.all {
		if c.began.Before(before) {
			list = append(list, c.replyTo)
		}
	}
	h.calls.mu.Unlock()
	b := (&message{kind: kindRuns, from: h.id}).append(nil)
	for _, to := range list {
		_ = h.publish(to, "", b)
	}
}
