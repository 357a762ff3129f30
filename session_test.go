package tp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
)

func TestPullBothDirections(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	pullFn(srv, func(ctx PullCtx, args interface{}) (interface{}, Xerror) {
		// The handler pulls back from its caller before it answers.
		var back interface{}
		if cmd := ctx.Session().Pull("/fn/call", args, &back); cmd.Xerror != nil {
			return nil, cmd.Xerror
		}
		return fmt.Sprintf("server(%v)", back), nil
	})
	pullFn(cli, func(_ PullCtx, args interface{}) (interface{}, Xerror) {
		return fmt.Sprintf("client(%v)", args), nil
	})
	sess := dial(t, cli, srv)
	var got string
	cmd := sess.Pull("/fn/call", "x", &got)
	require.Nil(t, cmd.Xerror)
	require.Equal(t, "server(client(x))", got)

	// And the server pulls outside of any handler.
	var there *Session
	srv.RangeSession(func(s *Session) bool { there = s; return true })
	cmd = there.Pull("/fn/call", "y", &got)
	require.Nil(t, cmd.Xerror)
	require.Equal(t, "client(y)", got)
}

// A status text that comes in is fit for a terminal and of bounded length, whoever
// wrote it.
func TestHostileStatusText(t *testing.T) {
	for _, text := range []string{"a\nb\x1b[31m\x00", strings.Repeat("x", 60<<10)} {
		conn, far := pipe.New(pipe.Options{})
		cli := newTestPeer(t, nil)
		sess, err := cli.ServeConn(conn)
		require.NoError(t, err)
		b, err := packet.Append(nil, &packet.Packet{
			Header: &packet.Header{Id: "1", Type: packet.TypeReply, StatusCode: 1234, Status: text},
		}, packet.Limits{})
		require.NoError(t, err)
		go func() { // once the pull is in flight
			_, _ = far.Read(make([]byte, 1))
			_, _ = far.Write(b)
		}()
		cmd := sess.Pull("/a", nil, nil)
		require.EqualValues(t, 1234, cmd.Xerror.Code())
		got := cmd.Xerror.Text()
		require.LessOrEqual(t, len(got), 1024)
		require.NotContains(t, got, "\n")
		require.NotContains(t, got, "\x1b")
		require.Equal(t, text, cmd.Input().Header.Status, "here it is as it came")
		_, _ = sess.Close(), far.Close()
	}
}

func TestManyPullsInFlightOnOneSession(t *testing.T) {
	const n = 4000
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	var waiting sync.WaitGroup
	waiting.Add(n)
	pullFn(srv, func(ctx PullCtx, args interface{}) (interface{}, Xerror) {
		waiting.Done()
		waiting.Wait() // all of them are in flight at once
		var back interface{}
		cmd := ctx.Session().Pull("/fn/call", args, &back)
		return back, cmd.Xerror
	})
	pullFn(cli, echo)
	sess := dial(t, cli, srv)
	done := make(chan *PullCmd, n)
	for i := range n {
		sess.GoPull("/fn/call", i, new(int), done)
	}
	seen := make(map[int]bool)
	for range n {
		cmd := <-done
		require.Nil(t, cmd.Xerror)
		reply, _ := cmd.Result()
		got := *reply.(*int)
		require.Equal(t, cmd.Output().Body, got)
		require.False(t, seen[got])
		seen[got] = true
	}
	require.Zero(t, sess.conn.Load().pulls.Len())
}

func TestGoPullDeliversOnUnbufferedChannel(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	pullFn(srv, echo)
	sess := dial(t, cli, srv)
	done := make(chan *PullCmd)
	first := sess.GoPull("/fn/call", 1, nil, done)
	// A pull that fails before it is sent is delivered like any other.
	second := sess.GoPull("/fn/call", func() {}, nil, done)
	requireAlive(t, sess) // nobody receives yet, and nothing is held up
	got := map[*PullCmd]bool{<-done: true, <-done: true}
	require.True(t, got[first] && got[second])
	require.Nil(t, first.Xerror)
	require.Equal(t, StatusWriteFailed, second.Xerror.Code())

	third := sess.GoPull("/fn/call", 1, nil, nil)
	require.Same(t, third, <-third.Done())
}

