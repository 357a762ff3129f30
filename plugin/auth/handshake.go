package auth

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"time"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/places"
	"github.com/henrylee2cn/teleport/packet"
)

// The handshake. The side that has dialled sends a hello with its scheme and, for a token, the token. For a
// secret the other side answers with a challenge, and the first with a proof; see proof.go. A welcome ends
// the handshake, or the refusal of the connection, which is the framework's. All are pushes with JSON bodies.

// uri is where the packets of the handshake go. They are not routed.
const uri = "/tp-auth"

type hello struct {
	Version int    `json:"version"`
	Scheme  string `json:"scheme"`
	Token   string `json:"token,omitempty"`
	Id      string `json:"id,omitempty"`
	Nonce   []byte `json:"nonce,omitempty"`
	Proof   []byte `json:"proof,omitempty"` // of a renewal
}

type challenge struct {
	Nonce []byte `json:"nonce"`
}

type answer struct {
	Proof []byte `json:"proof"`
}

type welcome struct {
	Scheme string `json:"scheme"`
	Name   string `json:"name,omitempty"`
	// Left is for how many milliseconds the identity holds; 0 is for ever. It is a duration, as the
	// clocks of the two sides may differ.
	Left  int64  `json:"left,omitempty"`
	Proof []byte `json:"proof,omitempty"`
	// Next is what the next proof by a secret is about.
	Next []byte `json:"next,omitempty"`
}

const version = 1

// nonceSize is the size of the numbers that are used once.
const nonceSize = 32

func nonce() []byte {
	b := make([]byte, nonceSize)
	_, _ = rand.Read(b) // never fails
	return b
}

func send(fore tp.ForeSession, body any) error {
	h := &packet.Header{Type: packet.TypePush, Uri: uri}
	return fore.Send(&packet.Packet{Header: h, BodyCodec: "json", Body: body})
}

// receive reads a packet of the handshake into body.
func receive(fore tp.ForeSession, body any, what string) error {
	p, err := fore.Receive(body)
	if err != nil {
		return err
	}
	if p.Header.Type != packet.TypePush || p.Header.Uri != uri {
		return unauthorized("expected %s of the plugin auth, and there came a packet of type %d to %.40q",
			what, p.Header.Type, p.Header.Uri)
	}
	return nil
}

func unauthorized(format string, args ...any) tp.Xerror {
	return tp.NewXerror(tp.StatusUnauthorized, fmt.Sprintf(format, args...))
}

// PostAccept has the other side prove who it is.
func (a *Auth) PostAccept(fore tp.ForeSession) error {
	if !a.accepts() {
		return nil
	}
	address := places.Network(fore.Socket().RemoteAddr())
	failed := true // if a function of the program panics, too
	defer func() {
		if failed {
			a.attempts.failed(address, a.now())
		}
	}()
	err := a.accept(fore, address)
	failed = refused(err)
	return err
}

// refused reports whether the error says that a proof was wrong, and not that it could not be looked at.
func refused(err error) bool {
	var x tp.Xerror
	return errors.As(err, &x) && (x.Code() == tp.StatusUnauthorized || x.Code() == tp.StatusForbidden)
}

// mayTry returns an error if too many attempts from the address have failed.
func (a *Auth) mayTry(address netip.Prefix) error {
	if wait := a.attempts.wait(address, a.now()); wait > 0 {
		return tp.WithRetryAfter(tp.NewXerror(tp.StatusOverloaded,
			"too many attempts from this address have failed"), wait)
	}
	return nil
}

func (a *Auth) accept(fore tp.ForeSession, address netip.Prefix) error {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTime)
	defer cancel()
	if err := a.mayTry(address); err != nil {
		return err
	}
	var h hello
	if err := receive(fore, &h, "a hello"); err != nil {
		if x, ok := err.(tp.Xerror); ok && x.Code() == tp.StatusUnauthorized {
			return unauthorized("this side wants to know by the plugin auth who is there: %s", x.Text())
		}
		return err
	}
	if err := a.mayTry(address); err != nil { // others may have failed while this one said nothing
		return err
	}
	if h.Version != version {
		return unauthorized("version %d of the plugin auth is not known here, expected %d", h.Version,
			version)
	}
	st := newState(nil)
	w := welcome{Scheme: h.Scheme}
	p, err := a.prove(ctx, fore, &h, st, &w)
	if err != nil {
		return err
	}
	if p != nil {
		if err := a.hold(fore.Session(), st, p, &w); err != nil {
			return err
		}
	}
	set(fore.Session(), st)
	if peer := fore.Peer(); a.peers.Add(peer) {
		tp.HandlePull(peer.PullRouter, renewUri, a.renew)
	}
	return send(fore, &w)
}

