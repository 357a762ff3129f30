package tp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
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

var errHook = errors.New("no entry")

// What a hook's error or panic does, for every hook that a call passes.
func TestHookErrorsAndPanics(t *testing.T) {
	const refused, ok = "424 no entry", ""
	for _, c := range []struct {
		side, point string
		pull        string // what the caller of a pull is told
		pushSent    bool
		pushHandled bool
		ends        bool // the session ends
	}{
		{"client", "PreWritePull", refused, true, true, false},
		{"client", "PostWritePull", ok, true, true, false},
		{"client", "PreWritePush", ok, false, false, false},
		{"client", "PostWritePush", ok, true, true, false},
		{"client", "PostReadHeader", refused, true, true, false},
		{"client", "PreReadBody", refused, true, true, false},
		{"client", "PostReadBody", refused, true, true, false},
		{"server", "PostReadHeader", refused, true, false, false},
		{"server", "PreReadBody", refused, true, false, false},
		{"server", "PostReadBody", refused, true, false, false},
		{"server", "PreWriteReply", refused, true, true, false},
		{"server", "PostWriteReply", ok, true, true, false},
	} {
		for _, how := range []string{"error", "panic", "status"} {
			t.Run(c.side+" "+c.point+" "+how, func(t *testing.T) {
				want := c.pull
				if want == refused {
					want = map[string]string{"error": refused, "panic": "424 failed plugin",
						"status": "401 who?"}[how]
				}
				var on atomic.Bool
				var failed atomic.Int32
				bad := hookPlugin("bad", c.point, func(interface{}) error {
					if !on.Load() {
						return nil
					}
					failed.Add(1)
					switch how {
					case "panic":
						panic("secret")
					case "status":
						return NewXerror(StatusUnauthorized, "who?")
					}
					return errHook
				})
				plugins := map[string][]Plugin{c.side: {bad}}
				srv, cli := newTestPeer(t, nil, plugins["server"]...), newTestPeer(t, nil,
					plugins["client"]...)
				pullFn(srv, echo)
				handled := make(chan interface{}, 2)
				pushFn(srv, func(_ PushCtx, args interface{}) { handled <- args })
				_, sess := connect(t, srv, cli, pipe.Options{})

				requireAlive(t, sess)
				on.Store(true)
				reply := "untouched"
				cmd := sess.Pull("/fn/call", "x", &reply)
				if want == ok {
					require.Nil(t, cmd.Xerror)
				} else {
					require.NotNil(t, cmd.Xerror)
					require.Equal(t, want, cmd.Xerror.Error())
				}
				x := sess.Push("/fn_push/call", "first")
				require.Equal(t, c.pushSent, x == nil, "%v", x)
				for c.side == "server" && !c.pushHandled && failed.Load() < 2 { // of the pull and of the push
					runtime.Gosched()
				}
				on.Store(false)
				requireAlive(t, sess)
				require.Nil(t, sess.Push("/fn_push/call", "second"))
				if c.pushHandled {
					require.Contains(t, []interface{}{"first", "second"}, <-handled)
				}
				if c.pushHandled {
					require.Contains(t, []interface{}{"first", "second"}, <-handled)
				} else {
					require.Equal(t, "second", <-handled)
				}
				require.Empty(t, handled)
			})
		}
	}
}

func TestPreReadHeaderErrorEndsTheSession(t *testing.T) {
	var on atomic.Bool
	srv := newTestPeer(t, nil, hookPlugin("bad", "PreReadHeader", func(ctx interface{}) error {
		if on.Load() {
			return errHook
		}
		return nil
	}))
	cli := newTestPeer(t, nil)
	pullFn(srv, echo)
	_, sess := connect(t, srv, cli, pipe.Options{})
	requireAlive(t, sess)
	on.Store(true)
	sess.Pull("/fn/call", 1, nil)
	<-sess.Done()
}

