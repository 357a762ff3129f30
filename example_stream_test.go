package tp_test

import (
	"context"
	"fmt"
	"io"
	"strings"

	tp "github.com/henrylee2cn/teleport"
)

// A feed: the handler sends as long as the other side receives.
func ExampleOpenStream() {
	type tick struct{ N int }
	srv := tp.NewPeer(nil)
	tp.HandleStream(srv.PullRouter, "/ticks", func(ctx tp.PullCtx, s *tp.Stream[tick, string]) tp.Xerror {
		for n := 1; ; n++ {
			if err := s.Send(&tick{n}); err != nil {
				return nil // the other side has closed the stream
			}
		}
	})
	sess, end := session(srv)
	defer end()
	s, err := tp.OpenStream[string, tick](context.Background(), sess, "/ticks")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Close()
	for v, err := range s.All() {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(v.N)
		if v.N == 3 {
			break
		}
	}
	// Output:
	// 1
	// 2
	// 3
}

// Values go both ways, and what the handler returns is the end of the stream.
func ExampleHandleStream() {
	srv := tp.NewPeer(nil)
	tp.HandleStream(srv.PullRouter, "/sums", func(ctx tp.PullCtx, s *tp.Stream[int, int]) tp.Xerror {
		sum := 0
		for v, err := range s.All() {
			if err != nil {
				return nil // nobody is there any more
			}
			if *v < 0 {
				return tp.NewXerror(1001, fmt.Sprintf("%d is negative", *v))
			}
			sum += *v
			if s.Send(&sum) != nil {
				return nil
			}
		}
		return nil
	})
	sess, end := session(srv)
	defer end()
	s, err := tp.OpenStream[int, int](context.Background(), sess, "/sums")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Close()
	for _, n := range []int{5, 7, -1} {
		if err := s.Send(&n); err != nil {
			fmt.Println(err)
			return
		}
		sum, err := s.Recv()
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(*sum)
	}
	// Output:
	// 5
	// 12
	// 1001 -1 is negative
}

// A stream of bytes is a writer and a reader: a file of any size goes by io.Copy.
func ExampleStream_Writer() {
	srv := tp.NewPeer(nil)
	tp.HandleStream(srv.PullRouter, "/upload", func(ctx tp.PullCtx, s *tp.Stream[string, []byte]) tp.Xerror {
		n, err := io.Copy(io.Discard, s.Reader())
		if err != nil {
			return tp.NewXerror(tp.StatusInternalServerError, "the upload has ended early")
		}
		text := fmt.Sprintf("%s has %d bytes", s.Meta()["name"], n)
		_ = s.Send(&text)
		return nil
	})
	sess, end := session(srv)
	defer end()
	s, err := tp.OpenStream[[]byte, string](context.Background(), sess, "/upload",
		tp.WithMeta("name", "a.txt"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Close()
	w := s.Writer()
	if _, err := io.Copy(w, strings.NewReader(strings.Repeat("line\n", 100_000))); err != nil {
		fmt.Println(err)
		return
	}
	_ = w.Close()
	text, err := s.Recv()
	fmt.Println(*text, err)
	// Output: a.txt has 500000 bytes <nil>
}

// A pull that must not wait for a place fails at once.
func ExampleWithFailFast() {
	srv := tp.NewPeer(nil)
	tp.HandlePull(srv.PullRouter, "/echo", func(_ tp.PullCtx, n *int) (int, tp.Xerror) { return *n, nil })
	sess, end := session(srv)
	defer end()
	var n int
	x := sess.Pull("/echo", 1, &n, tp.WithFailFast()).Xerror
	fmt.Println(n, x)
	// Output: 1 <nil>
}
