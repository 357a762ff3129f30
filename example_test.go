package tp_test

import (
	"context"
	"errors"
	"fmt"
	"net"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/packet"
)

// Calc answers pulls at /calc/...
type Calc struct{ tp.PullCtx }

// Add serves /calc/add.
func (c *Calc) Add(args *[2]int) (int, tp.Xerror) { return args[0] + args[1], nil }

// Div serves /calc/div.
func (c *Calc) Div(args *[2]int) (int, tp.Xerror) {
	if args[1] == 0 {
		return 0, tp.NewXerror(1001, "division by zero")
	}
	return args[0] / args[1], nil
}

// Note takes pushes at /note/...
type Note struct {
	tp.PushCtx
	Got chan string
}

// Down serves /note/down.
func (n *Note) Down(text *string) { n.Got <- *text + " from " + n.Query().Get("by") }

// serve lets the peer listen on a free port and returns the address.
func serve(p *tp.Peer) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go p.Serve(ln)
	return ln.Addr().String()
}

func Example() {
	server, client := tp.NewPeer(nil), tp.NewPeer(nil)
	defer server.Close()
	defer client.Close()
	server.PullRouter.Reg(new(Calc))
	sess, err := client.Dial(serve(server))
	if err != nil {
		panic(err)
	}
	var sum int
	if cmd := sess.Pull("/calc/add", [2]int{1, 2}, &sum); cmd.Xerror != nil {
		panic(cmd.Xerror)
	}
	fmt.Println(sum)
	cmd := sess.Pull("/calc/div", [2]int{1, 0}, nil)
	fmt.Println(cmd.Xerror.Code(), cmd.Xerror.Text())
	// Output:
	// 3
	// 1001 division by zero
}

func ExampleSession_GoPull() {
	server, client := tp.NewPeer(nil), tp.NewPeer(nil)
	defer server.Close()
	defer client.Close()
	server.PullRouter.Reg(new(Calc))
	sess, err := client.Dial(serve(server))
	if err != nil {
		panic(err)
	}
	done := make(chan *tp.PullCmd, 10)
	for i := range 10 {
		sess.GoPull("/calc/add", [2]int{i, i}, new(int), done)
	}
	total := 0
	for range 10 {
		reply, xerr := (<-done).Result()
		if xerr != nil {
			panic(xerr)
		}
		total += *reply.(*int)
	}
	fmt.Println(total)
	// Output: 90
}

func ExampleSession_Push() {
	server, client := tp.NewPeer(nil), tp.NewPeer(nil)
	defer server.Close()
	defer client.Close()
	note := &Note{Got: make(chan string)}
	server.PushRouter.Reg(note)
	sess, err := client.Dial(serve(server))
	if err != nil {
		panic(err)
	}
	if err := sess.Push("/note/down?by=me", "hello"); err != nil {
		panic(err)
	}
	fmt.Println(<-note.Got)
	// Output: hello from me
}

func ExamplePullRouter_SetUnknown() {
	server, client := tp.NewPeer(nil), tp.NewPeer(nil)
	defer server.Close()
	defer client.Close()
	server.PullRouter.Group("files").SetUnknown(func(ctx tp.UnknownPullCtx, body *[]byte) (interface{},
		tp.Xerror) {
		var v interface{}
		codecName, err := ctx.Unmarshal(*body, &v)
		if err != nil {
			return nil, tp.NewXerror(tp.StatusBadRequest, err.Error())
		}
		return fmt.Sprintf("%s: %v in %s", ctx.Path(), v, codecName), nil
	})
	sess, err := client.Dial(serve(server))
	if err != nil {
		panic(err)
	}
	var answer string
	sess.Pull("/files/any/where", "a question", &answer)
	fmt.Println(answer)
	fmt.Println(sess.Pull("/elsewhere", nil, nil).Xerror)
	// Output:
	// /files/any/where: a question in json
	// 404 not found: nothing here takes pulls to "/elsewhere"
}

// ShowToken is the client's plugin: it shows a token before anything else is sent, on each
// new connection.
type ShowToken struct{ Token string }

func (ShowToken) Name() string { return "token" }

func (t ShowToken) PostDial(s tp.ForeSession) error {
	return s.Send(&packet.Packet{Header: &packet.Header{Type: packet.TypePush}, Body: t.Token})
}

// CheckToken is the server's plugin: it lets in who shows a token that it knows, before
// anything is routed.
type CheckToken struct{ Users map[string]string }

func (CheckToken) Name() string { return "token" }

func (t CheckToken) PostAccept(s tp.ForeSession) error {
	var token string
	if _, err := s.Receive(&token); err != nil {
		return err // the client is told: 401 if it has sent a pull instead, for example
	}
	user, ok := t.Users[token]
	if !ok {
		return tp.NewXerror(tp.StatusUnauthorized, "wrong token")
	}
	s.Public().Store("user", user) // for handlers
	return nil
}

// Plugins authenticate connections in the handshake. Who is refused is told why by Dial, and
// does not redial for it.
func ExamplePlugin() {
	server := tp.NewPeer(nil, CheckToken{map[string]string{"s3cret": "ann"}})
	defer server.Close()
	tp.HandlePull(server.PullRouter, "/me", func(ctx tp.PullCtx, _ *struct{}) (string, tp.Xerror) {
		user, _ := ctx.Public().Load("user")
		return user.(string), nil
	})
	addr := serve(server)
	for _, token := range []string{"s3cret", "guess"} {
		client := tp.NewPeer(&tp.PeerConfig{Redial: new(tp.Redial)}, ShowToken{token})
		sess, err := client.Dial(addr)
		var refused tp.Xerror
		if errors.As(err, &refused) {
			fmt.Println("refused:", refused.Code(), refused.Text())
		} else if err == nil {
			me, err := tp.Call[string](context.Background(), sess, "/me", nil)
			fmt.Println("connected as", me, err)
		}
		client.Close()
	}
	// Output:
	// connected as ann <nil>
	// refused: 401 wrong token
}

func ExamplePeer_Shutdown() {
	server, client := tp.NewPeer(nil), tp.NewPeer(nil)
	defer client.Close()
	server.PullRouter.Reg(new(Calc))
	sess, err := client.Dial(serve(server))
	if err != nil {
		panic(err)
	}
	fmt.Println(sess.Pull("/calc/add", [2]int{1, 2}, nil).Xerror)
	fmt.Println(server.Shutdown(context.Background()))
	<-sess.Done()
	fmt.Println(sess.Pull("/calc/add", [2]int{1, 2}, nil).Xerror.Code() == tp.StatusConnClosed)
	// Output:
	// <nil>
	// <nil>
	// true
}
