package tp

import (
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/henrylee2cn/teleport/internal/pipe"
)

func TestMain(m *testing.M) {
	if program := os.Getenv("TP_TEST_PROGRAM"); program != "" {
		testPrograms[program]()
		return
	}
	SetLogLevel(LevelOff)
	goleak.VerifyTestMain(paidBack{m})
}

// paidBack fails if, when all tests are through, some peer's memory is still taken.
type paidBack struct{ *testing.M }

var tested struct {
	mu    sync.Mutex // guards peers
	peers map[*Peer]string
}

func (m paidBack) Run() int {
	code := m.M.Run()
	var left map[*Peer]string
	for range 1000 {
		left = make(map[*Peer]string)
		for p, test := range tested.peers {
			if p.memory() != 0 {
				left[p] = test
			}
		}
		if len(left) == 0 {
			return code
		}
		time.Sleep(10 * time.Millisecond) // handlers and connections may be ending
	}
	for p, test := range left {
		fmt.Printf("a peer of %s has %d bytes that were never given back\n", test, p.memory())
	}
	return max(code, 1)
}

// testPrograms are run by tests in a process of their own.
var testPrograms = map[string]func(){}

// memory returns what the peer's sessions have taken of its memory.
func (p *Peer) memory() int64 {
	p.sessions.mu.Lock()
	defer p.sessions.mu.Unlock()
	sum := p.inPool.Left() + p.outPool.Left() + p.keptBudget.Used()
	for cn := range p.sessions.conns {
		sum += cn.inBudget.Used() + cn.outBudget.Used()
	}
	return sum
}

// newTestPeer makes a peer that is closed at the test's end.
func newTestPeer(t testing.TB, cfg *PeerConfig, plugins ...Plugin) *Peer {
	t.Helper()
	p := NewPeer(cfg, plugins...)
	t.Cleanup(func() {
		_ = p.Close()
		// Handshakes that end with it say so in the log, which is another test's then: a bubble's
		// channel cannot be sent on from here. A hook that never ends is not waited for.
		for range 1000 {
			if p.handshakes.Len() == 0 {
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
	tested.mu.Lock()
	defer tested.mu.Unlock()
	if tested.peers == nil {
		tested.peers = make(map[*Peer]string)
	}
	tested.peers[p] = t.Name()
	return p
}

// serve lets p listen on a free port and returns the address.
func serve(t testing.TB, p *Peer) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = p.Serve(ln)
	}()
	t.Cleanup(func() { _ = p.Close(); <-done })
	return ln.Addr().String()
}

// dial connects two peers over TCP and returns the dialler's session.
func dial(t testing.TB, from, to *Peer) *Session {
	t.Helper()
	sess, err := from.Dial(serve(t, to))
	require.NoError(t, err)
	return sess
}

// withoutCredit makes the peer one that does not know credit, as peers of earlier versions.
func withoutCredit(p *Peer) *Peer {
	p.noCredit = true
	return p
}

// connect joins two peers by an in-memory connection and returns both sessions.
func connect(t testing.TB, a, b *Peer, o pipe.Options) (*Session, *Session) {
	t.Helper()
	ca, cb := pipe.New(o)
	type result struct {
		sess *Session
		err  error
	}
	got := make(chan result, 1)
	go func() {
		s, err := b.ServeConn(cb)
		got <- result{s, err}
	}()
	sa, err := a.ServeConn(ca)
	require.NoError(t, err)
	r := <-got
	require.NoError(t, r.err)
	return sa, r.sess
}

// routePlugin is a plugin with any of the hooks that a route may have.
type routePlugin struct {
	name string
	on   map[string]func(ctx interface{}) error
}

// testPlugin is a peer's plugin with any of the hooks.
type testPlugin struct{ routePlugin }

func newTestPlugin(name string, on map[string]func(ctx interface{}) error) *testPlugin {
	return &testPlugin{routePlugin{name, on}}
}

// hookPlugin has one hook.
func hookPlugin(name, point string, f func(ctx interface{}) error) Plugin {
	on := map[string]func(interface{}) error{point: f}
	if strings.Contains(hookNames(ofRoute), point) {
		return &routePlugin{name, on}
	}
	return newTestPlugin(name, on)
}

func (p *routePlugin) call(point string, ctx interface{}) error {
	if f := p.on[point]; f != nil {
		return f(ctx)
	}
	return nil
}

func (p *routePlugin) Name() string                  { return p.name }
func (p *routePlugin) PostReg(h *Handler) error      { return p.call("PostReg", h) }
func (p *testPlugin) PostDial(s ForeSession) error   { return p.call("PostDial", s) }
func (p *testPlugin) PostAccept(s ForeSession) error { return p.call("PostAccept", s) }
func (p *testPlugin) PostConnect(s *Session) error   { return p.call("PostConnect", s) }
func (p *testPlugin) PostReconnect(s *Session) error { return p.call("PostReconnect", s) }
func (p *testPlugin) PostDisconnect(s *Session, _ error) error {
	return p.call("PostDisconnect", s)
}
func (p *testPlugin) PreWritePull(c WriteCtx) error    { return p.call("PreWritePull", c) }
func (p *testPlugin) PostWritePull(c WriteCtx) error   { return p.call("PostWritePull", c) }
func (p *testPlugin) PreWritePush(c WriteCtx) error    { return p.call("PreWritePush", c) }
func (p *testPlugin) PostWritePush(c WriteCtx) error   { return p.call("PostWritePush", c) }
func (p *routePlugin) PreWriteReply(c WriteCtx) error  { return p.call("PreWriteReply", c) }
func (p *routePlugin) PostWriteReply(c WriteCtx) error { return p.call("PostWriteReply", c) }
func (p *testPlugin) PreReadHeader(c ReadCtx) error    { return p.call("PreReadHeader", c) }
func (p *routePlugin) PostReadHeader(c ReadCtx) error  { return p.call("PostReadHeader", c) }
func (p *routePlugin) PreReadBody(c ReadCtx) error     { return p.call("PreReadBody", c) }
func (p *routePlugin) PostReadBody(c ReadCtx) error    { return p.call("PostReadBody", c) }

// fn is a controller whose one method is a function of the test's.
type Fn struct {
	PullCtx
	F func(ctx PullCtx, args interface{}) (interface{}, Xerror)
}

func (f *Fn) Call(args *interface{}) (interface{}, Xerror) { return f.F(f.PullCtx, *args) }

// FnPush is Fn for pushes.
type FnPush struct {
	PushCtx
	F func(ctx PushCtx, args interface{})
}

func (f *FnPush) Call(args *interface{}) { f.F(f.PushCtx, *args) }

// pullFn serves f at /fn/call.
func pullFn(p *Peer, f func(ctx PullCtx, args interface{}) (interface{}, Xerror), plugins ...Plugin) {
	p.PullRouter.Reg(&Fn{F: f}, plugins...)
}

// pushFn serves f at /fn_push/call.
func pushFn(p *Peer, f func(ctx PushCtx, args interface{}), plugins ...Plugin) {
	p.PushRouter.Reg(&FnPush{F: f}, plugins...)
}

// echo answers with what it was sent.
func echo(_ PullCtx, args interface{}) (interface{}, Xerror) { return args, nil }

// requireAlive shows that the session still answers; the other side serves echo.
func requireAlive(t testing.TB, sess *Session) {
	t.Helper()
	var got interface{}
	cmd := sess.Pull("/fn/call", "alive", &got)
	require.Nil(t, cmd.Xerror, "%v", cmd.Xerror)
	require.Equal(t, "alive", got)
}