func TestFailedEncodeCostsNothingElse(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	pullFn(srv, func(_ PullCtx, args interface{}) (interface{}, Xerror) {
		if args == "bad" {
			return map[string]interface{}{"a": strings.Repeat("x", 100), "b": func() {}}, nil
		}
		return args, nil
	})
	sess := dial(t, cli, srv)
	for range 3 {
		cmd := sess.Pull("/fn/call", map[string]interface{}{"a": 1, "b": make(chan int)}, nil)
		require.Equal(t, StatusWriteFailed, cmd.Xerror.Code())
		require.Contains(t, cmd.Xerror.Text(), "json")
		cmd = sess.Pull("/fn/call", "x", nil, WithBodyCodec("nope"))
		require.Equal(t, StatusWriteFailed, cmd.Xerror.Code())
		cmd = sess.Pull("/fn/call", "x", nil, WithGzip(10))
		require.Equal(t, StatusWriteFailed, cmd.Xerror.Code())
		x := sess.Push("/fn/call", math.Inf(1))
		require.Equal(t, StatusWriteFailed, x.Code())
		requireAlive(t, sess)
		cmd = sess.Pull("/fn/call", "bad", nil)
		require.Equal(t, StatusInternalServerError, cmd.Xerror.Code())
		require.Equal(t, "the reply could not be encoded", cmd.Xerror.Text())
		requireAlive(t, sess)
	}
	require.Zero(t, sess.conn.Load().pulls.Len())
}

func TestReplyThatDoesNotDecodeFailsOnlyItsCall(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	pullFn(srv, echo)
	replies := map[string]struct {
		body packet.RawBody
		gzip int32
		code int32
	}{
		"undecodable":   {packet.RawBody("j{"), 0, StatusBadRequest},
		"unknown codec": {packet.RawBody("\x01abc"), 0, StatusUnsupportedCodec},
		"broken gzip":   {packet.RawBody("jabc"), 5, StatusBadRequest},
	}
	srv.PullRouter.SetUnknown(func(ctx UnknownPullCtx, _ *[]byte) (interface{}, Xerror) {
		r := replies[ctx.Path()[1:]]
		ctx.SetGzip(r.gzip)
		return r.body, nil
	})
	sess := dial(t, cli, srv)
	for name, r := range replies {
		t.Run(name, func(t *testing.T) {
			cmd := sess.Pull("/"+strings.ReplaceAll(name, " ", "%20"), nil, new(interface{}))
			require.NotNil(t, cmd.Xerror)
			require.Equal(t, r.code, cmd.Xerror.Code(), "%v", cmd.Xerror)
			requireAlive(t, sess)
		})
	}
}

