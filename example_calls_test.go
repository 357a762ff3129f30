package tp_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	tp "github.com/henrylee2cn/teleport"
)

// session connects a client to a server, for the examples.
func session(srv *tp.Peer) (sess *tp.Session, end func()) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go srv.Serve(ln)
	cli := tp.NewPeer(nil)
	sess, err = cli.Dial(ln.Addr().String())
	if err != nil {
		panic(err)
	}
	return sess, func() { cli.Close(); srv.Close() }
}

// A pull ends with its context, and the handler on the other side is told.
func ExampleSession_PullContext() {
	srv := tp.NewPeer(nil)
	told := make(chan error)
	tp.HandlePull(srv.PullRouter, "/slow", func(ctx tp.PullCtx, _ *string) (string, tp.Xerror) {
		<-ctx.Context().Done() // the caller's deadline has travelled here
		told <- ctx.Context().Err()
		return "", nil
	})
	sess, end := session(srv)
	defer end()

	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	x := sess.PullContext(ctx, "/slow", "", nil).Xerror
	fmt.Println(x.Code(), errors.Is(x, context.DeadlineExceeded))
	fmt.Println("handler:", <-told)
	// Output:
	// 102 true
	// handler: context deadline exceeded
}

// Metadata goes beside the body, both ways.
func ExampleWithMeta() {
	srv := tp.NewPeer(nil)
	tp.HandlePull(srv.PullRouter, "/who", func(ctx tp.PullCtx, _ *string) (string, tp.Xerror) {
		ctx.SetMeta("served-by", "node 7")
		return "token " + ctx.Meta()["token"], nil
	})
	sess, end := session(srv)
	defer end()

	var reply string
	cmd := sess.Pull("/who", "", &reply, tp.WithMeta("token", "abc"))
	fmt.Println(reply)
	fmt.Println(cmd.Meta()["served-by"])
	// Output:
	// token abc
	// node 7
}

// TooYoung is for programs, the error's text for people.
type TooYoung struct{ Min int }

// An error has a code, a text and, if a program is to make something of it, details.
func ExampleWithDetails() {
	errTooYoung := tp.NewXerror(422, "too young")
	srv := tp.NewPeer(nil)
	tp.HandlePull(srv.PullRouter, "/join", func(_ tp.PullCtx, age *int) (string, tp.Xerror) {
		if *age < 18 {
			return "", tp.WithDetails(errTooYoung, TooYoung{Min: 18})
		}
		return "welcome", nil
	})
	sess, end := session(srv)
	defer end()

	_, err := tp.Call[string](context.Background(), sess, "/join", 12)
	var why TooYoung
	if found, _ := tp.Details(err, &why); found && errors.Is(err, errTooYoung) {
		fmt.Println(err, why.Min)
	}
	// Output: 422 too young 18
}

// Add and Said are in a package that the server and its clients import.
var (
	Add  = tp.NewMethod[[]int, int]("/math/add")
	Said = tp.NewNote[string]("/chat/said")
)

// One definition for both sides: the compiler checks the handler and the call.
func ExampleNewMethod() {
	srv := tp.NewPeer(nil)
	Add.Handle(srv.PullRouter, func(ctx tp.PullCtx, terms *[]int) (int, tp.Xerror) {
		sum := 0
		for _, n := range *terms {
			sum += n
		}
		ctx.SetMeta("served-by", "node 7")
		return sum, nil
	})
	sess, end := session(srv)
	defer end()

	var meta map[string]string
	sum, err := Add.Call(context.Background(), sess, []int{1, 2, 3}, tp.WithReplyMeta(&meta))
	fmt.Println(sum, err, meta["served-by"])
	// Output: 6 <nil> node 7
}

// The same for what goes one way.
func ExampleNewNote() {
	srv := tp.NewPeer(nil)
	said := make(chan string)
	Said.Handle(srv.PushRouter, func(_ tp.PushCtx, text *string) { said <- *text })
	sess, end := session(srv)
	defer end()

	fmt.Println(Said.Push(context.Background(), sess, "hello"))
	fmt.Println(<-said)
	// Output:
	// <nil>
	// hello
}

// A loop that makes a call again knows what is worth it, and for how long the other side asks
// to wait.
func ExampleRetryable() {
	srv := tp.NewPeer(nil)
	busy := 2
	tp.HandlePull(srv.PullRouter, "/report", func(_ tp.PullCtx, _ *string) (string, tp.Xerror) {
		if busy--; busy >= 0 {
			return "", tp.WithRetryAfter(tp.NewXerror(tp.StatusOverloaded, "busy"), 5*time.Millisecond)
		}
		return "here it is", nil
	})
	sess, end := session(srv)
	defer end()

	for attempt := 1; attempt <= 5; attempt++ {
		report, err := tp.Call[string](context.Background(), sess, "/report", "")
		after, again := tp.Retryable(err)
		if !again {
			fmt.Println(report, err)
			break
		}
		fmt.Println(err, after)
		time.Sleep(max(after, time.Millisecond))
	}
	// Output:
	// 429 busy 5ms
	// 429 busy 5ms
	// here it is <nil>
}

// Call is for a method that is called in one place.
func ExampleCall() {
	srv := tp.NewPeer(nil)
	tp.HandlePull(srv.PullRouter, "/length", func(_ tp.PullCtx, s *string) (int, tp.Xerror) {
		return len(*s), nil
	})
	sess, end := session(srv)
	defer end()

	n, err := tp.Call[int](context.Background(), sess, "/length", "teleport")
	fmt.Println(n, err)
	_, err = tp.Call[int](context.Background(), sess, "/no/such/path", "")
	fmt.Println(err, tp.NotRun(err))
	// Output:
	// 8 <nil>
	// 404 not found: nothing here takes pulls to "/no/such/path" true
}
