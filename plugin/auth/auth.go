// Package auth is a plugin by which the two sides of a connection prove who they are, before anything is
// routed, and by which routes are open to some and not to others.
//
//	srv := tp.NewPeer(nil, auth.New(
//		auth.AcceptTokens(verify),
//		auth.Rule("/admin/*", "admin"),
//	))
//	cli := tp.NewPeer(nil, auth.New(auth.Token(token)))
//
// There are three ways to prove it. A token is shown as it is, so the connection should be one of TLS: see
// [AcceptTokens] and [Token]. A secret that both sides know never crosses the wire, and both sides prove
// that they know it: see [AcceptSecrets] and [Secret]. And a certificate was proved by TLS already: see
// [AcceptCertificates] and [Certificate]. The side that accepts a connection may take several of them, and
// the side that dials shows one; nothing else is tried if that is refused. A peer that does both has options
// of both sides.
//
// A handler finds who calls with [Identity]. What was proved holds until [Principal].Expires: then the
// session is closed. The side that has dialled renews it before, by itself, and a session that redials proves
// it again with every connection.
//
// The errors are an [tp.Xerror] with 401 where it is not known who calls, with 403 where that is known and
// not enough, and with 429 and a time to wait where too many attempts have failed from an address.
package auth

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/option"
	"github.com/henrylee2cn/teleport/internal/weakset"
)

// Names of the ways to prove an identity, see Principal.Scheme.
const (
	SchemeToken       = "token"
	SchemeSecret      = "secret"
	SchemeCertificate = "certificate"
	SchemeAnonymous   = "anonymous"
)

// Principal is who is on the other side of a session, as that was proved. It must not be changed after it was
// returned to this package.
type Principal struct {
	// Name says who it is. When the proof is renewed the name must be the same.
	Name string
	// Roles are what the principal may do, see [Rule] and [Require].
	Roles []string
	// Expires is until when that holds; the zero time is for ever. It is compared with this side's clock
	// only.
	Expires time.Time
	// Values are whatever else is known.
	Values map[string]string
	// Scheme is how it was proved. This package sets it.
	Scheme string
}

// Has reports whether the principal has one of the roles. A nil Principal has none.
func (p *Principal) Has(roles ...string) bool {
	return p != nil && slices.ContainsFunc(roles, func(r string) bool { return slices.Contains(p.Roles, r) })
}

// Identity returns who is on the other side of the session of a call, and nil if that was not proved. It is
// for handlers and hooks, and safe for concurrent use. After a renewal it returns the new Principal.
func Identity(ctx tp.Ctx) *Principal { return Of(ctx.Session()) }

// Name returns the name of who is on the other side of the session of a call, and an empty text if that was
// not proved: for the plugins limit and accesslog, for example.
func Name(ctx tp.Ctx) string {
	if p := Identity(ctx); p != nil {
		return p.Name
	}
	return ""
}

// Of is Identity for a session.
func Of(sess *tp.Session) *Principal {
	if st := stateOf(sess); st != nil {
		return st.principal.Load()
	}
	return nil
}

// Auth is the plugin. Make it with [New]; it may be added to several peers. All methods are safe for
// concurrent use.
type Auth struct {
	tokens       func(ctx context.Context, token string) (*Principal, error)
	secrets      func(ctx context.Context, id string) ([]byte, *Principal, error)
	certificates func(chain []*x509.Certificate) (*Principal, error)
	anonymous    bool
	unbound      bool
	shows        credential // what this side shows when it dials; nil for nothing
	rules        []rule
	attempts     attempts
	peers        weakset.Set[tp.Peer] // those that take renewals
	now          func() time.Time
}

// Option is an option of [New].
type Option func(*Auth)

// New returns the plugin. It belongs on a peer, in front of other plugins that refuse calls. It panics if
// options contradict each other, or if none of them says what to accept or what to show.
//
// A peer without an option to accept something lets everybody connect, as is right for one that only dials:
// then only [Rule] closes routes.
func New(options ...Option) *Auth {
	a := &Auth{now: time.Now}
	a.attempts.init(defaultFailures, defaultFailureTime)
	option.Apply("auth: New", a, options)
	if !a.accepts() && a.shows == nil {
		panic("auth: New: no option says what to accept, as AcceptTokens, or what to show, as Token.")
	}
	return a
}

// AcceptTokens accepts connections that show a token for which verify returns a Principal. Its error is
// returned to the other side if it is a [tp.Xerror], and otherwise 401 without its text, which goes to the
// log at the level Info. After 401 and 403 a client does not dial again: where it cannot be said whether a
// token is valid, as a database is away, return another code, as tp.NewXerror(tp.StatusServiceUnavailable,
// "").
//
// The context ends with the handshake's time, 10 seconds. Verify is called by many goroutines.
// [StaticTokens] is one for a few tokens that do not change.
func AcceptTokens(verify func(ctx context.Context, token string) (*Principal, error)) Option {
	if verify == nil {
		panic("auth: AcceptTokens: the function is nil.")
	}
	return func(a *Auth) {
		twice("AcceptTokens", a.tokens != nil)
		a.tokens = verify
	}
}

