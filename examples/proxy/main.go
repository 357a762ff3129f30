// Proxy shows a gateway: a peer that forwards what it does not know to another
// peer, in both kinds, without decoding a body.
package main

import (
	"fmt"
	"log"
	"net"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/plugin/proxy"
)

// Stock is the service behind the gateway.
type Stock struct {
	tp.PullCtx
}

// Count serves /stock/count.
func (s *Stock) Count(item *string) (int, tp.Xerror) {
	if *item != "apples" {
		return 0, tp.NewXerror(tp.StatusNotFound, "no "+*item)
	}
	return 42, nil
}

// Order takes pushes behind the gateway.
type Order struct {
	tp.PushCtx
	Seen chan string
}

// New serves /order/new.
func (o *Order) New(item *string) { o.Seen <- *item }

func main() {
	order := &Order{Seen: make(chan string)}
	service := newService(order)

	gateway := tp.NewPeer(nil)
	defer gateway.Close()
	upstream, err := gateway.Dial(serve(service))
	check(err)
	forward(gateway, upstream)

	client := tp.NewPeer(nil)
	defer client.Close()
	sess, err := client.Dial(serve(gateway))
	check(err)

	// Compressed protobuf, JSON or text: the gateway passes it on as it is.
	var n int
	if cmd := sess.Pull("/stock/count", "apples", &n, tp.WithGzip(9)); cmd.Xerror != nil {
		log.Fatal(cmd.Xerror)
	}
	fmt.Println("apples:", n)

	// The status is the service's own.
	fmt.Println("pears:", sess.Pull("/stock/count", "pears", &n).Xerror)

	if err := sess.Push("/order/new", "apples"); err != nil {
		log.Fatal(err)
	}
	fmt.Println("ordered:", <-order.Seen)

	// A service that is gone is a bad gateway, and the client's session lives on.
	check(service.Close())
	<-upstream.Done()
	fmt.Println("afterwards:", sess.Pull("/stock/count", "apples", &n).Xerror)
}

// newService makes the service.
func newService(order *Order) *tp.Peer {
	service := tp.NewPeer(nil)
	service.PullRouter.Reg(new(Stock))
	service.PushRouter.Reg(order)
	return service
}

// forward has the gateway forward what it does not know.
func forward(gateway *tp.Peer, upstream *tp.Session) {
	to := proxy.To(upstream)
	gateway.PullRouter.SetUnknown(to.Pull)
	gateway.PushRouter.SetUnknown(to.Push)
}

// serve lets p listen on a free port and returns the address.
func serve(p *tp.Peer) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	go p.Serve(ln)
	return ln.Addr().String()
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
