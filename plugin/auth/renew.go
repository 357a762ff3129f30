package auth

import (
	"context"
	"crypto/hmac"
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

// renew handles a renewal.
func (a *Auth) renew(ctx tp.PullCtx, h *hello) (*welcome, tp.Xerror) {
	st := stateOf(ctx.Session())
	var old *Principal
	if st != nil && st.secret == nil { // on the side that has accepted
		old = st.principal.Load()
	}
	if old == nil || old.Scheme != h.Scheme || h.Version != version {
		return nil, unauthorized("there is nothing to renew in this way")
	}
	w := &welcome{Scheme: h.Scheme}
	var p *Principal
	var next []byte
	err := error(unauthorized("an identity of the scheme %s is not renewed", h.Scheme))
	switch h.Scheme {
	case SchemeToken:
		p, err = a.byToken(ctx.Context(), h.Token)
	case SchemeSecret:
		st.mu.Lock()
		next = st.next
		st.mu.Unlock()
		if p, err = a.bySecretAgain(ctx.Context(), h, next, w); err != nil && st.answered(h.Proof, w) {
			return w, nil
		}
	}
	if err == nil && p.Name != old.Name {
		err = tp.NewXerror(tp.StatusForbidden, "a session cannot become another's by a renewal")
	}
	if err == nil {
		err = a.renewed(ctx.Session(), st, p, h, next, w)
	}
	if err != nil {
		if refused(err) {
			a.attempts.failed(places.Network(ctx.Session().Socket().RemoteAddr()), a.now())
		}
		var x tp.Xerror
		if errors.As(err, &x) {
			return nil, x
		}
		return nil, tp.NewXerror(tp.StatusInternalServerError, "")
	}
	return w, nil
}

// answered reports whether the proof was the last one, whose answer may have been lost, and puts that answer
// into w: nothing lasts longer by that.
func (st *state) answered(proof []byte, w *welcome) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if len(proof) == 0 || !hmac.Equal(proof, st.proof) {
		return false
	}
	*w = st.welcome
	return true
}

// renewed has the principal hold that a renewal has proved, by a proof about next if it is one by a secret.
// Of two that have proved the same, as the first was given up by who waits for it, the second gets the
// answer of the first.
func (a *Auth) renewed(sess *tp.Session, st *state, p *Principal, h *hello, next []byte, w *welcome) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	bySecret := h.Scheme == SchemeSecret
	if bySecret && !hmac.Equal(next, st.next) {
		if !hmac.Equal(h.Proof, st.proof) {
			return unauthorized(wrongSecret)
		}
		*w = st.welcome
		return nil
	}
	if err := a.holdLocked(sess, st, p, w); err != nil {
		return err
	}
	if bySecret {
		st.next, st.proof, st.welcome = w.Next, h.Proof, *w
	}
	return nil
}

// PostConnect has the identity that this side has shown renewed in time.
func (a *Auth) PostConnect(sess *tp.Session) error {
	if st := stateOf(sess); st != nil && st.secret != nil && st.left > 0 {
		a.renewLater(sess, st)
	}
	return nil
}

func (a *Auth) renewLater(sess *tp.Session, st *state) {
	st.after(st.left-st.left/renewPart, func() { a.renewInTime(sess, st, time.Now().Add(st.left/renewPart)) })
}

// triesPart is the part of the time that is left which one try to renew may take, and waitPart the part after
// which there is another try.
const triesPart, waitPart = 3, 8

// renewInTime renews the identity, and tries again until it has expired or the connection has ended.
func (a *Auth) renewInTime(sess *tp.Session, st *state, expires time.Time) {
	var h *hello
	for {
		left := time.Until(expires)
		err := a.renewOnce(sess, st, &h, min(max(left/triesPart, time.Millisecond), handshakeTime))
		if err == nil || st.ctx.Err() != nil {
			return
		}
		left = time.Until(expires)
		wait := max(left/waitPart, 10*time.Millisecond)
		if after, ok := tp.Retryable(err); ok && after > 0 {
			wait = after
		}
		if refused(err) || wait >= left {
			warnf("auth: the identity of session %s is not renewed, and the session will be closed: %v",
				sess.Id(), err)
			return
		}
		debugf("auth: the identity of session %s is not renewed yet: %v", sess.Id(), err)
		select {
		case <-st.ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// renewOnce tries to renew the identity. What is sent is in h, and is sent again if the answer does not
// come: it may have been lost.
func (a *Auth) renewOnce(sess *tp.Session, st *state, h **hello, within time.Duration) error {
	ctx, cancel := context.WithTimeout(st.ctx, within)
	defer cancel()
	st.mu.Lock()
	next := st.next
	st.mu.Unlock()
	if *h == nil || next == nil { // a token may be another by now
		made, err := st.secret.renewal(ctx, next)
		if made == nil || err != nil {
			return err
		}
		*h = made
	}
	w, err := tp.Call[*welcome](ctx, sess, renewUri, *h, tp.WithBodyCodec("json"))
	if err == nil {
		err = st.secret.renewed(*h, next, w)
	}
	if err != nil {
		return err
	}
	st.mu.Lock()
	st.next = w.Next
	st.mu.Unlock()
	if st.left = time.Duration(w.Left) * time.Millisecond; st.left > 0 {
		a.renewLater(sess, st)
	}
	return nil
}
