package wiretest

import (
	"bufio"
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/wrapperspb"

	tp "github.com/henrylee2cn/teleport"
)

func TestMain(m *testing.M) {
	// What is sent here on purpose would fill pages of warnings.
	tp.SetLogLevel(tp.LevelOff)
	goleak.VerifyTestMain(m)
}

// server is the peer under test.
type server struct {
	peer    *tp.Peer
	addr    string
	clients []*client
	notes   chan string   // what has been pushed
	entered chan struct{} // receives when a handler of /gate runs
	release chan struct{} // lets the handlers of /gate return
	stopped bool          // shutdown has been called
}

// serve starts a peer. When the test ends it is shut down, and must until then
// have sent nothing and handled no push that the test has not received.
func serve(t *testing.T, plugins ...tp.Plugin) *server {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &server{
		peer:    tp.NewPeer(&tp.PeerConfig{}, plugins...),
		addr:    ln.Addr().String(),
		notes:   make(chan string, 1024),
		entered: make(chan struct{}, 1),
		release: make(chan struct{}),
	}
	s.peer.PullRouter.Reg(new(Echo))
	s.peer.PullRouter.Reg(new(Fail))
	s.peer.PullRouter.Reg(new(Call))
	s.peer.PullRouter.Reg(&Gate{entered: s.entered, release: s.release})
	s.peer.PullRouter.Reg(new(Guarded), hook{"PreWriteReply", refuse})
	s.peer.PullRouter.Reg(new(Mined), hook{"PreWriteReply", explode})
	s.peer.PushRouter.Reg(&Note{notes: s.notes})
	served := make(chan error, 1)
	go func() { served <- s.peer.Serve(ln) }()
	t.Cleanup(func() {
		defer func() {
			_ = s.peer.Close() // where it matters Shutdown's result has been looked at
			for _, c := range s.clients {
				c.close()
			}
		}()
		if !t.Failed() {
			s.stop(t)
			require.NoError(t, receiveChan(t, served))
		}
	})
	return s
}

func (s *server) dial(t *testing.T) *client {
	t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	require.NoError(t, err)
	c := &client{conn: conn, r: bufio.NewReader(conn)}
	s.clients = append(s.clients, c)
	return c
}

// start starts a peer and connects to it.
func start(t *testing.T, plugins ...tp.Plugin) (*server, *client) {
	t.Helper()
	s := serve(t, plugins...)
	return s, s.dial(t)
}

// session returns the peer's side of the connection.
func (s *server) session(t *testing.T, c *client) *tp.Session {
	t.Helper()
	c.alive(t) // from then on the session is there
	sess, ok := s.peer.GetSession(c.conn.LocalAddr().String())
	require.True(t, ok, "no session")
	return sess
}

// shutdown begins to shut the peer down. The channel says how it went.
func (s *server) shutdown() <-chan error {
	s.stopped = true
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	done := make(chan error, 1)
	go func() {
		defer cancel()
		done <- s.peer.Shutdown(ctx)
	}()
	return done
}

// stop shuts the peer down, which lets what runs come to its end, and requires
// that nothing comes of it.
func (s *server) stop(t *testing.T) {
	t.Helper()
	if s.stopped {
		return
	}
	done := s.shutdown()
	for _, c := range s.clients {
		if !c.over {
			c.requireEnd(t)
		}
	}
	require.NoError(t, receiveChan(t, done))
	require.Empty(t, s.notes, "pushes handled but never sent")
}

// Echo answers with what it is given.
type Echo struct{ tp.PullCtx }

// Text serves /echo/text.
func (e *Echo) Text(args *string) (string, tp.Xerror) { return *args, nil }

// Bytes serves /echo/bytes.
func (e *Echo) Bytes(args *[]byte) ([]byte, tp.Xerror) { return *args, nil }

// Map serves /echo/map.
func (e *Echo) Map(args *map[string]interface{}) (map[string]interface{}, tp.Xerror) {
	return *args, nil
}

// Message serves /echo/message.
func (e *Echo) Message(args *wrapperspb.StringValue) (*wrapperspb.StringValue, tp.Xerror) {
	return wrapperspb.String(args.Value), nil
}

// Length serves /echo/length with the number of bytes that it is given.
func (e *Echo) Length(args *[]byte) (interface{}, tp.Xerror) {
	e.SetBodyCodec("json")
	return len(*args), nil
}

// Nothing serves /echo/nothing, whose reply has no body.
func (e *Echo) Nothing(*string) (interface{}, tp.Xerror) { return nil, nil }

