// Package jwt verifies JSON web tokens for the plugin auth:
//
//	auth.New(auth.AcceptTokens(jwt.Verify(jwt.Config{Key: key, Methods: []string{"EdDSA"},
//		Issuer: "https://login.example.com", Audience: "orders"})))
//
// The work is that of github.com/golang-jwt/jwt.
package jwt

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	jwtlib "github.com/golang-jwt/jwt/v5"

	"github.com/henrylee2cn/teleport/plugin/auth"
)

// Config says which tokens are valid.
type Config struct {
	// Key verifies signatures: an ed25519.PublicKey, *rsa.PublicKey or *ecdsa.PublicKey, or a []byte for
	// HMAC, of 16 bytes at least. It is not used if there is Keys.
	Key any
	// Keys returns the key with the id that a token's header names; empty if it names none. A key that
	// is nil or too short is refused, so that a map of keys can be asked for an id that is not in it.
	// Where keys cannot be fetched now, return an error that is a tp.Xerror with another code than 401:
	// after that a client does not dial again. Keys is called by many goroutines.
	Keys func(ctx context.Context, id string) (any, error)
	// Methods are the algorithms that tokens may be signed with, for example "EdDSA", "RS256" or
	// "HS256". One at least is needed: a token does not choose.
	Methods []string
	// Issuer and Audience, if they are set, are what a token must name.
	Issuer, Audience string
	// Roles is the claim with the roles, a list of texts, or one text with spaces between them as "scope"
	// has; empty for "roles".
	Roles string
	// Leeway is how far the clock of the issuer may be from this side's: tokens are valid for so much
	// longer, and so much earlier.
	Leeway time.Duration
}

// Verify returns a function for [auth.AcceptTokens]. The principal's name is the token's subject, and it
// expires with the token: both are needed. Verify panics if the Config has no Methods or no key, a method is
// not known, or the key is of none of them. The function may be called by many goroutines.
func Verify(c Config) func(ctx context.Context, token string) (*auth.Principal, error) {
	if len(c.Methods) == 0 {
		panic("jwt: Verify: Config.Methods is empty: expected the algorithms that tokens are signed with.")
	}
	if c.Key == nil && c.Keys == nil {
		panic("jwt: Verify: Config has neither Key nor Keys.")
	}
	for _, m := range c.Methods {
		if jwtlib.GetSigningMethod(m) == nil || m == jwtlib.SigningMethodNone.Alg() {
			panic(fmt.Sprintf("jwt: Verify: there is no method %q: expected EdDSA, or HS, RS, PS or ES with "+
				"256, 384 or 512.", m))
		}
	}
	fitting := func(method string) bool { return fits(c.Key, method) == nil }
	if c.Keys == nil && !slices.ContainsFunc(c.Methods, fitting) {
		panic(fmt.Sprintf("jwt: Verify: %v.", fits(c.Key, c.Methods[0])))
	}
	if c.Roles == "" {
		c.Roles = "roles"
	}
	options := []jwtlib.ParserOption{jwtlib.WithValidMethods(c.Methods), jwtlib.WithExpirationRequired(),
		jwtlib.WithLeeway(c.Leeway)}
	if c.Issuer != "" {
		options = append(options, jwtlib.WithIssuer(c.Issuer))
	}
	if c.Audience != "" {
		options = append(options, jwtlib.WithAudience(c.Audience))
	}
	parser := jwtlib.NewParser(options...)
	return func(ctx context.Context, token string) (*auth.Principal, error) {
		claims := jwtlib.MapClaims{}
		_, err := parser.ParseWithClaims(token, claims, func(t *jwtlib.Token) (any, error) {
			key := c.Key
			if c.Keys != nil {
				id, _ := t.Header["kid"].(string)
				var err error
				if key, err = c.Keys(ctx, id); err != nil {
					return nil, err
				}
			}
			return key, fits(key, t.Method.Alg())
		})
		if err != nil {
			return nil, err
		}
		return principal(claims, c)
	}
}

// minSecret is how long a key for HMAC is at least, in bytes.
const minSecret = 16

// fits returns an error if the key is none of the method.
func fits(key any, method string) error {
	var ok bool
	want := "an ed25519.PublicKey"
	switch {
	case method == jwtlib.SigningMethodEdDSA.Alg():
		k, is := key.(ed25519.PublicKey)
		ok = is && len(k) == ed25519.PublicKeySize
	case strings.HasPrefix(method, "ES"):
		want = "an *ecdsa.PublicKey"
		k, is := key.(*ecdsa.PublicKey)
		ok = is && k != nil
	case strings.HasPrefix(method, "HS"):
		want = fmt.Sprintf("a []byte of %d bytes at least", minSecret)
		k, is := key.([]byte)
		ok = is && len(k) >= minSecret
	default:
		want = "an *rsa.PublicKey"
		k, is := key.(*rsa.PublicKey)
		ok = is && k != nil
	}
	if !ok {
		return fmt.Errorf("the key is a %T, or empty, or short: expected %s for %s", key, want, method)
	}
	return nil
}

func principal(claims jwtlib.MapClaims, c Config) (*auth.Principal, error) {
	subject, err := claims.GetSubject()
	if err != nil || subject == "" {
		return nil, errors.New("the token has no subject")
	}
	expires, err := claims.GetExpirationTime()
	if err != nil || expires == nil {
		return nil, errors.New("the token does not expire")
	}
	p := &auth.Principal{Name: subject, Expires: expires.Add(c.Leeway)}
	switch list := claims[c.Roles].(type) {
	case nil:
	case string:
		p.Roles = strings.Fields(list)
	case []any:
		for _, role := range list {
			text, ok := role.(string)
			if !ok {
				return nil, fmt.Errorf("the claim %q has a %T, expected texts", c.Roles, role)
			}
			p.Roles = append(p.Roles, text)
		}
	default:
		return nil, fmt.Errorf("the claim %q is a %T, expected a list of texts", c.Roles, list)
	}
	return p, nil
}
