// Package withtp is the small service of docs/calls.md, written with teleport.
package withtp

import (
	"context"
	"fmt"
	"net"
	"time"

	tp "github.com/henrylee2cn/teleport"
)

type Terms struct{ A, B int }

type TooYoung struct{ Min int }

var (
	add   = tp.NewMethod[Terms, int]("/add")
	wait  = tp.NewMethod[string, string]("/wait")
	join  = tp.NewMethod[int, string]("/join")
	hello = tp.NewMethod[string, string]("/hello")
	name  = tp.NewMethod[string, string]("/name") // the client's
)

func newServer() *tp.Peer {
	srv := tp.NewPeer(nil)
	tp.HandlePull(srv.PullRouter, add.Uri(), func(_ tp.PullCtx, t *Terms) (int, tp.Xerror) {
		return t.A + t.B, nil
	})
	tp.HandlePull(srv.PullRouter, wait.Uri(), func(ctx tp.PullCtx, _ *string) (string, tp.Xerror) {
		<-ctx.Context().Done()
		return "", tp.NewXerror(tp.StatusGatewayTimeout, ctx.Context().Err().Error())
	})
	tp.HandlePull(srv.PullRouter, join.Uri(), func(_ tp.PullCtx, age *int) (string, tp.Xerror) {
		if *age < 18 {
			return "", tp.WithDetails(tp.NewXerror(422, "too young"), TooYoung{Min: 18})
		}
		return "welcome", nil
	})
	tp.HandlePull(srv.PullRouter, hello.Uri(), func(ctx tp.PullCtx, _ *string) (string, tp.Xerror) {
		who, err := name.Call(ctx.Context(), ctx.Session(), "")
		if err != nil {
			return "", tp.NewXerror(tp.StatusBadGateway, err.Error())
		}
		return "hello " + who, nil
	})
	return srv
}

// Run starts a server and a client and returns what the client saw.
func Run(ctx context.Context) (seen []string, err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	srv := newServer()
	defer srv.Close()
	go srv.Serve(ln)
	cli := tp.NewPeer(nil)
	defer cli.Close()
	tp.HandlePull(cli.PullRouter, name.Uri(), func(tp.PullCtx, *string) (string, tp.Xerror) {
		return "Ada", nil
	})
	sess, err := cli.Dial(ln.Addr().String())
	if err != nil {
		return nil, err
	}

	sum, err := add.Call(ctx, sess, Terms{1, 2})
	seen = append(seen, fmt.Sprint(sum, err))

	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err = wait.Call(short, sess, "")
	seen = append(seen, fmt.Sprint(err != nil))

	_, err = join.Call(ctx, sess, 12)
	var why TooYoung
	if _, err := tp.Details(err, &why); err != nil {
		return nil, err
	}
	seen = append(seen, fmt.Sprint("too young: ", why.Min))

	greeting, err := hello.Call(ctx, sess, "")
	if err != nil {
		return nil, err
	}
	return append(seen, greeting), nil
}
