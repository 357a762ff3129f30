package describe_test

import (
	"context"
	"fmt"
	"net"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/plugin/describe"
)

// Sum is what the route of the example takes.
type Sum struct {
	A int32 `json:"a"`
	B int32 `json:"b,omitempty"`
}

// The server describes itself, and the client, which does not have its types, calls what it finds.
func Example() {
	tp.SetLogLevel(tp.LevelOff)
	srv := tp.NewPeer(nil, describe.New(describe.Hide("/admin/*")))
	defer srv.Close()
	tp.HandlePull(srv.PullRouter, "/add", func(_ tp.PullCtx, s *Sum) (int64, tp.Xerror) {
		return int64(s.A) + int64(s.B), nil
	}, describe.About("Adds two numbers."))
	tp.HandlePull(srv.PullRouter, "/admin/stop", func(tp.PullCtx, *struct{}) (bool, tp.Xerror) {
		return true, nil
	})
	cli := tp.NewPeer(nil)
	defer cli.Close()
	sess := connect(srv, cli)

	d, err := describe.Fetch(context.Background(), sess)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, r := range d.Routes {
		fmt.Println(r.Kind, r.Path, r.Argument.GoType, r.Reply.GoType, r.Doc)
	}
	add := d.Find("/add", describe.Pull)
	schema, err := d.Bundle(add.Argument)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, def := range schema.Defs {
		fmt.Println("a:", def.Properties["a"].Type, def.Properties["a"].Format)
	}
	fmt.Println(d.Validate(add.Argument, []byte(`{"a":"1"}`)) != nil)
	sum, err := tp.Call[int64](context.Background(), sess, "/add", map[string]int{"a": 1, "b": 2})
	fmt.Println(sum, err)
	// Output:
	// pull /add describe_test.Sum int64 Adds two numbers.
	// a: integer int32
	// true
	// 3 <nil>
}

// Only some may ask; with the plugin auth the function may look at auth.Identity(ctx).
func ExampleAccess() {
	tp.SetLogLevel(tp.LevelOff)
	srv := tp.NewPeer(nil, describe.New(describe.Access(func(ctx tp.PullCtx) tp.Xerror {
		if _, inside := ctx.Session().Public().Load("inside"); !inside {
			return tp.NewXerror(tp.StatusForbidden, "the description is not for everybody")
		}
		return nil
	})))
	defer srv.Close()
	cli := tp.NewPeer(nil)
	defer cli.Close()
	_, err := describe.Fetch(context.Background(), connect(srv, cli))
	fmt.Println(err)
	// Output:
	// describe: fetching from session server: 403 the description is not for everybody
}

// connect connects two peers by a connection in memory.
func connect(srv, cli *tp.Peer) *tp.Session {
	near, far := net.Pipe()
	go srv.ServeConn(near)
	sess, err := cli.DialConn(context.Background(), far, "server")
	if err != nil {
		panic(err)
	}
	return sess
}
