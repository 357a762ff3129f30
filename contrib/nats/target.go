package nats

import (
	"context"
	"fmt"
	"strconv"
	"time"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/packet"
)

// Target is a session, wherever it is connected: [Hub.Session] and [Hub.Identity] return it. It is a name
// and no more: who has the name is found by each call. A Target is safe for concurrent use.
type Target struct {
	h   *Hub
	key nameKey
}

// Session is the session with the id, which a hub of the service knows by [Hub.Add]. Ids are those of
// tp.Session.Id, so that a service whose sessions are spread should give them ids of its own: the address
// of a client may be the address of another client to another server.
func (h *Hub) Session(id string) Target { return Target{h, nameKey{ofSession, id}} }

// Identity is the session that has the identity, see [Hub.Add].
func (h *Hub) Identity(name string) Target { return Target{h, nameKey{ofIdentity, name}} }

// String names the target.
func (t Target) String() string {
	if t.key.kind == ofIdentity {
		return fmt.Sprintf("identity %q", t.key.name)
	}
	return fmt.Sprintf("session %q", t.key.name)
}

// Pull sends a request to the URI of the session, and decodes the reply into reply, a pointer or nil, as
// tp.Session.PullContext does. The handler over there has the deadline and the end of ctx, and the metadata;
// the error has the status, the details and what tp.NotRun says. Nothing is sent twice.
//
// A session of this server is pulled from as it is. Otherwise the encoded body travels as it is to the
// server that has the session, and its reply back: the hooks of pulls, and the limits and the
// DefaultPullTimeout of the peer, are those of that server. If that server is lost, or one of the
// connections to the broker, the error is tp.StatusConnClosed, and the outcome is unknown; it takes five
// seconds at most until that is known.
func (t Target) Pull(ctx context.Context, uri string, args, reply interface{},
	setting ...tp.PacketSetting) tp.Xerror {
	if sess := t.h.here(t.key); sess != nil {
		return sess.PullContext(ctx, uri, args, reply, setting...).Xerror
	}
	if x := tp.CheckReply(reply); x != nil {
		return x
	}
	in, x := t.call(ctx, kindPull, uri, args, setting)
	if x != nil {
		return x
	}
	return t.h.peer.TakeReply(in, reply, setting...)
}

// Push sends args to the URI of the session, one way, as tp.Session.PushContext does. Nil says that the
// server that has the session has handed the push to its connection; the wait for that is a round trip of
// the broker, and pushes that one goroutine makes after each other arrive in their order.
func (t Target) Push(ctx context.Context, uri string, args interface{},
	setting ...tp.PacketSetting) tp.Xerror {
	if sess := t.h.here(t.key); sess != nil {
		return sess.PushContext(ctx, uri, args, setting...)
	}
	in, x := t.call(ctx, kindPush, uri, args, setting)
	if x != nil {
		return x
	}
	return t.h.peer.TakeReply(in, nil)
}

// Call is Target.Pull with a typed reply and an error that is nil if there is none.
func Call[R any](ctx context.Context, t Target, uri string, args interface{},
	setting ...tp.PacketSetting) (R, error) {
	var reply R
	if x := t.Pull(ctx, uri, args, &reply, setting...); x != nil {
		return reply, x
	}
	return reply, nil
}

// answer is what ends a call to another server.
type answer struct {
	p     *packet.Packet
	x     tp.Xerror
	moved bool // the server does not have the session any more, and has done nothing
}

// attempts is how often a call is sent while it reaches servers that do not have the session any more, and
// whose subscription has not ended yet: as a session connects to another server. The waits between are 1,
// 2, 4 milliseconds and so on.
const attempts = 6

// call sends a pull or a push to the server that has the target, and returns the reply's packet.
func (t Target) call(ctx context.Context, what kind, uri string, args interface{},
	setting []tp.PacketSetting) (*packet.Packet, tp.Xerror) {
	if ctx == nil {
		return nil, tp.WithNotRun(tp.NewXerror(tp.StatusBadRequest,
			"nothing was sent: the context is nil; expected one such as context.Background()"))
	}
	switch h := t.h; {
	case h.isClosed():
		return nil, closed()
	case h.nc == nil:
		return nil, t.nowhere()
	case ctx.Err() != nil:
		return nil, ended(ctx, true)
	}
	p, x := t.h.peer.Carry(uri, args, setting...)
	if x != nil {
		return nil, x
	}
	p.Header.Type = packet.TypePull
	for attempt := range attempts {
		if attempt > 0 {
			select {
			case <-time.After(time.Millisecond << (attempt - 1)):
			case <-ctx.Done():
				return nil, ended(ctx, true)
			}
		}
		if a := t.send(ctx, what, p); !a.moved {
			return a.p, a.x
		}
	}
	return nil, t.nowhere()
}