func TestHooksRunInOrder(t *testing.T) {
	var mu sync.Mutex
	var log []string
	points := []string{"PostReg", "PostDial", "PostAccept", "PreWritePull", "PostWritePull", "PreWritePush",
		"PostWritePush",
		"PreWriteReply", "PostWriteReply", "PreReadHeader", "PostReadHeader", "PreReadBody", "PostReadBody"}
	record := func(name string) Plugin {
		p := newTestPlugin(name, map[string]func(interface{}) error{})
		for _, point := range points {
			p.on[point] = func(interface{}) error {
				mu.Lock()
				defer mu.Unlock()
				log = append(log, point+" "+name)
				return nil
			}
		}
		if name != "peer" && name != "cli" {
			return &p.routePlugin
		}
		return p
	}
	flush := func() []string {
		mu.Lock()
		defer mu.Unlock()
		defer func() { log = nil }()
		return log
	}
	srv := newTestPeer(t, nil, record("peer"))
	outer := srv.PullRouter.Group("outer", record("outer"))
	inner := outer.Group("inner", record("inner"))
	inner.Reg(&Fn{F: echo}, record("reg"))
	require.Equal(t, []string{"PostReg peer", "PostReg outer", "PostReg inner", "PostReg reg"}, flush())
	srv.PullRouter.Group("other", record("other")).Reg(&Fn{F: echo})
	require.Equal(t, []string{"PostReg peer", "PostReg other"}, flush())

	cli := newTestPeer(t, nil, record("cli"))
	sess := dial(t, cli, srv)
	require.NoError(t, func() error {
		cmd := sess.Pull("/outer/inner/fn/call", 1, nil)
		if cmd.Xerror != nil {
			return cmd.Xerror
		}
		return nil
	}())
	require.NoError(t, sess.Close())
	for srv.hubSize() > 0 {
		runtime.Gosched()
	}
	var server, client []string
	for _, l := range flush() {
		point, name, _ := strings.Cut(l, " ")
		switch {
		case point == "PreReadHeader": // before each wait, at any time beside the rest
		case name == "cli":
			client = append(client, point)
		default:
			server = append(server, l)
		}
	}
	// The reply may be read while PostWritePull still runs.
	require.ElementsMatch(t, []string{"PostDial", "PreWritePull", "PostWritePull", "PostReadHeader",
		"PreReadBody", "PostReadBody"}, client)
	require.Equal(t, []string{"PostDial", "PreWritePull"}, client[:2])
	require.Equal(t, []string{"PreReadBody", "PostReadBody"}, client[len(client)-2:])
	require.Equal(t, []string{
		"PostAccept peer",
		"PostReadHeader peer", "PostReadHeader outer", "PostReadHeader inner", "PostReadHeader reg",
		"PostReadHeader other",
		"PreReadBody peer", "PreReadBody outer", "PreReadBody inner", "PreReadBody reg",
		"PostReadBody peer", "PostReadBody outer", "PostReadBody inner", "PostReadBody reg",
		"PreWriteReply peer", "PreWriteReply outer", "PreWriteReply inner", "PreWriteReply reg",
		"PostWriteReply peer", "PostWriteReply outer", "PostWriteReply inner", "PostWriteReply reg",
	}, server)
}

func TestPostReadHeaderRunsOncePerPluginValue(t *testing.T) {
	var calls atomic.Int32
	shared := hookPlugin("shared", "PostReadHeader", func(interface{}) error { calls.Add(1); return nil })
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	srv.PullRouter.Group("a", shared).Reg(&Fn{F: echo})
	srv.PullRouter.Group("b", shared).Reg(&Fn{F: echo})
	// Two values with one name are two plugins, and values that cannot be
	// compared are never the same.
	srv.PullRouter.Group("c", hookPlugin("shared", "PostReadHeader",
		func(interface{}) error { calls.Add(10); return nil })).Reg(&Fn{F: echo})
	srv.PullRouter.Group("d", mapPlugin{"calls": &calls}).Reg(&Fn{F: echo})
	srv.PullRouter.Group("e", mapPlugin{"calls": &calls}).Reg(&Fn{F: echo})
	_, sess := connect(t, srv, cli, pipe.Options{})
	require.Nil(t, sess.Pull("/a/fn/call", 1, nil).Xerror)
	require.EqualValues(t, 211, calls.Load())
}

type mapPlugin map[string]*atomic.Int32

func (mapPlugin) Name() string                   { return "map" }
func (m mapPlugin) PostReadHeader(ReadCtx) error { m["calls"].Add(100); return nil }

