package jwt_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	jwtlib "github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/contrib/jwt"
	"github.com/henrylee2cn/teleport/plugin/auth"
)

var public, private, _ = ed25519.GenerateKey(nil)

func sign(claims jwtlib.MapClaims) string {
	token, err := jwtlib.NewWithClaims(jwtlib.SigningMethodEdDSA, claims).SignedString(private)
	if err != nil {
		panic(err)
	}
	return token
}

func claims(change func(c jwtlib.MapClaims)) jwtlib.MapClaims {
	c := jwtlib.MapClaims{"sub": "ann", "exp": time.Now().Add(time.Hour).Unix(), "iss": "me", "aud": "orders",
		"roles": []string{"admin"}}
	if change != nil {
		change(c)
	}
	return c
}

func TestVerify(t *testing.T) {
	verify := jwt.Verify(jwt.Config{Key: public, Methods: []string{"EdDSA"}, Issuer: "me",
		Audience: "orders"})
	p, err := verify(t.Context(), sign(claims(nil)))
	require.NoError(t, err)
	require.Equal(t, "ann", p.Name)
	require.Equal(t, []string{"admin"}, p.Roles)
	require.WithinDuration(t, time.Now().Add(time.Hour), p.Expires, 2*time.Second)

	hmac, err := jwtlib.NewWithClaims(jwtlib.SigningMethodHS256, claims(nil)).SignedString([]byte(public))
	require.NoError(t, err)
	none, err := jwtlib.NewWithClaims(jwtlib.SigningMethodNone, claims(nil)).
		SignedString(jwtlib.UnsafeAllowNoneSignatureType)
	require.NoError(t, err)
	good := sign(claims(nil))
	later := time.Now().Unix() + 60
	for says, token := range map[string]string{
		"malformed":              "guess",
		"signature is invalid":   good[:len(good)-8] + "AAAAAAAA",
		"signing method HS256":   hmac,
		"signing method none":    none,
		"token is expired":       sign(claims(func(c jwtlib.MapClaims) { c["exp"] = time.Now().Unix() - 1 })),
		"exp claim is required":  sign(claims(func(c jwtlib.MapClaims) { delete(c, "exp") })),
		"token is not valid yet": sign(claims(func(c jwtlib.MapClaims) { c["nbf"] = later })),
		"invalid issuer":         sign(claims(func(c jwtlib.MapClaims) { c["iss"] = "eve" })),
		"invalid audience":       sign(claims(func(c jwtlib.MapClaims) { c["aud"] = "other" })),
		"has no subject":         sign(claims(func(c jwtlib.MapClaims) { delete(c, "sub") })),
		`"roles" is a string`:    sign(claims(func(c jwtlib.MapClaims) { c["roles"] = "admin" })),
		`"roles" has a float64`:  sign(claims(func(c jwtlib.MapClaims) { c["roles"] = []int{1} })),
	} {
		_, err := verify(t.Context(), token)
		require.ErrorContains(t, err, says)
	}
}

func TestKeys(t *testing.T) {
	verify := jwt.Verify(jwt.Config{Methods: []string{"EdDSA"},
		Keys: func(_ context.Context, id string) (any, error) {
			if id != "2026" {
				return nil, fmt.Errorf("the key %q is not known", id)
			}
			return public, nil
		}})
	token := jwtlib.NewWithClaims(jwtlib.SigningMethodEdDSA, claims(nil))
	for id, ok := range map[string]bool{"2026": true, "1": false} {
		token.Header["kid"] = id
		text, err := token.SignedString(private)
		require.NoError(t, err)
		_, err = verify(t.Context(), text)
		require.Equal(t, ok, err == nil, "%v", err)
	}
}

func TestMistakes(t *testing.T) {
	require.PanicsWithValue(t, "jwt: Verify: Config has neither Key nor Keys.",
		func() { jwt.Verify(jwt.Config{Methods: []string{"EdDSA"}}) })
	require.Panics(t, func() { jwt.Verify(jwt.Config{Key: public}) })
}

// A server that takes tokens of an issuer, and two clients.
func ExampleVerify() {
	srv := tp.NewPeer(nil, auth.New(auth.AcceptTokens(jwt.Verify(jwt.Config{Key: public,
		Methods: []string{"EdDSA"}, Issuer: "me", Audience: "orders"}))))
	defer srv.Close()
	tp.HandlePull(srv.PullRouter, "/hello", func(ctx tp.PullCtx, _ *struct{}) (string, tp.Xerror) {
		return "hello " + auth.Name(ctx), nil
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	go srv.Serve(ln)

	for _, token := range []string{sign(claims(nil)), "guess"} {
		cli := tp.NewPeer(nil, auth.New(auth.StaticToken(token)))
		sess, err := cli.Dial(ln.Addr().String())
		var x tp.Xerror
		if errors.As(err, &x) {
			fmt.Println("refused:", x)
		} else if err != nil {
			fmt.Println(err)
		} else {
			fmt.Println(tp.Call[string](context.Background(), sess, "/hello", struct{}{}))
		}
		cli.Close()
	}
	// Output:
	// hello ann <nil>
	// refused: 401 the token is not valid
}