func TestStatusOfHandler(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	var returned Xerror
	pullFn(srv, func(_ PullCtx, args interface{}) (interface{}, Xerror) {
		if args == "alive" {
			return args, nil
		}
		return "body", returned
	})
	sess := dial(t, cli, srv)
	for _, c := range []struct{ sent, want Xerror }{
		{NewXerror(0, "zero"), NewXerror(0, "zero")},
		{NewXerror(-3, "negative"), NewXerror(-3, "negative")},
		{NewXerror(1, "one"), NewXerror(1, "one")},
		{NewXerror(404, "no such user"), NewXerror(404, "no such user")},
		{NewXerror(500, ""), NewXerror(500, "")},
		{NewXerror(math.MaxInt32, "big"), NewXerror(math.MaxInt32, "big")},
		// An error with the code of success is an error of the handler's.
		{NewXerror(200, "fine?"), NewXerror(500, "fine?")},
		// Local codes are of this side's upstream.
		{NewXerror(101, "connection closed"), NewXerror(502, "connection closed")},
		{NewXerror(404, "two\nlines\x00"), NewXerror(404, `two\nlines\x00`)},
		{NewXerror(404, "\xff"), NewXerror(404, `\xff`)},
	} {
		returned = c.sent
		reply := "untouched"
		cmd := sess.Pull("/fn/call", nil, &reply)
		require.NotNil(t, cmd.Xerror, "%v", c.sent)
		require.Equal(t, c.want.Error(), cmd.Xerror.Error())
		require.Equal(t, c.want.Code(), cmd.Xerror.Code())
		require.Equal(t, "untouched", reply)
		require.Zero(t, cmd.Input().BodyLength)
		requireAlive(t, sess)
	}
	returned = NewXerror(404, strings.Repeat("é", 4000))
	cmd := sess.Pull("/fn/call", nil, nil)
	require.LessOrEqual(t, len(cmd.Xerror.Text()), 1024)
	require.True(t, strings.HasSuffix(cmd.Xerror.Text(), "é..."))
}

func TestPanicOfHandlerIsA500(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	pullFn(srv, func(_ PullCtx, args interface{}) (interface{}, Xerror) {
		switch args {
		case "panic":
			panic("a secret")
		case "nil pointer":
			var f *Fn
			f.F(nil, nil)
		case "error":
			panic(io.ErrShortWrite)
		case "exit":
			runtime.Goexit()
		}
		return args, nil
	})
	handled := make(chan struct{}, 1)
	pushFn(srv, func(PushCtx, interface{}) {
		defer func() { handled <- struct{}{} }()
		panic("in a push")
	})
	srv.PullRouter.SetUnknown(func(UnknownPullCtx, *[]byte) (interface{}, Xerror) { panic("unknown") })
	sess := dial(t, cli, srv)
	for _, uri := range []string{"/fn/call", "/elsewhere"} {
		for _, args := range []string{"panic", "nil pointer", "error", "exit"} {
			cmd := sess.Pull(uri, args, nil)
			require.Equal(t, "500 internal server error", cmd.Xerror.Error())
		}
	}
	require.Nil(t, sess.Push("/fn_push/call", 1))
	<-handled
	requireAlive(t, sess)
}

// The server's end of the connection dies after every number of bytes of its
// reply; the caller always hears of it.
func TestConnectionDiesInTheMiddleOfAReply(t *testing.T) {
	// How long is the reply?
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	pullFn(srv, echo)
	a, b := connect(t, srv, cli, pipe.Options{})
	_ = a
	cmd := b.Pull("/fn/call", "alive", nil)
	require.Nil(t, cmd.Xerror)
	size := int(cmd.Input().Length) + 2*packet.LengthSize

	for cut := 0; cut < size; cut++ {
		after := cut
		if cut == 0 {
			after = -1
		}
		_, sess := connect(t, srv, cli, pipe.Options{CutAfter: after})
		cmd := sess.Pull("/fn/call", "alive", new(string))
		require.NotNil(t, cmd.Xerror, "cut after %d of %d bytes", cut, size)
		require.Equal(t, StatusConnClosed, cmd.Xerror.Code(), "cut after %d: %v", cut, cmd.Xerror)
		<-sess.Done()
	}
	_, sess := connect(t, srv, cli, pipe.Options{CutAfter: size})
	var got string
	cmd = sess.Pull("/fn/call", "alive", &got)
	require.Nil(t, cmd.Xerror)
	require.Equal(t, "alive", got)
}