func TestHooksMayChangeWhatIsSent(t *testing.T) {
	srv := newTestPeer(t, nil, hookPlugin("shout", "PreWriteReply", func(ctx interface{}) error {
		out := ctx.(WriteCtx).Output()
		if s, ok := out.Body.(string); ok {
			out.Body = s + "!"
		}
		out.Header.Id, out.Header.Type = "forged", packet.TypePush // has no effect
		return nil
	}))
	cli := newTestPeer(t, nil, hookPlugin("redirect", "PreWritePull", func(ctx interface{}) error {
		ctx.(WriteCtx).Output().Header = &packet.Header{Uri: "/elsewhere"} // without id and type
		return nil
	}))
	srv.PullRouter.Group("g", hookPlugin("back", "PostReadHeader", func(ctx interface{}) error {
		h := *ctx.(ReadCtx).Input().Header
		h.Uri = "/fn/call"
		ctx.(ReadCtx).Input().Header = &h
		return nil
	})).SetUnknown(func(UnknownPullCtx, *[]byte) (interface{}, Xerror) { return nil, nil })
	pullFn(srv, func(_ PullCtx, args interface{}) (interface{}, Xerror) { return fmt.Sprint(args), nil })
	_, sess := connect(t, srv, cli, pipe.Options{})
	var got string
	cmd := sess.Pull("/nowhere", 7, &got)
	require.Nil(t, cmd.Xerror)
	require.Equal(t, "7!", got)
}

func TestDuplicatePluginNamesPanic(t *testing.T) {
	one, two := hookPlugin("same", "", nil), hookPlugin("same", "", nil)
	require.PanicsWithValue(t,
		`tp: NewPeer: plugin "same" is there twice in one chain of plugins (*tp.routePlugin and `+
			`*tp.routePlugin): expected each plugin once, or another name for one of them.`,
		func() {
			NewPeer(nil, one, two)
		})
	p := newTestPeer(t, nil, one)
	require.Panics(t, func() { p.PullRouter.Group("a", two) })
	require.Panics(t, func() { p.PullRouter.Reg(&Fn{F: echo}, two) })
	require.Panics(t, func() { p.PushRouter.SetUnknown(func(UnknownPushCtx, *[]byte) {}, two) })
	require.Panics(t, func() { p.PullRouter.Group("a", nil) })
	refuse := newTestPeer(t, nil, hookPlugin("picky", "PostReg", func(h interface{}) error {
		return errors.New("do not like " + h.(*Handler).Name())
	}))
	require.PanicsWithValue(t,
		"tp: the route /fn/call is refused: plugin picky: PostReg: do not like /fn/call.", func() {
			pullFn(refuse, echo)
		})
}

// authentication: the hooks exchange packets before anything is routed.
func authServer(t *testing.T, handled *atomic.Int32) *Peer {
	srv := newTestPeer(t, nil, hookPlugin("auth", "PostAccept", func(c interface{}) error {
		s := c.(ForeSession)
		var token string
		p, err := s.Receive(&token)
		if err != nil {
			return err
		}
		if p.Header.Uri != "/auth" || token != "let me in" {
			_ = s.Send(&packet.Packet{Header: &packet.Header{Uri: "/auth"}, Body: "denied"})
			return errors.New("denied")
		}
		if err := s.ChangeId("user"); err != nil {
			return err
		}
		s.Public().Store("user", "user")
		return s.Send(&packet.Packet{Header: &packet.Header{Uri: "/auth"}, Body: "welcome"})
	}))
	pullFn(srv, func(_ PullCtx, args interface{}) (interface{}, Xerror) {
		handled.Add(1)
		return args, nil
	})
	return srv
}

// What a handler's goroutine sets after the handler has returned comes too late.
func TestSettingsAfterTheHandler(t *testing.T) {
	var kept PullCtx
	srv := newTestPeer(t, nil, hookPlugin("late", "PreWriteReply", func(interface{}) error {
		if kept != nil {
			kept.SetGzip(9)
			kept.SetBodyCodec("string")
		}
		return nil
	}))
	cli := newTestPeer(t, nil)
	pullFn(srv, func(ctx PullCtx, args interface{}) (interface{}, Xerror) {
		kept = ctx
		return args, nil
	})
	_, sess := connect(t, srv, cli, pipe.Options{})
	cmd := sess.Pull("/fn/call", "x", new(string))
	require.Nil(t, cmd.Xerror)
	require.Equal(t, "json", cmd.Input().BodyCodec)
	require.Zero(t, cmd.Input().Header.Gzip)

	var unknown UnknownPullCtx
	srv.PullRouter.SetUnknown(func(ctx UnknownPullCtx, body *[]byte) (interface{}, Xerror) {
		unknown = ctx
		return packet.RawBody(*body), nil
	})
	require.Nil(t, sess.Pull("/x", "x", nil).Xerror)
	var v interface{}
	_, err := unknown.Unmarshal([]byte("j1"), &v, true)
	require.NoError(t, err)
	require.Nil(t, unknown.Input().Body)
}