// send sends the packet to one server that has the target, and waits for the answer.
func (t Target) send(ctx context.Context, what kind, p *packet.Packet) answer {
	h := t.h
	if deadline, ok := ctx.Deadline(); ok {
		p.Header.Timeout = max(int64((time.Until(deadline)+time.Millisecond-1)/time.Millisecond), 1)
	}
	done := make(chan answer, 1)
	end := func(a answer) {
		select {
		case done <- a:
		default:
		}
	}
	w := &waiter{
		reply: func(msg *message, err error) { end(t.answer(msg, err)) },
		fail:  func(x tp.Xerror) { end(answer{x: x}) },
	}
	h.waiting.add(w)
	defer h.waiting.remove(w)
	m := &message{kind: what, number: w.number, from: h.id, name: t.key.name, more: []byte{t.key.kind}}
	b, err := m.withFrame(p)
	if err != nil {
		return answer{x: tp.WithNotRun(tp.NewXerror(tp.StatusWriteFailed, "nothing was sent: "+err.Error()))}
	}
	subject := h.subj.name(t.key)
	to := h.subj.replies(h.id) + strconv.FormatUint(w.number, 10)
	if x := h.queue(ctx, outgoing{subject: subject, reply: to, b: b, w: w}); x != nil {
		return answer{x: x}
	}
	select {
	case a := <-done:
		return a
	case <-ctx.Done():
		if w.withdraw() {
			return answer{x: ended(ctx, true)}
		}
		if ctx.Err() == context.Canceled { // the deadline is known over there
			cancel := &message{kind: kindCancel, number: w.number, from: h.id}
			_ = h.publish(subject, "", cancel.append(nil))
		}
		return answer{x: ended(ctx, false)}
	}
}

func (t Target) nowhere() tp.Xerror {
	return unrun(tp.StatusNotFound, ErrNotConnected, "%s is connected nowhere", t)
}

// answer reads the reply to a call.
func (t Target) answer(msg *message, err error) answer {
	if msg == nil { // nobody has the subject
		return answer{x: t.nowhere()}
	}
	if err == nil && msg.number == isNowhere {
		return answer{moved: true}
	}
	var p *packet.Packet
	if err == nil {
		p, err = msg.packet()
	}
	if v, ok := err.(versionError); ok { // who gets another version does nothing
		return answer{x: unrun(tp.StatusNotImplemented, ErrVersion, "it was not run: %v", v)}
	}
	if err != nil {
		return answer{x: tp.NewXerror(tp.StatusBadGateway, "the reply of the server that has the session: "+
			err.Error())}
	}
	hdr := p.Header
	if hdr.StatusCode >= tp.StatusOK || hdr.StatusCode < tp.StatusWriteFailed {
		return answer{p: p}
	}
	// What the other server has made itself of the session's connection is what this one would have.
	x := tp.NewXerror(hdr.StatusCode, hdr.Status)
	switch hdr.StatusCode {
	case tp.StatusDeadlineExceeded:
		x = &failure{x, context.DeadlineExceeded}
	case tp.StatusCanceled:
		x = &failure{x, context.Canceled}
	}
	if hdr.NotRun {
		x = tp.WithNotRun(x)
	}
	return answer{x: x}
}

// ended is the failure of a call whose context has ended.
func ended(ctx context.Context, unsent bool) tp.Xerror {
	code := tp.StatusCanceled
	if ctx.Err() == context.DeadlineExceeded {
		code = tp.StatusDeadlineExceeded
	}
	text := tp.StatusText(code) + ": the outcome is unknown"
	if unsent {
		return unrun(code, ctx.Err(), "%s: nothing was sent", tp.StatusText(code))
	}
	return unknown(code, ctx.Err(), "%s", text)
}
