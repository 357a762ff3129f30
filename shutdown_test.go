package tp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// pullBlocked serves a handler at /fn/call that closes started and answers with
// what it was sent once release is closed. It may be called once.
func pullBlocked(p *Peer) (started, release chan struct{}) {
	started, release = make(chan struct{}), make(chan struct{})
	pullFn(p, func(_ PullCtx, args interface{}) (interface{}, Xerror) {
		close(started)
		<-release
		return args, nil
	})
	return started, release
}

// beginShutdown returns when the peer has begun to drain; the channel tells how
// that ended.
func beginShutdown(p *Peer) <-chan error {
	over := make(chan error, 1)
	go func() { over <- p.Shutdown(context.Background()) }()
	<-p.closing
	return over
}

func TestShutdownLosesNoReply(t *testing.T) {
	const n = 200
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	var started sync.WaitGroup
	started.Add(n)
	release := make(chan struct{})
	pullFn(srv, func(_ PullCtx, args interface{}) (interface{}, Xerror) {
		started.Done()
		<-release
		return args, nil
	})
	pushed := make(chan struct{}, 1)
	pushFn(srv, func(PushCtx, interface{}) { pushed <- struct{}{} })
	addr := serve(t, srv)
	var sessions []*Session
	done := make(chan *PullCmd, n)
	for i := range n {
		if i%20 == 0 {
			s, err := cli.Dial(addr)
			require.NoError(t, err)
			sessions = append(sessions, s)
		}
		sessions[i/20].GoPull("/fn/call", i, new(int), done)
	}
	started.Wait()

	over := beginShutdown(srv)
	for { // soon nothing listens any more
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			break
		}
		require.NoError(t, conn.Close())
	}
	_, err := srv.Dial(addr)
	require.ErrorIs(t, err, ErrPeerClosed)
	cmd := sessions[0].Pull("/fn/call", 1, nil)
	require.Equal(t, StatusServiceUnavailable, cmd.Xerror.Code())
	require.True(t, NotRun(cmd.Xerror))
	for !sessions[1].conn.Load().away.Load() {
		runtime.Gosched()
	}
	x := sessions[1].Push("/fn_push/call", 1)
	require.Equal(t, StatusServiceUnavailable, x.Code())
	require.True(t, NotRun(x))
	sessions[1].conn.Load().away.Store(false) // as one that does not know the packet
	require.Nil(t, sessions[1].Push("/fn_push/call", 1))
	<-pushed // it is still taken
	cmd = sessions[1].Pull("/fn/call", 1, nil)
	require.Equal(t, StatusServiceUnavailable, cmd.Xerror.Code())
	require.True(t, NotRun(cmd.Xerror), "the server has said so")
	select {
	case err := <-over:
		t.Fatalf("Shutdown returned with handlers running: %v", err)
	default:
	}
	close(release)
	for range n {
		cmd := <-done
		require.Nil(t, cmd.Xerror, "%v", cmd.Xerror)
		require.Equal(t, cmd.Output().Body, *cmd.reply.(*int))
	}
	require.NoError(t, <-over)
	for _, s := range sessions {
		<-s.Done()
	}
	require.NoError(t, srv.Shutdown(context.Background()), "again")
	for srv.hubSize() > 0 { // the sessions' own goroutines take them out
		runtime.Gosched()
	}
}

func TestHandlersMayPullWhileTheirPeerShutsDown(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	started, release := make(chan struct{}), make(chan struct{})
	pullFn(srv, func(ctx PullCtx, args interface{}) (interface{}, Xerror) {
		close(started)
		<-release
		var back interface{}
		cmd := ctx.Session().Pull("/fn/call", args, &back)
		return back, cmd.Xerror
	})
	pullFn(cli, echo)
	here, sess := connect(t, srv, cli, pipe.Options{})
	cmd := sess.GoPull("/fn/call", "x", new(string), nil)
	<-started
	over := beginShutdown(srv)
	close(release)
	<-cmd.Done()
	require.Nil(t, cmd.Xerror, "%v", cmd.Xerror)
	require.NoError(t, <-over)
	require.Equal(t, StatusConnClosed, here.Pull("/fn/call", 1, nil).Xerror.Code())
}