// typedNil is an error whose methods panic on a nil receiver.
type typedNil struct{ code int32 }

func (e *typedNil) Code() int32   { return e.code }
func (e *typedNil) Text() string  { return fmt.Sprint(e.code) }
func (e *typedNil) Error() string { return e.Text() }

// Mistakes in a hook, and in what it returns, cost the call and nothing else.
func TestHooksThatGoWrong(t *testing.T) {
	for _, side := range []string{"server", "client"} {
		for _, point := range []string{"PostReadHeader", "PreReadBody", "PostReadBody", "PreWriteReply",
			"PostWriteReply", "PreWritePull", "PostWritePull"} {
			for name, wrong := range map[string]func() error{
				"typed nil":        func() error { return (*typedNil)(nil) },
				"Goexit":           func() error { runtime.Goexit(); return nil },
				"header replaced":  nil,
				"id and type gone": nil,
			} {
				if name == "Goexit" && side == "client" {
					continue // it would end the caller's own goroutine, as it should
				}
				t.Run(side+" "+point+" "+name, func(t *testing.T) {
					var on atomic.Bool
					bad := hookPlugin("bad", point, func(ctx interface{}) error {
						if !on.Load() {
							return nil
						}
						if wrong != nil {
							return wrong()
						}
						var h **packet.Header
						if strings.Contains(point, "Read") {
							h = &ctx.(ReadCtx).Input().Header
						} else {
							h = &ctx.(WriteCtx).Output().Header
						}
						if name == "header replaced" {
							c := **h
							c.Id, c.Type = "", 0
							*h = &c
						} else {
							(*h).Id, (*h).Type = "gone", packet.TypePush
							if point == "PreReadBody" {
								return errHook
							}
						}
						return nil
					})
					plugins := map[string][]Plugin{side: {bad}}
					srv, cli := newTestPeer(t, nil, plugins["server"]...), newTestPeer(t, nil,
						plugins["client"]...)
					pullFn(srv, echo)
					_, sess := connect(t, srv, cli, pipe.Options{})
					requireAlive(t, sess)
					on.Store(true)
					cmd := sess.Pull("/fn/call", "x", nil) // ends, one way or the other
					if name == "header replaced" {
						require.Nil(t, cmd.Xerror)
					}
					on.Store(false)
					if name == "Goexit" && point == "PostReadHeader" {
						<-sess.Done() // it was the reading goroutine's own end
						return
					}
					requireAlive(t, sess)
				})
			}
		}
	}
}

