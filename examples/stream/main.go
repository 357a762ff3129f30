// Program stream shows streams in both directions: a log tail, which the server opens on its client, and an
// upload with a progress bar, which the client opens on the server. Each is also stopped in the middle.
//
//	go run .                  # uploads 64 MiB
//	go run . -mib 1024        # or more
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	tp "github.com/henrylee2cn/teleport"
	"github.com/schollz/progressbar/v3"
)

func main() {
	mib := flag.Int64("mib", 64, "how much is uploaded")
	quiet := flag.Bool("quiet", false, "no progress bar")
	flag.Parse()
	if err := run(*mib<<20, *quiet); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// line is a value of the log tail.
type line struct{ Text string }

func run(size int64, quiet bool) error {
	srv, cli := tp.NewPeer(nil), tp.NewPeer(nil)
	defer srv.Close()
	defer cli.Close()
	ended := make(chan string, 2) // what the handlers have seen

	// The client serves its log. The handler sends until the server has enough.
	tp.HandleStream(cli.PullRouter, "/log", func(ctx tp.PullCtx, s *tp.Stream[line, struct{}]) tp.Xerror {
		for n := 1; ; n++ {
			if err := s.Send(&line{fmt.Sprintf("line %d", n)}); err != nil {
				ended <- fmt.Sprintf("client: the log is not wanted any more: %v", err)
				return nil
			}
			select {
			case <-time.After(time.Millisecond):
			case <-s.Context().Done():
			}
		}
	})

	// The server takes uploads, and says how much it has received.
	tp.HandleStream(srv.PullRouter, "/upload", func(ctx tp.PullCtx, s *tp.Stream[int64, []byte]) tp.Xerror {
		n, err := io.Copy(io.Discard, s.Reader())
		if err != nil {
			ended <- fmt.Sprintf("server: the upload of %s was stopped: %v", s.Meta()["name"], err)
			return nil
		}
		if err := s.Send(&n); err != nil {
			ended <- fmt.Sprintf("server: %v", err)
		}
		return nil
	})

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	connected := make(chan *tp.Session, 1)
	go srv.Serve(ln)
	sess, err := cli.Dial(ln.Addr().String())
	if err != nil {
		return err
	}
	for len(connected) == 0 {
		srv.RangeSession(func(s *tp.Session) bool { connected <- s; return false })
	}

	if err := tail(<-connected); err != nil {
		return err
	}
	fmt.Println(<-ended)
	if err := upload(context.Background(), sess, "all of it", size, quiet); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	err = upload(ctx, sess, "half of it", size, true, func(sent int64) {
		if sent > size/2 {
			cancel()
		}
	})
	fmt.Println("client: the upload was stopped:", errors.Is(err, context.Canceled))
	fmt.Println(<-ended)
	return nil
}

// tail prints the first lines of the other side's log.
func tail(client *tp.Session) error {
	s, err := tp.OpenStream[struct{}, line](context.Background(), client, "/log")
	if err != nil {
		return err
	}
	defer s.Close()
	for n := range 3 {
		v, err := s.Recv()
		if err != nil {
			return err
		}
		fmt.Printf("server: %d of the client's log: %s\n", n+1, v.Text)
	}
	return nil
}

// upload sends so many bytes. Each watch is told how many were sent.
func upload(ctx context.Context, server *tp.Session, name string, size int64, quiet bool,
	watch ...func(sent int64)) error {
	s, err := tp.OpenStream[[]byte, int64](ctx, server, "/upload", tp.WithMeta("name", name))
	if err != nil {
		return err
	}
	defer s.Close()
	to := &counter{to: s.Writer(), watch: watch}
	var out io.Writer = to
	if !quiet {
		bar := progressbar.DefaultBytes(size, "upload")
		defer bar.Close()
		out = io.MultiWriter(to, bar)
	}
	if _, err := io.CopyN(out, rand.Reader, size); err != nil {
		return err
	}
	if err := to.to.Close(); err != nil {
		return err
	}
	n, err := s.Recv()
	if err != nil {
		return err
	}
	fmt.Printf("client: the server has received %d of %d bytes\n", *n, size)
	return nil
}

// counter counts what is written.
type counter struct {
	to    io.WriteCloser
	sent  int64
	watch []func(sent int64)
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.to.Write(p)
	c.sent += int64(n)
	for _, f := range c.watch {
		f(c.sent)
	}
	return n, err
}
