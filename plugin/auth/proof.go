package auth

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"

	tp "github.com/henrylee2cn/teleport"
)

// The proof that a side knows a secret is the HMAC-SHA256 (RFC 2104) with the secret of what both sides have
// said: the version, which side it is, the id, both nonces, and what tells the TLS connection from others, if
// there is one. Both nonces are new, so a proof that was recorded is of no use. The side that has dialled
// proves it first, as in SCRAM (RFC 5802): anybody can dial, and should get nothing to guess at.

// labels say what a proof is for.
const (
	labelDialled  = "tp-auth 1 dialled"
	labelAccepted = "tp-auth 1 accepted"
	labelRenewal  = "tp-auth 1 renewal"
	labelRenewed  = "tp-auth 1 renewed"
)

// minSecret is the least length of a secret.
const minSecret = 16

// proofOf returns the proof for the texts.
func proofOf(secret []byte, label string, texts ...[]byte) []byte {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(label))
	for _, text := range texts {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(text)))
		h.Write(n[:])
		h.Write(text)
	}
	return h.Sum(nil)
}

// binding returns what tells the connection's TLS from others (RFC 9266); nil without TLS.
func (a *Auth) binding(fore tp.ForeSession) ([]byte, error) {
	if a.unbound {
		return nil, nil
	}
	tls, ok := fore.Socket().TLS()
	if !ok {
		return nil, nil
	}
	b, err := tls.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	if err != nil {
		return nil, fmt.Errorf("auth: this TLS connection cannot be told from others, see auth.Unbound: %w",
			err)
	}
	return b, nil
}

// bySecret has the other side prove that it knows the secret of its id, and proves the same to it.
func (a *Auth) bySecret(ctx context.Context, fore tp.ForeSession, h *hello, st *state,
	w *welcome) (*Principal, error) {
	if len(h.Nonce) != nonceSize {
		return nil, unauthorized("the hello has a nonce of %d bytes, expected %d", len(h.Nonce), nonceSize)
	}
	bind, err := a.binding(fore)
	if err != nil {
		return nil, err
	}
	secret, p, err := a.secretOf(ctx, h.Id)
	if err != nil {
		return nil, err
	}
	c := challenge{Nonce: nonce()}
	if err := send(fore, &c); err != nil {
		return nil, err
	}
	var got answer
	if err := receive(fore, &got, "a proof"); err != nil {
		return nil, err
	}
	want := proofOf(secret, labelDialled, []byte(h.Id), h.Nonce, c.Nonce, bind)
	if !hmac.Equal(want, got.Proof) || p == nil {
		return nil, unauthorized(wrongSecret)
	}
	w.Proof = proofOf(secret, labelAccepted, []byte(h.Id), h.Nonce, c.Nonce, bind)
	w.Next = nonce()
	st.next = w.Next
	return p, nil
}

const wrongSecret = "the id is not known, or the secret is another"

// secretOf returns the secret of the id. For an unknown one p is nil, and the secret is one that nobody
// knows.
func (a *Auth) secretOf(ctx context.Context, id string) (secret []byte, p *Principal, err error) {
	secret, p, err = a.secrets(ctx, id)
	if err == nil && p != nil && len(secret) < minSecret {
		err = fmt.Errorf("the secret of %.40q has %d bytes, expected %d at least", id, len(secret), minSecret)
		errorf("auth: %v", err)
	}
	if err == nil && p == nil {
		secret = make([]byte, sha256.Size)
		_, _ = rand.Read(secret) // never fails
		return secret, nil, nil
	}
	p, err = checked(p, err, SchemeSecret, wrongSecret)
	return secret, p, err
}

// Secret proves to the other side that this side knows the secret of the id, without showing it, and has the
// other side prove that it knows the secret too: on the side that has dialled [Of] then returns a Principal
// with the id as its name. The secret has 16 bytes at least, and should be random; it is copied.
func Secret(id string, secret []byte) Option {
	if len(secret) < minSecret {
		panic(fmt.Sprintf("auth: Secret: the secret has %d bytes, expected %d at least.", len(secret),
			minSecret))
	}
	return shows("Secret", shared{id, append([]byte(nil), secret...)})
}