func TestCloseWithPullsInFlight(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	started, release := make(chan struct{}), make(chan struct{})
	pullFn(srv, func(PullCtx, interface{}) (interface{}, Xerror) {
		started <- struct{}{}
		<-release
		return nil, nil
	})
	defer close(release)
	sess := dial(t, cli, srv)
	done := make(chan *PullCmd, 10)
	for range 10 {
		sess.GoPull("/fn/call", nil, nil, done)
		<-started
	}
	require.NoError(t, sess.Close())
	require.NoError(t, sess.Close())
	for range 10 {
		cmd := <-done
		require.Equal(t, StatusConnClosed, cmd.Xerror.Code())
		require.Contains(t, cmd.Xerror.Text(), "outcome")
	}
	<-sess.Done()
	cmd := sess.Pull("/fn/call", nil, nil)
	require.Equal(t, StatusConnClosed, cmd.Xerror.Code())
	require.Contains(t, cmd.Xerror.Text(), "not sent")
	x := sess.Push("/fn/call", nil)
	require.Equal(t, StatusConnClosed, x.Code())
	require.Error(t, sess.ChangeId("other"))
}

func TestCloseInsideAHandler(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	closed := make(chan error, 2)
	pullFn(srv, func(ctx PullCtx, args interface{}) (interface{}, Xerror) {
		if args == "session" {
			closed <- ctx.Session().Close()
		} else {
			closed <- ctx.Peer().Close()
		}
		return "too late", nil
	})
	addr := serve(t, srv)
	for _, what := range []string{"session", "peer"} {
		sess, err := cli.Dial(addr)
		require.NoError(t, err)
		cmd := sess.Pull("/fn/call", what, nil)
		require.Equal(t, StatusConnClosed, cmd.Xerror.Code())
		require.NoError(t, <-closed)
	}
	_, err := cli.Dial(addr)
	require.Error(t, err, "the listener is closed with its peer")
}

func TestPushBeforeCloseArrives(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	got := make(chan interface{}, 1000)
	pushFn(srv, func(_ PushCtx, args interface{}) { got <- args })
	addr := serve(t, srv)
	sess, err := cli.Dial(addr)
	require.NoError(t, err)
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for range 100 {
				if x := sess.Push("/fn_push/call", strings.Repeat("x", 1000)); x != nil {
					t.Error(x)
				}
			}
		})
	}
	wg.Wait()
	require.NoError(t, sess.Close())
	for range 1000 {
		<-got
	}
}

func TestUnknownTypesAreAnsweredOnceAndNeverAgain(t *testing.T) {
	var packets atomic.Int32
	count := hookPlugin("count", "PreReadHeader", func(interface{}) error { packets.Add(1); return nil })
	a, b := newTestPeer(t, nil, count), newTestPeer(t, nil, count)
	pullFn(a, echo)
	pullFn(b, echo)
	sa, sb := connect(t, a, b, pipe.Options{})
	for i, typ := range []int32{0, -1, 6, 9, math.MaxInt32} {
		require.NoError(t,
			sa.conn.Load().sock.WritePacket(&packet.Packet{Header: &packet.Header{Id: fmt.Sprintf("odd-%d",
				i), Type: typ, Uri: "/fn/call"}, Body: 1}))
		require.NoError(t, sa.conn.Load().sock.WritePacket(&packet.Packet{Header: &packet.Header{Type: typ,
			Uri: "/fn/call"}}))
	}
	requireAlive(t, sa)
	requireAlive(t, sb)
	// 2 first waits, 5 x 2 unknown packets, 5 answers, 2 x 2 of the pulls.
	const want = 2 + 10 + 5 + 4
	for packets.Load() < want {
		runtime.Gosched()
	}
	require.NoError(t, sa.Close())
	<-sb.Done()
	require.EqualValues(t, want, packets.Load())
}