func TestShutdownWaitsForOwnPullsAndRefusesNewOnes(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	started, release := pullBlocked(srv)
	_, sess := connect(t, srv, cli, pipe.Options{})
	cmd := sess.GoPull("/fn/call", "x", new(string), nil)
	<-started
	over := beginShutdown(cli)
	late := sess.Pull("/fn/call", 1, nil)
	require.Equal(t, StatusServiceUnavailable, late.Xerror.Code())
	close(release)
	<-cmd.Done()
	require.Nil(t, cmd.Xerror)
	require.NoError(t, <-over)
}

func TestShutdownEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, cli := NewPeer(nil), NewPeer(nil)
		defer cli.Close()
		release := make(chan struct{})
		pullFn(srv, func(PullCtx, interface{}) (interface{}, Xerror) {
			<-release
			return nil, nil
		})
		here, sess := connect(t, srv, cli, pipe.Options{})
		for range 3 {
			sess.GoPull("/fn/call", 1, nil, nil)
		}
		here.GoPull("/nobody/answers", 1, nil, nil)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		start := time.Now()
		err := srv.Shutdown(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "abandoned 3 running handlers and 0 pulls")
		require.Equal(t, 5*time.Second, time.Since(start))
		<-sess.Done()
		close(release)
		synctest.Wait()
		require.Zero(t, srv.hubSize())
	})
}

// The other side neither reads nor closes: the drain ends all the same.
func TestShutdownWithAPeerThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPeer(nil)
		ca, cb := pipe.New(pipe.Options{Buffer: 10})
		defer cb.Close()
		sess, err := p.ServeConn(ca)
		require.NoError(t, err)
		go sess.Push("/a", strings.Repeat("x", 1000))
		synctest.Wait()
		start := time.Now()
		require.NoError(t, p.Shutdown(context.Background()))
		require.LessOrEqual(t, time.Since(start), drainLinger+time.Second)
		<-sess.Done()
	})
}

func TestShutdownWaitsForPushesOfClosedSessions(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	started, release := make(chan struct{}), make(chan struct{})
	var finished atomic.Bool
	pushFn(srv, func(PushCtx, interface{}) {
		close(started)
		<-release
		finished.Store(true)
	})
	here, sess := connect(t, srv, cli, pipe.Options{})
	require.Nil(t, sess.Push("/fn_push/call", 1))
	<-started
	require.NoError(t, sess.Close())
	<-here.Done()
	over := beginShutdown(srv)
	close(release)
	require.NoError(t, <-over)
	require.True(t, finished.Load())
	for srv.hubSize() > 0 {
		runtime.Gosched()
	}
}

func TestCloseEndsAShutdownUnderWay(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	started, release := pullBlocked(srv)
	defer close(release)
	_, sess := connect(t, srv, cli, pipe.Options{})
	cmd := sess.GoPull("/fn/call", 1, nil, nil)
	<-started
	over := beginShutdown(srv)
	require.NoError(t, srv.Close())
	require.NoError(t, <-over)
	require.Equal(t, StatusConnClosed, (<-cmd.Done()).Xerror.Code())
}

func TestListenReturnsWhenShutdownIsThrough(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	started, release := pullBlocked(srv)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ln) }()
	sess, err := cli.Dial(ln.Addr().String())
	require.NoError(t, err)
	cmd := sess.GoPull("/fn/call", 1, nil, nil)
	<-started
	over := beginShutdown(srv)
	require.Empty(t, ended)
	close(release)
	require.Nil(t, (<-cmd.Done()).Xerror)
	require.NoError(t, <-over)
	require.NoError(t, <-ended)
}