// A hook may hold its context and ask it for the packets when the call is long
// over, as one that writes an audit log in the background does.
func TestContextsHeldByHooks(t *testing.T) {
	var mu sync.Mutex
	held, holding := map[string]interface{}{}, true
	hold := func(side string) Plugin {
		p := newTestPlugin(side, map[string]func(interface{}) error{})
		for _, point := range []string{
			"PreWritePull", "PostWritePull", "PreWritePush", "PostWritePush", "PreReadHeader",
			"PostReadHeader", "PreReadBody", "PostReadBody", "PreWriteReply", "PostWriteReply",
		} {
			p.on[point] = func(c interface{}) error {
				mu.Lock()
				defer mu.Unlock()
				if holding {
					held[side+" "+point] = c
				}
				return nil
			}
		}
		return p
	}
	srv, cli := newTestPeer(t, nil, hold("server")), newTestPeer(t, nil, hold("client"))
	HandlePull(srv.PullRouter, "/a", func(PullCtx, *string) (string, Xerror) { return "reply", nil })
	sess, _ := connect(t, cli, srv, pipe.Options{})
	require.Nil(t, sess.Pull("/a", "args", new(string)).Xerror)
	require.Nil(t, sess.Push("/none", "args"))
	require.Equal(t, StatusNotFound, sess.Pull("/none", "args", nil).Xerror.Code())
	mu.Lock()
	holding = false
	mu.Unlock()
	for range 100 { // others, in what memory the first ones had
		require.Nil(t, sess.Pull("/a", "args", new(string)).Xerror)
	}
	require.NoError(t, sess.Close())
	require.NoError(t, srv.Close())

	mu.Lock()
	defer mu.Unlock()
	for point, c := range held {
		switch {
		case strings.HasSuffix(point, "PreReadHeader"): // of the next packet, which there may not be
			require.NotNil(t, c.(ReadCtx).Input().Header, point)
		case strings.Contains(point, "Read"):
			require.NotEmpty(t, c.(ReadCtx).Input().Header.Type, point)
		default:
			require.NotEmpty(t, c.(WriteCtx).Output().Header.Type, point)
		}
	}
	for _, point := range []string{"PreReadBody", "PostReadBody"} {
		in := held["server "+point].(ReadCtx).Input()
		require.Equal(t, "/a", in.Header.Uri)
		require.Equal(t, "args", *in.Body.(*string))
	}
	require.Equal(t, "/none", held["server PostReadHeader"].(ReadCtx).Input().Header.Uri)
	require.Equal(t, "reply", *held["client PostReadBody"].(ReadCtx).Input().Body.(*string))
	require.NotPanics(t, func() { held["server PostReadHeader"].(PullCtx).SetGzip(3) })
}

func TestPostRegMayRegister(t *testing.T) {
	var p *Peer
	once := false
	p = newTestPeer(t, nil, hookPlugin("more", "PostReg", func(interface{}) error {
		if !once {
			once = true
			p.PullRouter.Group("more").Reg(&Fn{F: echo})
		}
		return nil
	}))
	pullFn(p, echo)
	require.NotNil(t, p.PullRouter.routes.table.Load().find("/more/fn/call"))
}

func TestReplacedUnknownHandlerTakesItsHooksAlong(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	u := func(UnknownPullCtx, *[]byte) (interface{}, Xerror) { return nil, nil }
	srv.PullRouter.SetUnknown(u, hookPlugin("old", "PostReadHeader",
		func(interface{}) error { return errHook }))
	_, sess := connect(t, srv, cli, pipe.Options{})
	require.NotNil(t, sess.Pull("/x", 1, nil).Xerror)
	srv.PullRouter.SetUnknown(u)
	require.Nil(t, sess.Pull("/x", 1, nil).Xerror)
}

func TestDialEndsAtItsDeadlineWhateverAHookDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		p := NewPeer(nil, hookPlugin("stuck", "PostDial", func(interface{}) error { <-release; return nil }))
		defer p.Close()
		ca, cb := pipe.New(pipe.Options{})
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		start := time.Now()
		_, err := p.newSession(ctx, ca, origin{hooks: p.chain.postDial})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(start))
		_, err = cb.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
		require.NoError(t, cb.Close())
		close(release)
	})
}

func authClient(t *testing.T, token string) *Peer {
	return newTestPeer(t, nil, hookPlugin("auth", "PostDial", func(c interface{}) error {
		s := c.(ForeSession)
		if err := s.Send(&packet.Packet{Header: &packet.Header{Uri: "/auth"}, Body: token}); err != nil {
			return err
		}
		var answer string
		if _, err := s.Receive(&answer); err != nil {
			return err
		}
		if answer != "welcome" {
			return errors.New("server says: " + answer)
		}
		return nil
	}))
}

