// Quickstart shows the main job in one process: a server and a client that pull
// from each other, a push, a route that does not exist, and a plugin.
package main

import (
	"fmt"
	"log"
	"net"
	"time"

	tp "github.com/henrylee2cn/teleport"
)

// Math answers pulls for the server.
type Math struct {
	tp.PullCtx
}

// Add serves /math/add. Before it answers, it asks its caller something: either
// side of a connection may call the other.
func (m *Math) Add(args *[2]int) (int, tp.Xerror) {
	var name string
	if cmd := m.Session().Pull("/who/are_you", nil, &name); cmd.Xerror != nil {
		return 0, cmd.Xerror
	}
	fmt.Printf("server: %s wants %d + %d\n", name, args[0], args[1])
	return args[0] + args[1], nil
}

// Who answers pulls for the client.
type Who struct {
	tp.PullCtx
}

// AreYou serves /who/are_you.
func (w *Who) AreYou(*struct{}) (string, tp.Xerror) {
	return "quickstart", nil
}

// News takes pushes for the client.
type News struct {
	tp.PushCtx
	Seen chan string // every call gets a copy of the controller with this channel in it
}

// Flash serves /news/flash.
func (n *News) Flash(text *string) {
	n.Seen <- fmt.Sprintf("%s (about %s)", *text, n.Query().Get("about"))
}

// Timer is a plugin with two of the twenty-two hooks: it measures each pull that
// its peer makes.
type Timer struct{}

// Name names the plugin.
func (Timer) Name() string { return "timer" }

// PreWritePull runs before a pull is sent.
func (Timer) PreWritePull(ctx tp.WriteCtx) error {
	ctx.Public().Store("start", time.Now())
	return nil
}

// PostReadBody runs when the reply is there. It shares Public with the pull.
func (Timer) PostReadBody(ctx tp.ReadCtx) error {
	if start, ok := ctx.Public().Load("start"); ok {
		fmt.Printf("plugin: the reply took %v\n", time.Since(start.(time.Time)).Round(time.Microsecond))
	}
	return nil
}

// newServer makes the server.
func newServer(plugins ...tp.Plugin) *tp.Peer {
	server := tp.NewPeer(&tp.PeerConfig{}, plugins...)
	server.PullRouter.Reg(new(Math))
	return server
}

// newClient makes the client.
func newClient(news *News) *tp.Peer {
	client := tp.NewPeer(&tp.PeerConfig{}, Timer{})
	client.PullRouter.Reg(new(Who))
	client.PushRouter.Reg(news)
	return client
}

func main() {
	// A server on a free port.
	server := newServer()
	defer server.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go server.Serve(ln)

	// A client, with handlers of its own.
	news := &News{Seen: make(chan string)}
	client := newClient(news)
	defer client.Close()
	sess, err := client.Dial(ln.Addr().String())
	if err != nil {
		log.Fatal(err)
	}

	// The client pulls, and while it waits the server pulls from it.
	var sum int
	if cmd := sess.Pull("/math/add", [2]int{1, 2}, &sum); cmd.Xerror != nil {
		log.Fatal(cmd.Xerror)
	}
	fmt.Println("client: 1 + 2 =", sum)

	// The server pushes to every session it has.
	server.RangeSession(func(s *tp.Session) bool {
		if err := s.Push("/news/flash?about=teleport", "hello from the server"); err != nil {
			log.Fatal(err)
		}
		return true
	})
	fmt.Println("client: pushed to me:", <-news.Seen)

	// A path that nobody serves is an error of that one pull.
	cmd := sess.Pull("/no/such/path", nil, nil)
	fmt.Println("client: /no/such/path:", cmd.Xerror)

	// Unless somebody takes what is unknown.
	server.PullRouter.SetUnknown(func(ctx tp.UnknownPullCtx, body *[]byte) (interface{}, tp.Xerror) {
		return "nothing is at " + ctx.Path(), nil
	})
	var answer string
	if cmd := sess.Pull("/no/such/path", nil, &answer); cmd.Xerror != nil {
		log.Fatal(cmd.Xerror)
	}
	fmt.Println("client: /no/such/path:", answer)
}