func TestIdsAreUniqueAndNobodyIsLost(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	pullFn(srv, echo)
	addr := serve(t, srv)

	first, err := cli.Dial(addr, "one")
	require.NoError(t, err)
	_, err = cli.Dial(addr, "one")
	require.ErrorIs(t, err, ErrIdTaken)
	requireAlive(t, first)

	// Ids that are not given are told apart by themselves.
	second, err := cli.Dial(addr)
	require.NoError(t, err)
	third, err := cli.Dial(addr)
	require.NoError(t, err)
	require.Equal(t, addr, second.Id())
	require.Equal(t, addr+"#1", third.Id())
	require.Equal(t, 3, cli.CountSession())

	require.ErrorIs(t, second.ChangeId("one"), ErrIdTaken)
	require.Equal(t, addr, second.Id())
	require.NoError(t, second.ChangeId("two"))
	require.NoError(t, second.ChangeId("two"))
	require.Error(t, second.ChangeId(""))
	_, ok := cli.GetSession(addr)
	require.False(t, ok)
	got, ok := cli.GetSession("two")
	require.True(t, ok)
	require.Same(t, second, got)
	requireAlive(t, first)
	requireAlive(t, second)
	requireAlive(t, third)

	require.NoError(t, third.ReplaceId("one"))
	<-first.Done()
	got, _ = cli.GetSession("one")
	require.Same(t, third, got)
	requireAlive(t, third)
	require.Equal(t, 2, cli.CountSession())

	require.NoError(t, third.Close())
	_, ok = cli.GetSession("one")
	require.False(t, ok)
	_, err = cli.Dial(addr, "")
	require.Error(t, err)
}

func TestContextOutlivesItsHandler(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	type seen struct {
		uri, path, query, ip string
		args, public         interface{}
	}
	late := make(chan seen)
	release := make(chan struct{})
	pullFn(srv, func(ctx PullCtx, args interface{}) (interface{}, Xerror) {
		ctx.Public().Store("k", args)
		go func() {
			<-release
			ctx.SetBodyCodec("string") // too late, and harmless
			ctx.SetGzip(9)
			v, _ := ctx.Public().Load("k")
			late <- seen{ctx.Uri(), ctx.Path(), ctx.Query().Get("n"), ctx.Ip(), args, v}
		}()
		return args, nil
	})
	sess := dial(t, cli, srv)
	const n = 200
	for i := range n {
		var got int
		cmd := sess.Pull(fmt.Sprintf("/fn/call?n=%d", i), i, &got)
		require.Nil(t, cmd.Xerror)
		require.Equal(t, i, got)
	}
	close(release)
	numbers := make(map[string]bool)
	for range n {
		s := <-late
		require.Equal(t, "/fn/call", s.path)
		require.Equal(t, "/fn/call?n="+s.query, s.uri)
		require.Equal(t, s.query, fmt.Sprint(s.args))
		require.Equal(t, s.args, s.public)
		require.Equal(t, sess.Socket().LocalAddr().String(), s.ip)
		numbers[s.query] = true
	}
	require.Len(t, numbers, n)
}

func TestServeConnReads(t *testing.T) {
	a, b := newTestPeer(t, nil), newTestPeer(t, nil)
	pullFn(a, echo)
	pullFn(b, echo)
	sa, sb := connect(t, a, b, pipe.Options{Chunk: 1})
	requireAlive(t, sa)
	requireAlive(t, sb)

	// net.Pipe calls both of its ends "pipe": ids are made unique all the same.
	c1, c2 := net.Pipe()
	c3, c4 := net.Pipe()
	defer c2.Close()
	defer c4.Close()
	s1, err := a.ServeConn(c1)
	require.NoError(t, err)
	s3, err := a.ServeConn(c3)
	require.NoError(t, err)
	require.NotEqual(t, s1.Id(), s3.Id())
	_, err = a.ServeConn(c1, "given")
	require.NoError(t, err)
}

func TestReadTimeoutEndsASilentSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewPeer(&PeerConfig{DefaultReadTimeout: 3 * time.Second})
		b := NewPeer(nil)
		defer a.Close()
		defer b.Close()
		pullFn(a, echo)
		sa, sb := connect(t, a, b, pipe.Options{})
		start := time.Now()
		for range 5 { // packets keep it alive
			time.Sleep(2 * time.Second)
			requireAlive(t, sb)
		}
		require.Equal(t, 10*time.Second, time.Since(start))
		<-sa.Done()
		require.Equal(t, 13*time.Second, time.Since(start))
		<-sb.Done()

		sa, sb = connect(t, a, b, pipe.Options{})
		start = time.Now()
		require.Equal(t, 3*time.Second, sa.ReadTimeout())
		time.Sleep(time.Second)
		sa.SetReadTimeout(time.Minute)
		<-sb.Done()
		require.Equal(t, 61*time.Second, time.Since(start))
	})
}

func TestWriteTimeoutEndsASessionThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPeer(&PeerConfig{DefaultWriteTimeout: 5 * time.Second})
		defer p.Close()
		ca, cb := pipe.New(pipe.Options{Buffer: 100})
		defer cb.Close()
		sess, err := p.ServeConn(ca)
		require.NoError(t, err)
		require.Equal(t, 5*time.Second, sess.WriteTimeout())
		start := time.Now()
		cmd := sess.Pull("/a", strings.Repeat("x", 1000), nil)
		require.Contains(t, []int32{StatusWriteFailed, StatusConnClosed}, cmd.Xerror.Code())
		require.ErrorIs(t, cmd.Xerror.(error), os.ErrDeadlineExceeded)
		require.Equal(t, 5*time.Second, time.Since(start))
		<-sess.Done()
		sess.SetWriteTimeout(time.Second)
		require.Equal(t, time.Second, sess.WriteTimeout())
	})
}

func TestPublicIsCopiedPerCall(t *testing.T) {
	var fromReply interface{}
	cliHooks := newTestPlugin("share", map[string]func(interface{}) error{
		"PreWritePull": func(ctx interface{}) error {
			ctx.(WriteCtx).Public().Store("sent", true)
			return nil
		},
		"PreReadHeader": func(ctx interface{}) error {
			ctx.(ReadCtx).Public().Store("awaited", true)
			return nil
		},
		"PostReadBody": func(ctx interface{}) error {
			fromReply, _ = ctx.(ReadCtx).Public().Load("sent")
			return nil
		},
	})
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil, cliHooks)
	pullFn(srv, func(ctx PullCtx, _ interface{}) (interface{}, Xerror) {
		n, _ := ctx.Public().Load("n")
		ctx.Public().Store("n", "changed")
		return n, nil
	})
	a, sess := connect(t, srv, cli, pipe.Options{})
	a.Public().Store("n", "session's")
	for range 2 {
		var got string
		cmd := sess.Pull("/fn/call", nil, &got)
		require.Nil(t, cmd.Xerror)
		require.Equal(t, "session's", got)
		require.Equal(t, true, fromReply)
		v, _ := cmd.Public().Load("awaited")
		require.Equal(t, true, v)
	}
	_, ok := sess.Public().Load("sent")
	require.False(t, ok)
}

func TestSettingsAndReplyCodecs(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	pullFn(srv, func(ctx PullCtx, args interface{}) (interface{}, Xerror) {
		if codec := ctx.Query().Get("codec"); codec != "" {
			ctx.SetBodyCodec(codec)
		}
		if ctx.Query().Get("gzip") != "" {
			ctx.SetGzip(0)
		}
		return args, nil
	})
	sess := dial(t, cli, srv)
	long := strings.Repeat("compressible ", 100)
	for level := int32(-2); level <= 9; level++ {
		for _, header := range []string{"json", "protobuf"} {
			var got string
			cmd := sess.Pull("/fn/call", long, &got, WithHeaderCodec(header), WithBodyCodec("string"),
				WithGzip(level))
			require.Nil(t, cmd.Xerror, "%v", cmd.Xerror)
			require.Equal(t, long, got)
			in := cmd.Input()
			require.Equal(t, header, in.HeaderCodec)
			require.Equal(t, "string", in.BodyCodec)
			if level == 0 {
				require.Zero(t, in.Header.Gzip)
			} else { // whoever answers chooses the level
				require.EqualValues(t, -1, in.Header.Gzip)
			}
			require.Equal(t, level != 0, in.BodyLength < int64(len(long)))
			require.Equal(t, in.Length, in.HeaderLength+in.BodyLength)
		}
	}
	var got string
	cmd := sess.Pull("/fn/call?codec=json&gzip=no", long, &got, WithBodyCodec("string"), WithGzip(9))
	require.Nil(t, cmd.Xerror)
	require.Equal(t, long, got)
	require.Equal(t, "json", cmd.Input().BodyCodec)
	require.Zero(t, cmd.Input().Header.Gzip)
	cmd = sess.Pull("/fn/call?codec=nope", long, &got)
	require.Equal(t, StatusInternalServerError, cmd.Xerror.Code())
	// Without a body there is no codec to answer in but the peer's own.
	cmd = sess.Pull("/fn/call", nil, nil, WithBodyCodec("string"))
	require.Nil(t, cmd.Xerror)
	require.Zero(t, cmd.Input().BodyLength)
	requireAlive(t, sess)
}

