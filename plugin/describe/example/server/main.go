// Server has the routes of the server in the repository's examples, and an order book, and describes them:
// see the program list beside it.
package main

import (
	"flag"
	"sync"
	"time"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/plugin/describe"
)

//go:generate go run github.com/henrylee2cn/teleport/plugin/describe/cmd/tpdoc

var addr = flag.String("addr", "127.0.0.1:9090", "address to listen on; port 0 takes a free one")

func main() {
	flag.Parse()
	go tp.GraceSignal()
	peer := tp.NewPeer(&tp.PeerConfig{ListenAddrs: []string{*addr}}, describe.New())
	group := peer.PullRouter.Group("group")
	group.Reg(new(Home))
	group.Reg(&Orders{book: new(book)})
	tp.HandlePush(peer.PushRouter, "/note", takeNote)
	tp.HandleStream(peer.PullRouter, "/ticks", tick)
	tp.HandlePull(peer.PullRouter, "/internal/reset",
		func(tp.PullCtx, *struct{}) (bool, tp.Xerror) { return true, nil }, describe.Hidden())
	peer.PullRouter.SetUnknown(unknownPull)
	if err := peer.Listen(); err != nil {
		tp.Fatalf("%v", err)
	}
}

// Home serves /group/home/...
type Home struct {
	tp.PullCtx
}

// Test answers with what it was sent.
func (h *Home) Test(args *map[string]interface{}) (map[string]interface{}, tp.Xerror) {
	return map[string]interface{}{"your_args": *args, "server_time": time.Now()}, nil
}

// Order is something that somebody wants to have.
type Order struct {
	Article string   `json:"article"` // Article is its number in the catalogue.
	Count   int32    `json:"count"`
	Tags    []string `json:"tags,omitempty"`
	// Gift says that it is wrapped, and by whom it is given.
	Gift *Gift `json:"gift,omitempty"`
}

// Gift is how an order is wrapped.
type Gift struct {
	From string `json:"from"`
}

// Receipt says what was ordered.
type Receipt struct {
	Number int   `json:"number"`
	Order  Order `json:"order"`
}

// Orders serves /group/orders/...
type Orders struct {
	tp.PullCtx
	book *book
}

type book struct {
	mu   sync.Mutex // guards the fields below
	last int
}

func (b *book) next() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last++
	return b.last
}

// Place takes an order, and answers with its number.
func (o *Orders) Place(order *Order) (*Receipt, tp.Xerror) {
	return &Receipt{Number: o.book.next(), Order: *order}, nil
}

// takeNote writes a note into the log.
func takeNote(ctx tp.PushCtx, text *string) { tp.Infof("%s notes: %q", ctx.Ip(), *text) }

// tick sends the time once a second, until the other side has enough.
func tick(ctx tp.PullCtx, s *tp.Stream[time.Time, struct{}]) tp.Xerror {
	every := time.NewTicker(time.Second)
	defer every.Stop()
	for {
		select {
		case now := <-every.C:
			if err := s.Send(&now); err != nil {
				return nil
			}
		case <-ctx.Context().Done():
			return nil
		}
	}
}

// unknownPull answers every pull that has no handler of its own.
func unknownPull(ctx tp.UnknownPullCtx, _ *[]byte) (interface{}, tp.Xerror) {
	return []string{"nobody", "serves", ctx.Path()}, nil
}
