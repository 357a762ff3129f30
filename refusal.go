package tp

import (
	"errors"
	"fmt"
	"slices"

	"github.com/henrylee2cn/teleport/internal/tlsconf"
	"github.com/henrylee2cn/teleport/internal/uri"
	"github.com/henrylee2cn/teleport/packet"
)

// The side that accepts a connection says why it does not want it: with a reply that has an
// id which is no pull's, so that who does not know it drops it. The side that dials asks for
// the outcome where there is one to wait for: after PostDial hooks, and where TLS asked it
// for a certificate. It asks with a ping, which the other side's reader answers, and that
// begins when its PostAccept hooks have passed.

const (
	// refusedId is the id of the reply that says that a handshake has failed.
	refusedId = "refused"
	// outcomeId is the id of the ping that asks how a handshake ended.
	outcomeId = "outcome"
	// handshakeId is the id of a push that a hook sends in a handshake, by which the other
	// side's hook tells it from one of a session.
	handshakeId = "handshake"
)

// maxStrays bounds the pulls that a hook has received instead of a packet of the handshake,
// and that are answered when the handshake is over.
const maxStrays = 16

// refusedConn is why the other side did not want a connection.
type refusedConn struct{ x *xerror }

func (r *refusedConn) Error() string { return "refused by the other side: " + r.x.Error() }
func (r *refusedConn) Unwrap() error { return r.x }

// unrun is what happened to a pull by the connection.
func (r *refusedConn) unrun() *xerror {
	x := *r.x
	x.cause, x.notRun = r, true
	return &x
}

// refuse tells the other side why a hook did not want its connection; the pulls with the ids are
// answered with that. What a limit turns away is told nothing: that would cost more than to close.
func (cn *conn) refuse(cause error, strays []string) {
	var hook *hookError
	if cn.ended.Load() || !errors.As(cause, &hook) {
		return
	}
	x := hook.xerror()
	for _, id := range strays {
		cn.sendRefusal(id, x)
	}
	cn.sendRefusal(refusedId, x)
}

// pressReply is press for a reply that is an error.
func (cn *conn) sendRefusal(id string, x Xerror) {
	h := &packet.Header{Id: id, Type: packet.TypeReply, NotRun: true}
	h.StatusCode, h.Status = sentStatus(x)
	h.Meta = addRetryAfter(nil, x)
	body, gzip := detailsOf(x)
	h.Gzip = gzip
	cfg := &cn.peer.cfg
	frame, err := cn.sock.Encode(&packet.Packet{HeaderCodec: cfg.DefaultHeaderCodec, BodyCodec: cfg.DefaultBodyCodec, Header: h, Body: body})
	if err != nil { // the details do not encode
		h.Gzip = 0
		frame, err = cn.encodeHeader(h)
	}
	if err == nil && cn.sock.PressFrame(frame) == nil {
		go cn.flush()
	}
}

// heardRefusal makes the error of a reply with refusedId, whose header was read last.
func (cn *conn) heardRefusal(h *packet.Header, raw packet.RawBody) *refusedConn {
	x := repliedStatus(h)
	x.notRun = true
	if x.code == StatusOK { // an error must not look like success
		x.code = StatusBadGateway
	}
	if len(raw) > 0 {
		x.details, x.gzip, x.limits = slices.Clone(raw), h.Gzip, &cn.peer.limits
	}
	return &refusedConn{x}
}

// confirm returns when the other side has said that the handshake is over, or why it does
// not want the connection. A reader is returned if its first packet has come meanwhile.
func (cn *conn) confirm() (*reader, error) {
	cn.sendControl(&packet.Header{Id: outcomeId, Type: packet.TypePing})
	r := newReader(cn, false)
	var err error
	if r.length, err = cn.sock.ReadHeaderView(&r.view); err != nil {
		return nil, err
	}
	if r.view.Type == packet.TypeReply {
		switch string(r.view.Id) {
		case outcomeId: // 200, or 410 by one that does not know pings
			cn.sock.SkipBody()
			return nil, nil
		case refusedId:
			return nil, r.refusal()
		}
	}
	r.pending = true
	return r, nil
}

// lastWord returns why the other side, which has closed the connection, did not want it; nil if it
// has not said so.
func (cn *conn) lastWord() error {
	r := newReader(cn, false)
	for range maxStrays {
		var err error
		if r.length, err = cn.sock.ReadHeaderView(&r.view); err != nil {
			return nil
		}
		if r.view.Type == packet.TypeReply && string(r.view.Id) == refusedId {
			return r.refusal()
		}
		cn.sock.SkipBody()
	}
	return nil
}

// refusal is the error of the reply with refusedId that is being read.
func (r *reader) refusal() error {
	v := &r.view
	h := &packet.Header{StatusCode: v.StatusCode, Status: string(v.Status), Gzip: v.Gzip, Meta: v.Meta}
	var x exchange
	if err := x.readBody(r.l.sock, r.length, false); err != nil {
		x.raw.B = nil
	}
	err := r.l.heardRefusal(h, x.raw.B)
	x.raw.Release()
	return err
}

// stray reports why a packet is none of a handshake: a pull or a push of a session, by a
// side that has no hook for it, for example.
func (f *foreSession) stray(h *packet.Header) Xerror {
	kind := ""
	switch h.Type {
	case packet.TypePull:
		if _, ok := parsePullId([]byte(h.Id)); !ok {
			return nil
		}
		if len(f.strays) < maxStrays {
			f.strays = append(f.strays, h.Id)
		}
		kind = fmt.Sprintf("a pull of %q", quote(uri.WithoutQuery(h.Uri)))
	case packet.TypePush:
		path, _ := uri.Split(h.Uri)
		if h.Id == handshakeId || f.peer.PushRouter.routes.table.Load().handlers[path] == nil {
			return nil
		}
		kind = fmt.Sprintf("a push to %q", quote(uri.WithoutQuery(h.Uri)))
	case packet.TypeReply:
		if h.Id != outcomeId {
			return nil
		}
		kind = "the answer to a ping"
	case packet.TypePing:
		kind = "a ping; its hooks are through"
	case packet.TypeCancel:
		kind = "a cancellation"
	case packet.TypeGoAway:
		return newXerror(StatusServiceUnavailable, "the other side is shutting down", nil)
	default:
		return nil
	}
	if f.dialled {
		return newXerror(StatusFailedPlugin, "expected a packet of the other side's PostAccept hook, and there came "+kind, nil)
	}
	return newXerror(StatusUnauthorized, "expected a packet of the other side's PostDial hook, and there came "+kind, nil)
}

// Permanent marks an error of a PostDial, PostConnect or PostReconnect hook as one that
// another attempt would meet again: a session that redials, see [Redial], ends with it. It
// returns nil for nil. Without it that is true of an error whose code is StatusUnauthorized
// or StatusForbidden, and of a TLS alert about this side's certificate, where every address
// that the session dials has failed so.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

type permanentError struct{ err error }

func (p *permanentError) Error() string { return p.err.Error() }
func (p *permanentError) Unwrap() error { return p.err }

// marked reports whether the error is one that Permanent has marked.
func marked(err error) bool {
	var p *permanentError
	return errors.As(err, &p)
}

// lasting reports whether another attempt to connect to the same address would fail too.
func lasting(err error) bool {
	var x *xerror
	if errors.As(err, &x) && (x.code == StatusUnauthorized || x.code == StatusForbidden) {
		return true
	}
	var hook *hookError
	if errors.As(err, &hook) && (hook.code == StatusUnauthorized || hook.code == StatusForbidden) {
		return true
	}
	return marked(err) || tlsconf.RefusesCertificate(err)
}
