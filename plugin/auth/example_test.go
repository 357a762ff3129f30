package auth_test

import (
	"context"
	"errors"
	"fmt"
	"net"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/plugin/auth"
)

// A server that knows two tokens, and a client with one of them and a client with neither.
func Example() {
	srv := tp.NewPeer(nil, auth.New(
		auth.AcceptTokens(auth.StaticTokens(map[string]*auth.Principal{
			"ann's token": {Name: "ann", Roles: []string{"admin"}},
			"bob's token": {Name: "bob"},
		})),
		auth.Rule("/admin/*", "admin"),
	))
	defer srv.Close()
	hello := func(ctx tp.PullCtx, _ *struct{}) (string, tp.Xerror) {
		return "hello " + auth.Name(ctx), nil
	}
	tp.HandlePull(srv.PullRouter, "/hello", hello)
	tp.HandlePull(srv.PullRouter, "/admin/hello", hello)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	go srv.Serve(ln)

	for _, token := range []string{"ann's token", "bob's token", "a guess"} {
		cli := tp.NewPeer(nil, auth.New(auth.StaticToken(token)))
		sess, err := cli.Dial(ln.Addr().String())
		var x tp.Xerror
		if errors.As(err, &x) {
			fmt.Println("refused:", x.Code(), x.Text())
		} else if err != nil {
			fmt.Println(err)
		} else {
			for _, uri := range []string{"/hello", "/admin/hello"} {
				fmt.Println(tp.Call[string](context.Background(), sess, uri, struct{}{}))
			}
		}
		cli.Close()
	}
	// Output:
	// hello ann <nil>
	// hello ann <nil>
	// hello bob <nil>
	//  403 /admin/hello needs the role admin, which "bob" does not have
	// refused: 401 the token is not valid
}

// Both sides prove that they know a secret, which does not cross the wire.
func ExampleSecret() {
	secret := []byte("32 random bytes that both know..")
	srv := tp.NewPeer(nil, auth.New(auth.AcceptSecrets(
		func(_ context.Context, id string) ([]byte, *auth.Principal, error) {
			if id != "device 7" {
				return nil, nil, nil // which looks to the other side as a wrong secret does
			}
			return secret, &auth.Principal{Name: id}, nil
		})))
	defer srv.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	go srv.Serve(ln)

	cli := tp.NewPeer(nil, auth.New(auth.Secret("device 7", secret)))
	defer cli.Close()
	sess, err := cli.Dial(ln.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("the server knows the secret of", auth.Of(sess).Name)
	other := tp.NewPeer(nil, auth.New(auth.Secret("device 7", []byte("quite another secret"))))
	defer other.Close()
	_, err = other.Dial(ln.Addr().String())
	var x tp.Xerror
	fmt.Println(errors.As(err, &x), x)
	// Output:
	// the server knows the secret of device 7
	// true 401 the id is not known, or the secret is another
}
