package tp_test

import (
	"context"
	"fmt"
	"net"
	"time"

	tp "github.com/henrylee2cn/teleport"
)

func ExampleHandlePull() {
	srv, cli := tp.NewPeer(nil), tp.NewPeer(nil)
	defer srv.Close()
	defer cli.Close()
	tp.HandlePull(srv.PullRouter, "/math/add", func(_ tp.PullCtx, args *[]int) (int, tp.Xerror) {
		if len(*args) == 0 {
			return 0, tp.NewXerror(1002, "nothing to add")
		}
		sum := 0
		for _, n := range *args {
			sum += n
		}
		return sum, nil
	})
	sess, err := cli.Dial(serve(srv))
	if err != nil {
		panic(err)
	}
	var sum int
	if cmd := sess.Pull("/math/add", []int{1, 2, 3}, &sum); cmd.Xerror != nil {
		panic(cmd.Xerror)
	}
	fmt.Println(sum)
	fmt.Println(sess.Pull("/math/add", []int{}, &sum).Xerror)
	// Output:
	// 6
	// 1002 nothing to add
}

func ExampleHandlePush() {
	srv, cli := tp.NewPeer(nil), tp.NewPeer(nil)
	defer srv.Close()
	defer cli.Close()
	got := make(chan string)
	tp.HandlePush(srv.PushRouter.Group("news"), "/flash", func(ctx tp.PushCtx, text *string) {
		got <- ctx.Path() + ": " + *text
	})
	sess, err := cli.Dial(serve(srv))
	if err != nil {
		panic(err)
	}
	if x := sess.Push("/news/flash", "it rains"); x != nil {
		panic(x)
	}
	fmt.Println(<-got)
	// Output: /news/flash: it rains
}

// Positions of players are handled in order for each player, and those of different players at once.
func ExampleOrderedBy() {
	srv, cli := tp.NewPeer(nil), tp.NewPeer(nil)
	defer srv.Close()
	defer cli.Close()
	seen := make(chan string)
	tp.HandlePush(srv.PushRouter, "/moved", func(ctx tp.PushCtx, at *int) {
		seen <- fmt.Sprint(ctx.Query().Get("player"), " at ", *at)
	}, tp.OrderedBy(func(ctx tp.PushCtx) string { return ctx.Query().Get("player") }))
	a, b := net.Pipe()
	go srv.ServeConn(a)
	sess, err := cli.DialConn(context.Background(), b)
	if err != nil {
		fmt.Println(err)
		return
	}
	for at := range 3 {
		if x := sess.Push("/moved?player=ann", at); x != nil {
			fmt.Println(x)
		}
	}
	for range 3 {
		fmt.Println(<-seen)
	}
	// Output:
	// ann at 0
	// ann at 1
	// ann at 2
}

// A room of a chat: what one member says goes to all of them, and is encoded once.
func ExampleGroup() {
	srv, cli := tp.NewPeer(nil), tp.NewPeer(nil)
	defer srv.Close()
	defer cli.Close()
	room := srv.Group("lobby")
	tp.HandlePull(srv.PullRouter, "/join", func(ctx tp.PullCtx, name *string) (int, tp.Xerror) {
		if err := room.Join(ctx.Session()); err != nil {
			return 0, tp.NewXerror(tp.StatusConnClosed, err.Error())
		}
		return room.Len(), nil
	})
	queued := make(chan int, 1)
	tp.HandlePush(srv.PushRouter, "/say", func(ctx tp.PushCtx, text *string) {
		queued <- room.Push("/said", *text).Queued
	})
	heard := make(chan string)
	tp.HandlePush(cli.PushRouter, "/said", func(_ tp.PushCtx, text *string) { heard <- *text })

	sess, err := cli.Dial(serve(srv))
	if err != nil {
		fmt.Println(err)
		return
	}
	members, x := tp.Call[int](context.Background(), sess, "/join", "ann")
	fmt.Println(members, x)
	sess.Push("/say", "good morning")
	fmt.Println(<-heard)
	fmt.Printf("for %d members\n", <-queued)
	// Output:
	// 1 <nil>
	// good morning
	// for 1 members
}

// Of the positions of a tick only the last one of each player goes to the members, and all lines of the chat.
func ExampleLatest() {
	srv, cli := tp.NewPeer(nil), tp.NewPeer(nil)
	defer srv.Close()
	defer cli.Close()
	got := make(chan string)
	tp.HandlePush(cli.PushRouter, "/moved", func(ctx tp.PushCtx, x *int) {
		got <- fmt.Sprint(ctx.Query().Get("player"), " is at ", *x)
	})
	tp.HandlePush(cli.PushRouter, "/said", func(_ tp.PushCtx, text *string) { got <- *text })
	a, b := net.Pipe()
	go cli.ServeConn(b)
	member, err := srv.ServeConn(a)
	if err != nil {
		fmt.Println(err)
		return
	}

	room := srv.Group("arena")
	room.Batch(50 * time.Millisecond) // everything of a tick in one write
	if err := room.Join(member); err != nil {
		fmt.Println(err)
		return
	}
	room.Push("/said", "hello")
	for x := range 3 {
		room.Push("/moved?player=ann", x, tp.Latest("ann"))
	}
	room.Push("/said", "bye")
	room.Flush() // or the end of the 50 ms
	for range 3 {
		fmt.Println(<-got)
	}
	// Output:
	// hello
	// ann is at 2
	// bye
}