func TestClosedPeerRefusesNewConnections(t *testing.T) {
	p := NewPeer(nil)
	require.NoError(t, p.Close())
	require.NoError(t, p.Close())
	_, err := p.Dial("127.0.0.1:1")
	require.ErrorIs(t, err, ErrPeerClosed)
	ca, cb := net.Pipe()
	_, err = p.ServeConn(ca)
	require.ErrorIs(t, err, ErrPeerClosed)
	_, err = cb.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF, "the connection is closed")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.ErrorIs(t, p.Serve(ln), ErrPeerClosed)
	require.ErrorIs(t, ln.Close(), net.ErrClosed)
}

func TestDialErrors(t *testing.T) {
	p := newTestPeer(t, nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := ln.Addr().String()
	require.NoError(t, ln.Close())
	_, err = p.Dial(addr)
	require.ErrorContains(t, err, addr)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = p.DialContext(ctx, addr)
	require.ErrorIs(t, err, context.Canceled)
	_, err = p.Dial("no port")
	require.Error(t, err)
	_, err = p.Dial("unix:" + t.TempDir() + "/absent")
	require.Error(t, err)
	require.Zero(t, p.CountSession())
}

func TestRangeSessionStops(t *testing.T) {
	a, b := newTestPeer(t, nil), newTestPeer(t, nil)
	for range 3 {
		connect(t, a, b, pipe.Options{})
	}
	n := 0
	a.RangeSession(func(s *Session) bool {
		require.Same(t, a, s.Peer())
		n++
		return n < 2
	})
	require.Equal(t, 2, n)
	require.Equal(t, 3, a.CountSession())
}

func TestBadFrameEndsOnlyItsSession(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	pullFn(srv, echo)
	sess := dial(t, cli, srv)
	for _, frame := range []string{
		"\x00\x00\x00\x00",              // header length 0
		"\xff\xff\xff\xff",              // 4 GiB
		"\x00\x00\x00\x02j{",            // header that does not decode
		"\x00\x00\x00\x01\x01",          // unknown header codec
		"\x00\x00\x00\x03p\x08\x80",     // truncated varint
		"\x00\x00\x00\x04p\x0a\x01\xff", // invalid UTF-8
	} {
		conn, err := net.Dial("tcp", sess.RemoteIp())
		require.NoError(t, err)
		_, err = conn.Write([]byte(frame + "\x00\x00\x00\x00"))
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, conn)
		_ = err // reset or EOF: it has ended
		require.NoError(t, conn.Close())
		requireAlive(t, sess)
	}
}

func TestPeerMemoryOfFinishedSessions(t *testing.T) {
	a, b := newTestPeer(t, nil), newTestPeer(t, nil)
	pullFn(b, echo)
	for range 20 {
		sa, sb := connect(t, a, b, pipe.Options{})
		requireAlive(t, sa)
		require.NoError(t, sa.Close())
		<-sb.Done()
	}
	for a.hubSize()+b.hubSize() > 0 {
		runtime.Gosched()
	}
}