func init() {
	// A server as the document's: Listen is the last thing in main, and its
	// handler takes until a line comes in on standard input.
	testPrograms["server"] = func() {
		go awaitSignals(notifySignals()) // GraceSignal, but surely in time for the test's signal
		limit, err := time.ParseDuration(os.Getenv("TP_TEST_LIMIT"))
		if err != nil {
			panic(err)
		}
		SetShutdown(limit, func() error {
			fmt.Println("first sweep")
			if os.Getenv("TP_TEST_SWEEP") != "" {
				return errors.New("sweep failed")
			}
			return nil
		}, func() error { fmt.Println("before exiting"); return nil })
		p := NewPeer(nil)
		pullFn(p, func(_ PullCtx, args interface{}) (interface{}, Xerror) {
			if args == "wait" {
				fmt.Println("handling")
				_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
			}
			return args, nil
		})
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		fmt.Println(ln.Addr())
		_ = p.Serve(ln)
		fmt.Println("main returns") // never, for the process is shutting down
	}
}

type program struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	err strings.Builder
}

func startProgram(t *testing.T, name string, env ...string) *program {
	t.Helper()
	p := prepareProgram(t, name, env...)
	p.cmd.Stderr = &p.err
	require.NoError(t, p.cmd.Start())
	return p
}

func prepareProgram(t *testing.T, name string, env ...string) *program {
	t.Helper()
	p := &program{t: t, cmd: exec.Command(os.Args[0])}
	if emulator := os.Getenv("TP_TEST_EMULATOR"); emulator != "" { // this one runs in it
		p.cmd = exec.Command(emulator, os.Args[0])
	}
	p.cmd.Env = append(append(os.Environ(), "TP_TEST_PROGRAM="+name), env...)
	var err error
	p.in, err = p.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	p.out = bufio.NewReader(out)
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	return p
}

func (p *program) line() string {
	s, err := p.out.ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(s)
}

func (p *program) exitCode() int {
	_ = p.cmd.Wait()
	return p.cmd.ProcessState.ExitCode()
}

func TestSignalDrainsAndExits(t *testing.T) {
	for _, sig := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		p := startProgram(t, "server", "TP_TEST_LIMIT=-1s")
		cli := newTestPeer(t, nil)
		sess, err := cli.Dial(p.line())
		require.NoError(t, err)
		cmd := sess.GoPull("/fn/call", "wait", new(string), nil)
		require.Equal(t, "handling", p.line())
		require.NoError(t, p.cmd.Process.Signal(sig))
		require.Equal(t, "first sweep", p.line(), "%s", &p.err)
		// The handler still runs; now it may end.
		_, err = io.WriteString(p.in, "go on\n")
		require.NoError(t, err)
		<-cmd.Done()
		require.Nil(t, cmd.Xerror, "the reply of a drain: %v", cmd.Xerror)
		require.Equal(t, "before exiting", p.line())
		require.Equal(t, "EOF", p.line())
		require.Zero(t, p.exitCode(), p.err.String())
	}
}

func TestSecondSignalExitsAtOnce(t *testing.T) {
	p := startProgram(t, "server", "TP_TEST_LIMIT=-1s")
	cli := newTestPeer(t, nil)
	sess, err := cli.Dial(p.line())
	require.NoError(t, err)
	cmd := sess.GoPull("/fn/call", "wait", nil, nil)
	require.Equal(t, "handling", p.line())
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	require.Equal(t, "first sweep", p.line(), "%s", &p.err)
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	require.Equal(t, StatusConnClosed, (<-cmd.Done()).Xerror.Code())
	require.Equal(t, "EOF", p.line())
	require.Equal(t, 1, p.exitCode())
	require.Contains(t, p.err.String(), "again")
}

func TestShutdownReportsWhatItAbandoned(t *testing.T) {
	p := startProgram(t, "server", "TP_TEST_LIMIT=10ms", "TP_TEST_SWEEP=1")
	cli := newTestPeer(t, nil)
	sess, err := cli.Dial(p.line())
	require.NoError(t, err)
	cmd := sess.GoPull("/fn/call", "wait", nil, nil)
	require.Equal(t, "handling", p.line())
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	require.Equal(t, StatusConnClosed, (<-cmd.Done()).Xerror.Code())
	require.Equal(t, "first sweep", p.line(), "%s", &p.err)
	require.Equal(t, "before exiting", p.line())
	require.Equal(t, 1, p.exitCode())
	require.Contains(t, p.err.String(), "abandoned 1 running handlers")
	require.Contains(t, p.err.String(), "sweep failed")
}

