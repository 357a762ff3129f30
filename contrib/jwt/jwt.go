// Package jwt verifies JSON web tokens for the plugin auth:
//
//	auth.New(auth.AcceptTokens(jwt.Verify(jwt.Config{Key: key, Methods: []string{"EdDSA"},
//		Issuer: "https://login.example.com", Audience: "orders"})))
//
// The work is that of github.com/golang-jwt/jwt.
package jwt

import (
	"context"
	"errors"
	"fmt"

	jwtlib "github.com/golang-jwt/jwt/v5"

	"github.com/henrylee2cn/teleport/plugin/auth"
)

// Config says which tokens are valid.
type Config struct {
	// Key verifies signatures: an ed25519.PublicKey, *rsa.PublicKey or *ecdsa.PublicKey, or a []byte for
	// HMAC. It is not used if there is Keys.
	Key any
	// Keys returns the key with the id that a token's header names; empty if it names none.
	Keys func(ctx context.Context, id string) (any, error)
	// Methods are the algorithms that tokens may be signed with, for example "EdDSA", "RS256" or "HS256". One
	// at least is needed: a token does not choose.
	Methods []string
	// Issuer and Audience, if they are set, are what a token must name.
	Issuer, Audience string
	// Roles is the claim with the roles, a list of texts; empty for "roles".
	Roles string
}

// Verify returns a function for [auth.AcceptTokens]. The principal's name is the token's subject, and it
// expires with the token: both are needed. Verify panics if the Config has no Methods or no key.
func Verify(c Config) func(ctx context.Context, token string) (*auth.Principal, error) {
	if len(c.Methods) == 0 {
		panic("jwt: Verify: Config.Methods is empty: expected the algorithms that tokens are signed with.")
	}
	if c.Key == nil && c.Keys == nil {
		panic("jwt: Verify: Config has neither Key nor Keys.")
	}
	if c.Roles == "" {
		c.Roles = "roles"
	}
	options := []jwtlib.ParserOption{jwtlib.WithValidMethods(c.Methods), jwtlib.WithExpirationRequired()}
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
			if c.Keys == nil {
				return c.Key, nil
			}
			id, _ := t.Header["kid"].(string)
			return c.Keys(ctx, id)
		})
		if err != nil {
			return nil, err
		}
		return principal(claims, c.Roles)
	}
}

func principal(claims jwtlib.MapClaims, roles string) (*auth.Principal, error) {
	subject, err := claims.GetSubject()
	if err != nil || subject == "" {
		return nil, errors.New("the token has no subject")
	}
	expires, err := claims.GetExpirationTime()
	if err != nil || expires == nil {
		return nil, errors.New("the token does not expire")
	}
	p := &auth.Principal{Name: subject, Expires: expires.Time}
	switch list := claims[roles].(type) {
	case nil:
	case []any:
		for _, role := range list {
			text, ok := role.(string)
			if !ok {
				return nil, fmt.Errorf("the claim %q has a %T, expected texts", roles, role)
			}
			p.Roles = append(p.Roles, text)
		}
	default:
		return nil, fmt.Errorf("the claim %q is a %T, expected a list of texts", roles, list)
	}
	return p, nil
}