// shared is the credential of [Secret].
type shared struct {
	id     string
	secret []byte
}

var errNotProved = errors.New("the other side does not know the secret")

func (s shared) handshake(_ context.Context, a *Auth, fore tp.ForeSession) (*welcome, *Principal, error) {
	bind, err := a.binding(fore)
	if err != nil {
		return nil, nil, err
	}
	h := hello{Version: version, Scheme: SchemeSecret, Id: s.id, Nonce: nonce()}
	if err := send(fore, &h); err != nil {
		return nil, nil, err
	}
	var c challenge
	if err := receive(fore, &c, "a challenge"); err != nil {
		return nil, nil, err
	}
	if len(c.Nonce) != nonceSize {
		return nil, nil, unauthorized("the challenge has a nonce of %d bytes, expected %d", len(c.Nonce),
			nonceSize)
	}
	id := []byte(s.id)
	if err := send(fore, &answer{proofOf(s.secret, labelDialled, id, h.Nonce, c.Nonce, bind)}); err != nil {
		return nil, nil, err
	}
	w, err := await(fore, SchemeSecret)
	if err != nil {
		return nil, nil, err
	}
	if !hmac.Equal(proofOf(s.secret, labelAccepted, id, h.Nonce, c.Nonce, bind), w.Proof) {
		return nil, nil, unauthorized("%v", errNotProved)
	}
	return w, &Principal{Name: s.id, Scheme: SchemeSecret}, nil
}

// renewal proves the secret with what the last welcome has said, and asks for a proof in return.
func (s shared) renewal(_ context.Context, next []byte) (*hello, error) {
	h := &hello{Version: version, Scheme: SchemeSecret, Id: s.id, Nonce: nonce()}
	h.Proof = proofOf(s.secret, labelRenewal, []byte(s.id), h.Nonce, next)
	return h, nil
}

func (s shared) renewed(sent *hello, next []byte, w *welcome) error {
	if !hmac.Equal(proofOf(s.secret, labelRenewed, []byte(s.id), sent.Nonce, next), w.Proof) {
		return errNotProved
	}
	return nil
}

// bySecretAgain checks a renewal.
func (a *Auth) bySecretAgain(ctx context.Context, h *hello, next []byte, w *welcome) (*Principal, error) {
	secret, p, err := a.secretOf(ctx, h.Id)
	if err != nil {
		return nil, err
	}
	want := proofOf(secret, labelRenewal, []byte(h.Id), h.Nonce, next)
	if !hmac.Equal(want, h.Proof) || p == nil || len(next) == 0 {
		return nil, unauthorized(wrongSecret)
	}
	w.Proof = proofOf(secret, labelRenewed, []byte(h.Id), h.Nonce, next)
	w.Next = nonce()
	return p, nil
}

// StaticTokens returns a function for [AcceptTokens] that knows these tokens. It takes the same time for
// every token of one length. The map is copied.
func StaticTokens(principals map[string]*Principal) func(context.Context, string) (*Principal, error) {
	type entry struct {
		sum [sha256.Size]byte
		p   *Principal
	}
	var entries []entry
	for token, p := range principals {
		if token == "" || p == nil {
			panic("auth: StaticTokens: a token is empty, or its Principal is nil.")
		}
		entries = append(entries, entry{sha256.Sum256([]byte(token)), p})
	}
	return func(_ context.Context, token string) (*Principal, error) {
		sum := sha256.Sum256([]byte(token))
		var found *Principal
		for _, e := range entries {
			if subtle.ConstantTimeCompare(sum[:], e.sum[:]) == 1 {
				found = e.p
			}
		}
		return found, nil
	}
}