// noListener accepts nothing until it is closed.
type noListener chan struct{}

func (l noListener) Accept() (net.Conn, error) { <-l; return nil, net.ErrClosed }
func (l noListener) Close() error {
	select {
	case <-l:
	default:
		close(l)
	}
	return nil
}
func (noListener) Addr() net.Addr { return &net.UnixAddr{} }

// A main function that ends with Listen must not end the process before what
// Shutdown still has to do.
func TestListenDoesNotReturnWhileTheProcessEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPeer(nil)
		returned := make(chan struct{})
		go func() {
			_ = p.Serve(make(noListener))
			close(returned)
		}()
		synctest.Wait()
		exited := false
		osExit = func(int) {
			synctest.Wait()
			select {
			case <-returned:
				t.Error("Serve has returned before the process has ended")
			default:
			}
			exited = true
		}
		defer func() {
			osExit = os.Exit
			grace.mu.Lock()
			grace.exiting = nil
			grace.mu.Unlock()
		}()
		Shutdown()
		<-returned
		require.True(t, exited)
	})
}

// Replies that the other side has not read yet when the drain ends arrive all
// the same, although it goes on sending.
func TestShutdownWithASlowReader(t *testing.T) {
	const n, size = 12, 200 << 10 // what the server's kernel can hold
	srv := newTestPeer(t, nil)
	handled := make(chan struct{}, n)
	pullFn(srv, func(_ PullCtx, args interface{}) (interface{}, Xerror) {
		defer func() { handled <- struct{}{} }()
		return strings.Repeat("x", size), nil
	})
	conn, err := net.Dial("tcp", serve(t, srv))
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.(*net.TCPConn).SetReadBuffer(24<<10))
	pull := func(i int) []byte {
		b, err := packet.Append(nil, &packet.Packet{Header: &packet.Header{Id: fmt.Sprint(i),
			Type: packet.TypePull, Uri: "/fn/call"}, Body: i}, packet.Limits{})
		require.NoError(t, err)
		return b
	}
	for i := range n {
		_, err = conn.Write(pull(i))
		require.NoError(t, err)
		<-handled
	}
	over := beginShutdown(srv)
	for i := range 2000 { // refused, or too late to be answered
		_, err = conn.Write(pull(n + i))
		require.NoError(t, err)
	}
	sock := socket.New(conn, socket.Options{})
	replies := 0
	for {
		var p packet.Packet
		if err := sock.ReadPacket(&p, nil); err != nil {
			require.ErrorIs(t, err, io.EOF)
			break
		}
		if p.Header.Type == packet.TypeReply && p.Header.StatusCode == StatusOK {
			replies++
		}
	}
	require.Equal(t, n, replies)
	require.NoError(t, sock.Close())
	require.NoError(t, <-over)
}

// A client that has sent half of a pull is not waited for.
func TestShutdownWithHalfAPull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := NewPeer(nil)
		pullFn(srv, echo)
		ca, cb := pipe.New(pipe.Options{})
		_, err := srv.ServeConn(ca)
		require.NoError(t, err)
		b, err := packet.Append(nil, &packet.Packet{Header: &packet.Header{Id: "1", Type: packet.TypePull,
			Uri: "/fn/call"}, Body: "half"}, packet.Limits{})
		require.NoError(t, err)
		_, err = cb.Write(b[:len(b)-1])
		require.NoError(t, err)
		synctest.Wait()
		start := time.Now()
		require.NoError(t, srv.Shutdown(context.Background()))
		require.LessOrEqual(t, time.Since(start), drainLinger+time.Second)
		require.NoError(t, cb.Close())
	})
}

func TestServeConnOnADrainingPeer(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	started, release := pullBlocked(srv)
	_, sess := connect(t, srv, cli, pipe.Options{})
	cmd := sess.GoPull("/fn/call", 1, nil, nil)
	<-started
	over := beginShutdown(srv)
	ca, cb := net.Pipe()
	defer cb.Close()
	_, err := srv.ServeConn(ca)
	require.ErrorIs(t, err, ErrPeerClosed)
	close(release)
	require.Nil(t, (<-cmd.Done()).Xerror)
	require.NoError(t, <-over)
}

