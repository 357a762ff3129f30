package tp

import (
	"errors"

	"github.com/henrylee2cn/teleport/internal/tlsconf"
)

// The side that accepts a connection says why it does not want it. It sends a reply with an id that no pull
// has, so that a peer which does not know this reply drops it. The side that dials asks for the outcome of
// the handshake after PostDial hooks, and when TLS has asked it for a certificate: in these cases the other
// side may still refuse. It asks with a ping. The other side answers pings only when its PostAccept hooks
// have passed.

const (
	// refusedId is the id of the reply that says that a handshake has failed.
	refusedId = "refused"
	// outcomeId is the id of the ping that asks how a handshake ended.
	outcomeId = "outcome"
	// handshakeId is the id of a push that a hook sends in a handshake. By this id the other side's hook
	// tells it from the pushes of a session.
	handshakeId = "handshake"
)

// refusedConn is why the other side did not want a connection.
type refusedConn struct{ x *xerror }

func (r *refusedConn) Error() string { return "refused by the other side: " + r.x.Error() }

func (r *refusedConn) Unwrap() error { return r.x }

// unrun returns the error of a pull that was to be sent by the connection.
func (r *refusedConn) unrun() *xerror {
	x := *r.x
	x.cause, x.notRun = r, true
	return &x
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