func TestAuthenticationInHooks(t *testing.T) {
	var handled atomic.Int32
	srv := authServer(t, &handled)
	addr := serve(t, srv)
	good := authClient(t, "let me in")
	sess, err := good.Dial(addr)
	require.NoError(t, err)
	requireAlive(t, sess)
	there, ok := srv.GetSession("user")
	require.True(t, ok)
	v, _ := there.Public().Load("user")
	require.Equal(t, "user", v)

	_, err = authClient(t, "guess").Dial(addr)
	require.ErrorContains(t, err, "server says: denied")

	// The id is taken as long as the first user is there.
	_, err = authClient(t, "let me in").Dial(addr)
	require.ErrorContains(t, err, "refused by the other side: 424 tp: the session id is taken")
	requireAlive(t, sess)

	// Pulls before, together with and after a failed authentication never run.
	handled.Store(0)
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	var out []byte
	for _, p := range []*packet.Packet{
		{Header: &packet.Header{Id: "1", Type: packet.TypePull, Uri: "/fn/call"}, Body: "1"},
		{Header: &packet.Header{Uri: "/auth"}, Body: "guess"},
		// More than the server has read when it refuses.
		{Header: &packet.Header{Id: "2", Type: packet.TypePull, Uri: "/fn/call"}, Body: strings.Repeat("x",
			1<<20)},
	} {
		out, err = packet.Append(out, p, packet.Limits{})
		require.NoError(t, err)
	}
	_, err = conn.Write(out)
	require.NoError(t, err)
	require.NoError(t, conn.(*net.TCPConn).CloseWrite())
	answer, err := io.ReadAll(conn)
	require.NoError(t, err, "the refusal arrives although the server had unread input")
	require.Contains(t, string(answer), `there came a pull of "/fn/call"`)
	require.NoError(t, conn.Close())
	require.Zero(t, handled.Load())
}

func TestSilentAndRejectedClientsHoldUpNobody(t *testing.T) {
	var handled atomic.Int32
	srv := authServer(t, &handled)
	addr := serve(t, srv)
	var conns []net.Conn
	for range 50 {
		conn, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		conns = append(conns, conn)
	}
	for range 5 {
		_, err := authClient(t, "guess").Dial(addr)
		require.Error(t, err)
	}
	sess, err := authClient(t, "let me in").Dial(addr)
	require.NoError(t, err)
	requireAlive(t, sess)
	require.Equal(t, 1, srv.CountSession(), "who has not authenticated is no session yet")
	for _, c := range conns {
		require.NoError(t, c.Close())
	}
}

func TestHandshakeHasADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, point := range []string{"PostAccept", "PostDial"} {
			sessions := make(chan ForeSession, 1)
			p := NewPeer(nil, hookPlugin("wait", point, func(c interface{}) error {
				sessions <- c.(ForeSession)
				_, err := c.(ForeSession).Receive(nil)
				return err
			}))
			defer p.Close()
			ca, cb := pipe.New(pipe.Options{})
			start := time.Now()
			var err error
			if point == "PostAccept" {
				_, err = p.ServeConn(ca)
			} else {
				_, err = p.newSession(t.Context(), ca, origin{hooks: p.chain.postDial})
			}
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorContains(t, err, "handshake took too long")
			require.Equal(t, 10*time.Second, time.Since(start))
			kept := <-sessions
			_, err = cb.Read(make([]byte, 1))
			require.ErrorIs(t, err, io.EOF)
			require.NoError(t, cb.Close())
			require.Zero(t, p.hubSize())
			_, err = kept.Receive(nil)
			require.ErrorIs(t, err, errHandshakeOver)
			require.ErrorIs(t, kept.Send(&packet.Packet{}), errHandshakeOver)
		}
	})
}

func TestPanicInAcceptHookRefusesTheConnection(t *testing.T) {
	var n atomic.Int32
	srv := newTestPeer(t, nil, hookPlugin("bad", "PostAccept", func(c interface{}) error {
		if n.Add(1) == 1 {
			panic("first")
		}
		return nil
	}))
	pullFn(srv, echo)
	addr := serve(t, srv)
	cli := newTestPeer(t, nil)
	sess, err := cli.Dial(addr)
	require.NoError(t, err)
	<-sess.Done()
	sess, err = cli.Dial(addr)
	require.NoError(t, err)
	requireAlive(t, sess)
}

func TestCloseDuringHandshake(t *testing.T) {
	entered := make(chan ForeSession)
	p := newTestPeer(t, nil, hookPlugin("wait", "PostAccept", func(c interface{}) error {
		entered <- c.(ForeSession)
		_, err := c.(ForeSession).Receive(nil)
		return err
	}))
	ca, cb := net.Pipe()
	defer cb.Close()
	failed := make(chan error)
	go func() {
		_, err := p.ServeConn(ca)
		failed <- err
	}()
	s := <-entered
	require.Same(t, p, s.Peer())
	_, ok := p.GetSession(s.Id())
	require.False(t, ok)
	require.NoError(t, s.Close())
	require.Error(t, <-failed)
}