func (p *Peer) hubSize() int {
	p.sessions.mu.RLock()
	defer p.sessions.mu.RUnlock()
	return len(p.sessions.byId) + len(p.sessions.conns)
}

// eagerConn answers each pull while it is still being written, and does not let
// the write end before the answer has been read.
type eagerConn struct {
	net.Conn
	replies chan []byte
	idle    chan struct{}
	left    []byte
}

func (c *eagerConn) Write(b []byte) (int, error) {
	var p packet.Packet
	if _, err := packet.Parse(b, &p, nil, packet.Limits{}); err != nil {
		return 0, err
	}
	reply, err := packet.Append(nil, &packet.Packet{Header: &packet.Header{Id: p.Header.Id,
		Type: packet.TypeReply, StatusCode: 200}}, packet.Limits{})
	if err != nil {
		return 0, err
	}
	c.replies <- reply
	<-c.idle // it has been read, and more is wanted
	return len(b), nil
}

func (c *eagerConn) Read(b []byte) (int, error) {
	for len(c.left) == 0 {
		select {
		case reply, ok := <-c.replies:
			if !ok {
				return 0, io.EOF
			}
			c.left = reply
		case c.idle <- struct{}{}:
		}
	}
	n := copy(b, c.left)
	c.left = c.left[n:]
	return n, nil
}

func TestReplyThatComesBeforeTheWriteReturns(t *testing.T) {
	p := newTestPeer(t, nil)
	ca, cb := pipe.New(pipe.Options{})
	defer cb.Close()
	conn := &eagerConn{Conn: ca, replies: make(chan []byte), idle: make(chan struct{})}
	sess, err := p.ServeConn(conn)
	require.NoError(t, err)
	for range 10 {
		require.Nil(t, sess.Pull("/a", 1, nil).Xerror)
	}
	require.Zero(t, sess.conn.Load().pulls.Len())
	close(conn.replies)
	<-sess.Done()
}

func TestTypedNilXerrorOfHandler(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	pullFn(srv, func(_ PullCtx, args interface{}) (interface{}, Xerror) {
		if args == "alive" {
			return args, nil
		}
		return nil, (*typedNil)(nil)
	})
	_, sess := connect(t, srv, cli, pipe.Options{})
	require.Equal(t, "500 internal server error", sess.Pull("/fn/call", 1, nil).Xerror.Error())
	requireAlive(t, sess)
}

// Peers that do not read cost Close a second together, not each.
func TestCloseWithManyThatDoNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPeer(nil)
		var ends []net.Conn
		for range 20 {
			ca, cb := pipe.New(pipe.Options{Buffer: 10})
			ends = append(ends, cb)
			sess, err := p.ServeConn(ca)
			require.NoError(t, err)
			go sess.Push("/a", strings.Repeat("x", 1000))
		}
		synctest.Wait()
		start := time.Now()
		_ = p.Close()
		require.LessOrEqual(t, time.Since(start), time.Second)
		for _, c := range ends {
			require.NoError(t, c.Close())
		}
	})
}

func TestXerror(t *testing.T) {
	require.Equal(t, "404 not found", newXerror(404, "", nil).Error())
	require.Equal(t, "7", NewXerror(7, "").Error())
	cause := errors.New("cause")
	require.ErrorIs(t, newXerror(500, "x", cause), cause)
	require.Equal(t, "", StatusText(12345))
	b, err := json.Marshal(NewXerror(404, "not \"found\""))
	require.NoError(t, err)
	require.JSONEq(t, `{"code":404,"text":"not \"found\""}`, string(b))
	var x xerror
	require.NoError(t, x.UnmarshalJSON(b))
	require.Equal(t, `not "found"`, x.Text())
	require.Error(t, x.UnmarshalJSON([]byte("{")))
}