// handshakeTime is how long verifying may take.
const handshakeTime = 10 * time.Second

// prove returns who has sent the hello; nil for an anonymous side.
func (a *Auth) prove(ctx context.Context, fore tp.ForeSession, h *hello, st *state,
	w *welcome) (*Principal, error) {
	switch {
	case h.Scheme == SchemeToken && a.tokens != nil:
		return a.byToken(ctx, h.Token)
	case h.Scheme == SchemeSecret && a.secrets != nil:
		return a.bySecret(ctx, fore, h, st, w)
	case h.Scheme == SchemeCertificate && a.certificates != nil:
		return a.byCertificate(fore)
	case h.Scheme == SchemeAnonymous && a.anonymous:
		return nil, nil
	}
	return nil, unauthorized("the scheme %.40q is not accepted here", h.Scheme)
}

func (a *Auth) byToken(ctx context.Context, token string) (*Principal, error) {
	p, err := a.tokens(ctx, token)
	return checked(p, err, SchemeToken, "the token is not valid")
}

func (a *Auth) byCertificate(fore tp.ForeSession) (*Principal, error) {
	tls, ok := fore.Socket().TLS()
	switch {
	case !ok:
		return nil, unauthorized("a certificate is shown by TLS, and the connection does not speak it")
	case len(tls.VerifiedChains) == 0:
		return nil, unauthorized("the connection has no certificate of its other side that was verified")
	}
	chain := tls.VerifiedChains[0]
	p, err := a.certificates(chain)
	p, err = checked(p, err, SchemeCertificate, "the certificate is not one that is accepted")
	if err != nil {
		return nil, err
	}
	if p.Expires.IsZero() {
		p.Expires = earliest(chain)
	}
	return p, nil
}

func earliest(chain []*x509.Certificate) time.Time {
	end := chain[0].NotAfter
	for _, c := range chain[1:] {
		if c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	return end
}

// checked returns a copy of what a function of the program has returned, or the error for the other side.
func checked(p *Principal, err error, scheme, text string) (*Principal, error) {
	if err == nil && p == nil {
		err = errors.New("nobody is known by it")
	}
	if err != nil {
		var x tp.Xerror
		if errors.As(err, &x) {
			return nil, x
		}
		infof("auth: %s: %v", text, err)
		return nil, unauthorized("%s", text)
	}
	if p.Name == "" {
		errorf("auth: the function of the scheme %s has returned a Principal without a Name", scheme)
		return nil, tp.NewXerror(tp.StatusInternalServerError, "the identity has no name")
	}
	own := *p
	own.Scheme = scheme
	return &own, nil
}

// hold has the principal hold until it expires, and the session no longer.
func (a *Auth) hold(sess *tp.Session, st *state, p *Principal, w *welcome) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	return a.holdLocked(sess, st, p, w)
}

func (a *Auth) holdLocked(sess *tp.Session, st *state, p *Principal, w *welcome) error {
	w.Name = p.Name
	if !p.Expires.IsZero() {
		left := p.Expires.Sub(a.now())
		if left <= 0 {
			return unauthorized("what was shown has expired")
		}
		w.Left = max(left.Milliseconds(), 1)
	}
	st.principal.Store(p)
	a.watchLocked(sess, st)
	return nil
}

// lookAgain is how often it is looked whether a session is there that is to be closed later: of one that
// another plugin has refused in its handshake nothing else says that it is over.
const lookAgain = time.Minute

// watchLocked closes the session when its principal has expired. There is one such watch, whatever principals
// the session gets.
func (a *Auth) watchLocked(sess *tp.Session, st *state) {
	left := lookAgain
	if p := st.principal.Load(); !p.Expires.IsZero() {
		left = min(p.Expires.Sub(a.now()), lookAgain)
	} else if st.timer == nil {
		return
	}
	st.afterLocked(left, func() {
		st.mu.Lock()
		p := st.principal.Load()
		expired := !p.Expires.IsZero() && !a.now().Before(p.Expires)
		if !expired && sess.Err() == nil {
			a.watchLocked(sess, st)
		}
		st.mu.Unlock()
		if expired && sess.Err() == nil {
			infof("auth: session %s of %s is closed, as its identity has expired", sess.Id(), p.Name)
			_ = sess.Close()
		}
	})
}