func TestShutdownOfTheProcess(t *testing.T) {
	codes := make(chan int, 2)
	osExit = func(code int) { codes <- code }
	defer func() {
		osExit = os.Exit
		grace.mu.Lock()
		grace.exiting = nil
		grace.mu.Unlock()
		SetShutdown(defaultShutdownTimeout, nil, nil)
	}()
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	pullFn(srv, echo)
	sess := dial(t, cli, srv)
	requireAlive(t, sess)
	SetShutdown(time.Minute, nil, nil)
	Shutdown(time.Minute)
	require.Zero(t, <-codes)
	<-sess.Done()
	Shutdown() // only the first one does anything
	require.Empty(t, codes)
	require.NotContains(t, servingPeers(), srv)
	require.NotContains(t, servingPeers(), cli)
}

// A push that is on its way when the other side shuts down is handled to its end:
// its sender was told that it was sent.
func TestShutdownHandlesPushesUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newTestPeer(t, nil)
		var handled atomic.Int32
		pushFn(srv, func(PushCtx, interface{}) {
			time.Sleep(time.Second)
			handled.Add(1)
		})
		conn, far := pipe.New(pipe.Options{})
		_, err := srv.ServeConn(conn)
		require.NoError(t, err)
		over := beginShutdown(srv)
		sock := socket.New(far, socket.Options{})
		var p packet.Packet
		require.NoError(t, sock.ReadPacket(&p, nil))
		require.Equal(t, packet.TypeGoAway, p.Header.Type)
		require.Empty(t, p.Header.Id)
		require.Zero(t, p.BodyLength)
		require.NoError(t, sock.ReadPacket(&p, nil))
		require.Equal(t, packet.Header{Type: packet.TypeGoAway, StatusCode: StatusOK}, *p.Header)
		require.ErrorIs(t, sock.ReadPacket(&p, nil), io.EOF, "there is nothing to wait for")
		for range 5 { // sent before that was read
			require.NoError(t, sock.WritePacket(&packet.Packet{Header: &packet.Header{Type: packet.TypePush,
				Uri: "/fn_push/call"}, Body: 1}))
		}
		require.NoError(t, sock.Close())
		require.NoError(t, <-over)
		require.EqualValues(t, 5, handled.Load())
	})
}

// A pull that crosses the other side's last word has not run, and its caller knows.
// One that was cut off may have.
func TestPullsThatCrossAShutdown(t *testing.T) {
	for _, done := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			conn, far := pipe.New(pipe.Options{})
			sess, err := newTestPeer(t, nil).ServeConn(conn)
			require.NoError(t, err)
			cmd := sess.GoPull("/a", 1, nil, nil)
			synctest.Wait()
			sock := socket.New(far, socket.Options{})
			require.NoError(t,
				sock.WritePacket(&packet.Packet{Header: &packet.Header{Type: packet.TypeGoAway}}))
			if done {
				require.NoError(t,
					sock.WritePacket(&packet.Packet{Header: &packet.Header{Type: packet.TypeGoAway,
						StatusCode: StatusOK}}))
			}
			synctest.Wait()
			require.Empty(t, cmd.Done(), "it may still be answered")
			require.Equal(t, StatusServiceUnavailable, sess.Pull("/b", 1, nil).Xerror.Code())
			require.NoError(t, sock.Close())
			<-cmd.Done()
			require.Equal(t, StatusConnClosed, cmd.Xerror.Code())
			require.Equal(t, done, NotRun(cmd.Xerror))
		})
	}
}