func twice(option string, given bool) {
	if given {
		panic(fmt.Sprintf("auth: the option %s is there twice.", option))
	}
}

// AcceptSecrets accepts connections whose other side knows the secret of an id, which find returns with the
// Principal, and proves to it that this side knows the secret too. An unknown id is (nil, nil, nil), and
// looks to the other side as a wrong secret does. Errors are as for [AcceptTokens], and like its function
// find is called by many goroutines. Secrets are 16 bytes at least, and should be random: a passphrase can
// be guessed by who records a handshake. They are not changed and not kept.
func AcceptSecrets(find func(ctx context.Context, id string) (secret []byte, p *Principal,
	err error)) Option {
	if find == nil {
		panic("auth: AcceptSecrets: the function is nil.")
	}
	return func(a *Auth) {
		twice("AcceptSecrets", a.secrets != nil)
		a.secrets = find
	}
}

// AcceptCertificates accepts connections whose other side has shown a certificate by TLS that this side's
// TLS configuration has verified, and for which who returns a Principal; chain is from the certificate to
// the root. A Principal without Expires gets the end of the certificate. Nil is for [CommonName]. The other
// side needs [Certificate]: its TLS configuration alone says nothing to this plugin. Who is called by many
// goroutines.
func AcceptCertificates(who func(chain []*x509.Certificate) (*Principal, error)) Option {
	if who == nil {
		who = CommonName
	}
	return func(a *Auth) { a.certificates = who }
}

// CommonName is who a certificate is by its subject's common name, with the organizational units as roles.
func CommonName(chain []*x509.Certificate) (*Principal, error) {
	subject := chain[0].Subject
	if subject.CommonName == "" {
		return nil, errors.New("the certificate has no common name")
	}
	return &Principal{Name: subject.CommonName, Roles: subject.OrganizationalUnit}, nil
}

// AcceptAnonymous accepts connections that say by [Anonymous] that they show nothing. Their sessions have no
// Principal, so that no rule lets them pass.
func AcceptAnonymous() Option { return func(a *Auth) { a.anonymous = true } }

// Failures changes how many attempts may fail from one address, an IPv4 address or an IPv6 network of 64
// bits, within the time given: 10 in a minute without this option. Connections from there are then refused
// with 429 until the time is over, before anything is verified. A negative number is no bound. Addresses that
// are none of IP, of Unix sockets for example, have no bound.
func Failures(most int, within time.Duration) Option {
	if most == 0 || within <= 0 {
		panic(fmt.Sprintf("auth: Failures(%d, %v): expected a positive number, or a negative one for no "+
			"bound, and a positive duration.", most, within))
	}
	return func(a *Auth) { a.attempts.init(most, within) }
}

// Unbound has proofs by [Secret] not depend on the TLS connection that they are made on, on both sides: for
// connections whose TLS ends at a proxy. Without this option such a proof is of no use on another TLS
// connection (RFC 9266).
func Unbound() Option { return func(a *Auth) { a.unbound = true } }

// Name returns "auth".
func (a *Auth) Name() string { return "auth" }

func (a *Auth) accepts() bool {
	return a.tokens != nil || a.secrets != nil || a.certificates != nil || a.anonymous
}

// state is what is known of one session, on one connection.
type state struct {
	principal atomic.Pointer[Principal]
	// secret is what is shown again for the renewal; nil on the side that accepts. Ctx ends with the
	// state.
	secret credential
	ctx    context.Context
	cancel context.CancelFunc
	// Only one renewal at a time uses them, on the side that has dialled.
	left time.Duration

	mu    sync.Mutex  // guards the fields below
	timer *time.Timer // of the expiry, or of the renewal
	next  []byte      // what the next proof by a secret is about
	over  bool
	// The last renewal by a secret, whose answer may have been lost.
	proof   []byte
	welcome welcome
}

func newState(secret credential) *state {
	st := &state{secret: secret}
	st.ctx, st.cancel = context.WithCancel(context.Background())
	return st
}

type stateKey struct{}

func stateOf(sess *tp.Session) *state {
	if v, ok := sess.Public().Load(stateKey{}); ok {
		return v.(*state)
	}
	return nil
}

// set makes st the state of the session. One that the session had before, on another connection, is over.
func set(sess *tp.Session, st *state) {
	old := stateOf(sess)
	sess.Public().Store(stateKey{}, st)
	if old != nil {
		old.stop()
	}
}

func (st *state) stop() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.over = true
	st.cancel()
	if st.timer != nil {
		st.timer.Stop()
	}
}

// after calls f after the time, unless the state is over before. It takes the place of what was to be called.
func (st *state) after(d time.Duration, f func()) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.afterLocked(d, f)
}

func (st *state) afterLocked(d time.Duration, f func()) {
	if st.over {
		return
	}
	if st.timer != nil {
		st.timer.Stop()
	}
	st.timer = time.AfterFunc(d, f)
}

// PostDisconnect ends what runs for the session.
func (a *Auth) PostDisconnect(sess *tp.Session, _ error) error {
	if st := stateOf(sess); st != nil {
		st.stop()
	}
	return nil
}