// PostDial proves to the other side who this side is.
func (a *Auth) PostDial(fore tp.ForeSession) error {
	if a.shows == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTime)
	defer cancel()
	w, p, err := a.shows.handshake(ctx, a, fore)
	if err != nil {
		return err
	}
	st := newState(a.shows)
	st.left, st.next = time.Duration(w.Left)*time.Millisecond, w.Next
	if p != nil {
		st.principal.Store(p)
	}
	set(fore.Session(), st)
	return nil
}

// credential is what a side shows that dials.
type credential interface {
	// handshake proves it, and returns what the other side has said, and who that is, if that was proved.
	handshake(ctx context.Context, a *Auth, fore tp.ForeSession) (*welcome, *Principal, error)
	// renewal returns a hello that proves it again. Next is from the last welcome.
	renewal(ctx context.Context, next []byte) (*hello, error)
	// renewed checks the answer.
	renewed(sent *hello, next []byte, w *welcome) error
}

// await reads the welcome.
func await(fore tp.ForeSession, scheme string) (*welcome, error) {
	w := new(welcome)
	if err := receive(fore, w, "a welcome"); err != nil {
		return nil, err
	}
	if w.Scheme != scheme {
		return nil, unauthorized("the other side has answered to the scheme %.40q, expected %q", w.Scheme,
			scheme)
	}
	return w, nil
}

// Token shows the token that the function returns, each time that a connection is made, and when the token
// before is about to expire. Its context ends with the handshake's time. The token goes over the wire as it
// is: use TLS.
func Token(token func(ctx context.Context) (string, error)) Option {
	if token == nil {
		panic("auth: Token: the function is nil.")
	}
	return shows("Token", bearer{token})
}

// StaticToken is [Token] for one that does not change.
func StaticToken(token string) Option {
	if token == "" {
		panic("auth: StaticToken: the token is empty.")
	}
	return Token(func(context.Context) (string, error) { return token, nil })
}

// Certificate says that this side shows its certificate by TLS, and nothing else.
func Certificate() Option { return shows("Certificate", bare{SchemeCertificate}) }

// Anonymous says that this side shows nothing.
func Anonymous() Option { return shows("Anonymous", bare{SchemeAnonymous}) }

func shows(option string, c credential) Option {
	return func(a *Auth) {
		if a.shows != nil {
			panic(fmt.Sprintf("auth: %s: another option says already what this side shows.", option))
		}
		a.shows = c
	}
}

// bearer is the credential of [Token].
type bearer struct {
	token func(ctx context.Context) (string, error)
}

func (b bearer) handshake(ctx context.Context, _ *Auth, fore tp.ForeSession) (*welcome, *Principal, error) {
	h, err := b.renewal(ctx, nil)
	if err != nil {
		return nil, nil, err
	}
	if err := send(fore, h); err != nil {
		return nil, nil, err
	}
	w, err := await(fore, SchemeToken)
	return w, nil, err
}

func (b bearer) renewal(ctx context.Context, _ []byte) (*hello, error) {
	token, err := b.token(ctx)
	if err != nil {
		return nil, fmt.Errorf("auth: no token to show: %w", err)
	}
	return &hello{Version: version, Scheme: SchemeToken, Token: token}, nil
}

func (bearer) renewed(*hello, []byte, *welcome) error { return nil }

// bare is the credential of [Certificate] and of [Anonymous].
type bare struct{ scheme string }

func (b bare) handshake(_ context.Context, _ *Auth, fore tp.ForeSession) (*welcome, *Principal, error) {
	if err := send(fore, &hello{Version: version, Scheme: b.scheme}); err != nil {
		return nil, nil, err
	}
	w, err := await(fore, b.scheme)
	return w, nil, err
}

// renewal: a certificate is renewed with the connection.
func (bare) renewal(context.Context, []byte) (*hello, error) { return nil, nil }

func (bare) renewed(*hello, []byte, *welcome) error { return nil }