// Whether a pull that failed has certainly not run.
func TestNotRun(t *testing.T) {
	srv, cli := newTestPeer(t, &PeerConfig{MaxBodyBytes: 1000}), newTestPeer(t, nil)
	pullFn(srv, func(_ PullCtx, args interface{}) (interface{}, Xerror) {
		switch args {
		case "panic":
			panic("on purpose")
		case "close":
			return make(chan int), nil
		}
		return nil, NewXerror(1234, "own")
	}, hookPlugin("hook", "PreReadBody", func(c interface{}) error {
		if strings.Contains(c.(ReadCtx).Input().Header.Uri, "hook") {
			return errHook
		}
		return nil
	}))
	sess, _ := connect(t, cli, srv, pipe.Options{})
	for _, c := range []struct {
		uri    string
		args   interface{}
		notRun bool
	}{
		{"/fn/call", "", false},
		{"/fn/call", "panic", false},
		{"/fn/call", "close", false},
		{"/fn/call?hook", "", true},
		{"/nowhere", "", true},
		{"//bad", "", true},
		{"/fn/call", packet.RawBody("j{"), true},
		{"/fn/call", packet.RawBody("\x01"), true},
		{"/fn/call", strings.Repeat("x", 2000), true},
		{"/fn/call", func() {}, true},
	} {
		for _, header := range []string{"json", "protobuf"} {
			cmd := sess.Pull(c.uri, c.args, nil, WithHeaderCodec(header))
			require.NotNil(t, cmd.Xerror)
			require.Equal(t, c.notRun, NotRun(cmd.Xerror), "%s %.20v: %v", c.uri, c.args, cmd.Xerror)
			require.Equal(t, c.notRun, NotRun(fmt.Errorf("wrapped: %w", cmd.Xerror)))
		}
	}
	require.NoError(t, sess.Close())
	require.True(t, NotRun(sess.Pull("/fn/call", "", nil).Xerror))
	require.True(t, NotRun(sess.Push("/fn/call", "")))
	require.True(t, NotRun(sess.Push("/fn/call", func() {})))
	require.False(t, NotRun(nil))
	require.False(t, NotRun(NewXerror(503, "")))
}

// A thousand pulls in flight get a thousand right replies, in the time that they
// take, and a handler that never returns costs the deadline and no more.
func TestShutdownUnderLoad(t *testing.T) {
	for _, stuck := range []int{0, 3} {
		synctest.Test(t, func(t *testing.T) {
			const n = 1000
			srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
			never := make(chan struct{})
			defer close(never)
			pullFn(srv, func(_ PullCtx, args interface{}) (interface{}, Xerror) {
				if args.(float64) < 0 {
					<-never
					return nil, nil
				}
				time.Sleep(200 * time.Millisecond)
				return args, nil
			})
			var sessions []*Session
			for range 10 {
				sess, _ := connect(t, cli, srv, pipe.Options{})
				sessions = append(sessions, sess)
			}
			done := make(chan *PullCmd, n)
			for i := range n {
				sessions[i%10].GoPull("/fn/call", i, new(int), done)
			}
			for i := range stuck {
				sessions[i].GoPull("/fn/call", -1, nil, nil)
			}
			synctest.Wait()
			start := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			err := srv.Shutdown(ctx)
			for range n {
				cmd := <-done
				require.Nil(t, cmd.Xerror)
				require.Equal(t, cmd.args, *cmd.reply.(*int))
			}
			if stuck == 0 {
				require.NoError(t, err)
				require.Less(t, time.Since(start), time.Second)
			} else {
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.ErrorContains(t, err, "abandoned 3 running handlers")
				require.LessOrEqual(t, time.Since(start), 11*time.Second)
			}
		})
	}
}

// Both sides close at once a connection on which pushes went: neither waits for the other, as both are gone.
func TestBothSidesClose(t *testing.T) {
	for range 300 {
		synctest.Test(t, func(t *testing.T) {
			srv, cli := NewPeer(nil), NewPeer(nil)
			HandlePush(srv.PushRouter, "/p", func(PushCtx, *int) {})
			_, sess := connect(t, srv, cli, pipe.Options{})
			require.Nil(t, sess.Push("/p", 1))
			start := time.Now()
			var both sync.WaitGroup
			both.Go(func() { srv.Close() })
			both.Go(func() { cli.Close() })
			both.Wait()
			require.Less(t, time.Since(start), lingerTime) // of the bubble
		})
	}
}
