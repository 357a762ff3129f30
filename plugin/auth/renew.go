package auth

import (
	"context"
	"errors"
	"time"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/places"
)

// An identity that expires is renewed by a pull from the side that has dialled, when four fifths of its time
// are over. The other side closes a session whose identity has expired.

// renewUri is the route of renewals on the side that accepts.
const renewUri = uri + "/renew"

// renewPart is the part of the time that is left when an identity is renewed.
const renewPart = 5

// takeRenewals makes the route of renewals on the peer, once.
func (a *Auth) takeRenewals(p *tp.Peer) {
	if _, done := a.peers.LoadOrStore(p, true); !done {
		tp.HandlePull(p.PullRouter, renewUri, a.renew)
	}
}

// renew handles a renewal.
func (a *Auth) renew(ctx tp.PullCtx, h *hello) (*welcome, tp.Xerror) {
	st := stateOf(ctx.Session())
	var old *Principal
	if st != nil {
		old = st.principal.Load()
	}
	if old == nil || old.Scheme != h.Scheme || h.Version != version {
		return nil, unauthorized("there is nothing to renew in this way")
	}
	w := &welcome{Scheme: h.Scheme}
	var p *Principal
	err := error(unauthorized("an identity of the scheme %s is not renewed", h.Scheme))
	switch h.Scheme {
	case SchemeToken:
		p, err = a.byToken(ctx.Context(), h.Token)
	case SchemeSecret:
		st.mu.Lock()
		next := st.next
		st.next = nil // for one attempt
		st.mu.Unlock()
		if p, err = a.bySecretAgain(ctx.Context(), h, next, w); err == nil {
			st.mu.Lock()
			st.next = w.Next
			st.mu.Unlock()
		}
	}
	if err == nil && p.Name != old.Name {
		err = tp.NewXerror(tp.StatusForbidden, "a session cannot become another's by a renewal")
	}
	if err == nil {
		err = a.hold(ctx.Session(), st, p, w)
	}
	if err != nil {
		a.attempts.failed(places.Network(ctx.Session().Socket().RemoteAddr()), a.now())
		var x tp.Xerror
		if errors.As(err, &x) {
			return nil, x
		}
		return nil, tp.NewXerror(tp.StatusInternalServerError, "")
	}
	if w.Left == 0 {
		st.stopTimer()
	}
	return w, nil
}

// PostConnect has the identity that this side has shown renewed in time.
func (a *Auth) PostConnect(sess *tp.Session) error {
	if st := stateOf(sess); st != nil && st.secret != nil && st.left > 0 {
		a.renewLater(sess, st)
	}
	return nil
}

func (a *Auth) renewLater(sess *tp.Session, st *state) {
	st.after(st.left-st.left/renewPart, func() { a.renewNow(sess, st, time.Now().Add(st.left/renewPart)) })
}

// renewNow renews the identity, and tries again until it has expired.
func (a *Auth) renewNow(sess *tp.Session, st *state, expires time.Time) {
	left := time.Until(expires)
	ctx, cancel := context.WithTimeout(context.Background(), min(max(left, time.Millisecond), handshakeTime))
	defer cancel()
	h, err := st.secret.renewal(ctx, st.next)
	if h == nil && err == nil {
		return
	}
	var w *welcome
	if err == nil {
		w, err = tp.Call[*welcome](ctx, sess, renewUri, h, tp.WithBodyCodec("json"))
	}
	if err == nil {
		err = st.secret.renewed(h, st.next, w)
	}
	if err == nil {
		st.left, st.next = time.Duration(w.Left)*time.Millisecond, w.Next
		if st.left > 0 {
			a.renewLater(sess, st)
		}
		return
	}
	var x tp.Xerror
	again := !errors.As(err, &x) || x.Code() != tp.StatusUnauthorized && x.Code() != tp.StatusForbidden
	if wait := max(left/4, 10*time.Millisecond); again && wait < left {
		debugf("auth: the identity of session %s is not renewed yet: %v", sess.Id(), err)
		st.after(wait, func() { a.renewNow(sess, st, expires) })
		return
	}
	warnf("auth: the identity of session %s is not renewed, and the session will be closed: %v", sess.Id(),
		err)
}
