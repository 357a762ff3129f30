package tp_test

import (
	"fmt"

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