// Other serves /echo/other, whose reply has another codec and compression than
// the pull.
func (e *Echo) Other(args *string) (*wrapperspb.StringValue, tp.Xerror) {
	e.SetBodyCodec("protobuf")
	e.SetGzip(9)
	return wrapperspb.String(*args), nil
}

// secret must not leave the process.
const secret = "a secret of the handler"

// Fail answers with failures.
type Fail struct{ tp.PullCtx }

// Zero serves /fail/zero: the code 0 is an error too, and a body beside an
// error is not sent.
func (f *Fail) Zero(*string) (interface{}, tp.Xerror) {
	return "a body", tp.NewXerror(0, "zero")
}

// Status serves /fail/status with the text that it is given.
func (f *Fail) Status(args *string) (interface{}, tp.Xerror) {
	return nil, tp.NewXerror(1234, *args)
}

// Code serves /fail/code with the code that it is given.
func (f *Fail) Code(args *int32) (interface{}, tp.Xerror) {
	return nil, tp.NewXerror(*args, "as asked")
}

// Panic serves /fail/panic.
func (f *Fail) Panic(*string) (interface{}, tp.Xerror) { panic(secret) }

// PanicError serves /fail/panic_error.
func (f *Fail) PanicError(*string) (interface{}, tp.Xerror) { panic(errors.New(secret)) }

// Encode serves /fail/encode, whose reply cannot be encoded.
func (f *Fail) Encode(*string) (interface{}, tp.Xerror) { return make(chan int), nil }

// Call pulls from its caller.
type Call struct{ tp.PullCtx }

// Back serves /call/back: it pulls the URI that it is given and answers with
// what the caller answers.
func (c *Call) Back(args *string) (string, tp.Xerror) {
	var reply string
	cmd := c.Session().Pull(*args, "from the handler", &reply, tp.WithBodyCodec("string"))
	return reply, cmd.Xerror
}

// Gate holds its callers up.
type Gate struct {
	tp.PullCtx
	entered chan<- struct{}
	release <-chan struct{}
}

// Wait serves /gate/wait.
func (g *Gate) Wait(args *string) (string, tp.Xerror) {
	g.entered <- struct{}{}
	<-g.release
	return *args, nil
}

// Refuse serves /gate/refuse.
func (g *Gate) Refuse(*string) (interface{}, tp.Xerror) {
	g.entered <- struct{}{}
	<-g.release
	return nil, tp.NewXerror(1234, strings.Repeat("no ", 300))
}

// Guarded has a plugin that lets no reply out.
type Guarded struct{ tp.PullCtx }

// Text serves /guarded/text.
func (g *Guarded) Text(args *string) (string, tp.Xerror) { return *args, nil }

// Mined has a plugin that panics at each reply.
type Mined struct{ tp.PullCtx }

// Text serves /mined/text.
func (m *Mined) Text(args *string) (string, tp.Xerror) { return *args, nil }

// Note takes pushes.
type Note struct {
	tp.PushCtx
	notes chan<- string
}

// Text serves /note/text.
func (n *Note) Text(args *string) { n.notes <- *args }

// Map serves /note/map.
func (n *Note) Map(args *map[string]string) { n.notes <- (*args)["note"] }

// Message serves /note/message.
func (n *Note) Message(args *wrapperspb.StringValue) { n.notes <- args.Value }

// Panic serves /note/panic.
func (n *Note) Panic(args *string) {
	n.notes <- *args
	panic(secret)
}

// hook is a plugin that fails at one point: before every reply, or while a
// packet is read whose URI ends in "?fail".
type hook struct {
	point string
	fail  func() error
}

func refuse() error { return errors.New("refused") }

func explode() error { panic(secret) }

func (h hook) Name() string { return "hook " + h.point }

func (h hook) reading(point string, ctx tp.ReadCtx) error {
	if h.point == point && strings.HasSuffix(ctx.Input().Header.Uri, "?fail") {
		return h.fail()
	}
	return nil
}

func (h hook) PostReadHeader(ctx tp.ReadCtx) error { return h.reading("PostReadHeader", ctx) }
func (h hook) PreReadBody(ctx tp.ReadCtx) error    { return h.reading("PreReadBody", ctx) }
func (h hook) PostReadBody(ctx tp.ReadCtx) error   { return h.reading("PostReadBody", ctx) }

func (h hook) PreWriteReply(tp.WriteCtx) error {
	if h.point == "PreWriteReply" {
		return h.fail()
	}
	return nil
}
