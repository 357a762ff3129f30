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
		`"roles" is a float64`:   sign(claims(func(c jwtlib.MapClaims) { c["roles"] = 7 })),
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

// A key that is not there, or too short, lets nobody in; an error of Keys stays what it is.
func TestKeysThatAreNone(t *testing.T) {
	keys := map[string][]byte{"short": []byte("short"), "good": []byte("0123456789abcdef")}
	verify := jwt.Verify(jwt.Config{Methods: []string{"HS256"},
		Keys: func(_ context.Context, id string) (any, error) {
			if id == "away" {
				return nil, tp.NewXerror(tp.StatusServiceUnavailable, "the keys cannot be fetched")
			}
			return keys[id], nil
		}})
	token := jwtlib.NewWithClaims(jwtlib.SigningMethodHS256, claims(nil))
	for id, says := range map[string]string{"good": "", "short": "16 bytes at least",
		"none": "16 bytes at least", "away": "503 the keys cannot be fetched"} {
		key := keys[id]
		if key == nil {
			key = []byte{}
		}
		token.Header["kid"] = id
		text, err := token.SignedString(key)
		require.NoError(t, err)
		_, err = verify(t.Context(), text)
		if says == "" {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, says)
		var x tp.Xerror
		require.Equal(t, id == "away", errors.As(err, &x))
	}
}

// A clock that is behind, and a scope.
func TestLeewayAndScope(t *testing.T) {
	late := sign(claims(func(c jwtlib.MapClaims) {
		c["exp"], c["nbf"] = time.Now().Unix()-5, time.Now().Unix()+5
		c["scope"] = "read write"
	}))
	_, err := jwt.Verify(jwt.Config{Key: public, Methods: []string{"EdDSA"}})(t.Context(), late)
	require.Error(t, err)
	p, err := jwt.Verify(jwt.Config{Key: public, Methods: []string{"EdDSA"}, Leeway: time.Minute,
		Roles: "scope"})(t.Context(), late)
	require.NoError(t, err)
	require.Equal(t, []string{"read", "write"}, p.Roles)
	require.True(t, p.Expires.After(time.Now()))
}

func TestMistakes(t *testing.T) {
	for says, c := range map[string]jwt.Config{
		`there is no method "HS257"`:            {Key: public, Methods: []string{"HS257"}},
		`there is no method "none"`:             {Key: public, Methods: []string{"none"}},
		"expected an ed25519.PublicKey":         {Key: private, Methods: []string{"EdDSA"}},
		"expected an *rsa.PublicKey":            {Key: public, Methods: []string{"RS256"}},
		"expected an *ecdsa.PublicKey":          {Key: public, Methods: []string{"ES256"}},
		"expected a []byte of 16 bytes at":      {Key: []byte{}, Methods: []string{"HS256"}},
		"is a ed25519.PublicKey, or empty, or ": {Key: ed25519.PublicKey(nil), Methods: []string{"EdDSA"}},
	} {
		func() {
			defer func() { require.Contains(t, fmt.Sprint(recover()), says) }()
			jwt.Verify(c)
		}()
	}
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
