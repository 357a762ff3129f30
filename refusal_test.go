package tp

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/internal/tlsconf"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// doorman lets in who says "good" in a push, and shower says something.
func doorman(answer error) Plugin {
	return hookPlugin("auth", "PostAccept", func(c interface{}) error {
		var token string
		if _, err := c.(ForeSession).Receive(&token); err != nil {
			return err
		}
		if token != "good" {
			return answer
		}
		return nil
	})
}

func shower(token string) Plugin {
	return hookPlugin("auth", "PostDial", func(c interface{}) error {
		return c.(ForeSession).Send(&packet.Packet{Header: &packet.Header{Type: packet.TypePush},
			Body: token})
	})
}

func echoAt(p *Peer) *Peer {
	HandlePull(p.PullRouter, "/echo", func(_ PullCtx, args *string) (string, Xerror) { return *args, nil })
	return p
}

// What a PostAccept hook says is what Dial says, whether the PostDial hook waits for an
// answer or not, and with details.
func TestDialIsToldWhyItIsRefused(t *testing.T) {
	waits := hookPlugin("auth", "PostDial", func(c interface{}) error {
		s := c.(ForeSession)
		if err := s.Send(&packet.Packet{Header: new(packet.Header), Body: "bad"}); err != nil {
			return err
		}
		_, err := s.Receive(nil)
		require.Error(t, err)
		return fmt.Errorf("no answer: %w", err)
	})
	swallows := hookPlugin("auth", "PostDial", func(c interface{}) error {
		_ = c.(ForeSession).Send(&packet.Packet{Header: new(packet.Header), Body: "bad"})
		_, _ = c.(ForeSession).Receive(nil)
		return nil
	})
	answer := WithDetails(NewXerror(StatusUnauthorized, "wrong token"), map[string]string{"why": "expired"})
	for name, plugin := range map[string]Plugin{"sends": shower("bad"), "waits": waits} {
		t.Run(name, func(t *testing.T) {
			addr := serve(t, newTestPeer(t, nil, doorman(answer)))
			_, err := newTestPeer(t, nil, plugin).Dial(addr)
			require.EqualError(t, err, "tp: dial "+addr+": refused by the other side: 401 wrong token")
			var x Xerror
			require.ErrorAs(t, err, &x)
			require.Equal(t, StatusUnauthorized, x.Code())
			require.ErrorIs(t, err, NewXerror(StatusUnauthorized, "wrong token"))
			require.True(t, NotRun(err))
			var details map[string]string
			found, err := Details(err, &details)
			require.NoError(t, err)
			require.True(t, found)
			require.Equal(t, "expired", details["why"])
		})
	}
	t.Run("swallows", func(t *testing.T) {
		_, err := newTestPeer(t, nil, swallows).Dial(serve(t, newTestPeer(t, nil, doorman(answer))))
		require.Error(t, err)
	})
	t.Run("good", func(t *testing.T) {
		srv := echoAt(newTestPeer(t, nil, doorman(answer)))
		sess, err := newTestPeer(t, nil, shower("good")).Dial(serve(t, srv))
		require.NoError(t, err)
		require.Nil(t, sess.Pull("/echo", "x", nil).Xerror)
	})
	t.Run("a plain error", func(t *testing.T) {
		_, err := newTestPeer(t, nil, shower("bad")).Dial(serve(t, newTestPeer(t, nil,
			doorman(errors.New("not today")))))
		require.ErrorContains(t, err, "refused by the other side: 424 not today")
	})
	t.Run("a panic", func(t *testing.T) {
		srv := newTestPeer(t, nil, hookPlugin("auth", "PostAccept",
			func(interface{}) error { panic("secret") }))
		_, err := newTestPeer(t, nil, shower("bad")).Dial(serve(t, srv))
		require.ErrorContains(t, err, "refused by the other side: 424 failed plugin")
	})
	t.Run("a local code", func(t *testing.T) {
		_, err := newTestPeer(t, nil, shower("bad")).Dial(serve(t, newTestPeer(t, nil,
			doorman(NewXerror(StatusConnClosed, "10.0.0.7 is away")))))
		require.ErrorContains(t, err, "refused by the other side: 502 connection closed")
	})
}

// The server's first packets may come before it has answered that it wants the connection:
// they are handled.
func TestPushesBeforeTheOutcome(t *testing.T) {
	srv := newTestPeer(t, nil, doorman(nil))
	pushed := make(chan string, 1)
	cli := newTestPeer(t, nil, shower("good"))
	HandlePush(cli.PushRouter, "/hello", func(_ PushCtx, args *string) { pushed <- *args })
	ca, cb := pipe.New(pipe.Options{})
	accepted := make(chan error, 1)
	go func() {
		s, err := srv.newSession(context.Background(), cb, origin{hooks: srv.chain.postAccept,
			stranger: true})
		if err == nil {
			err = asError(s.Push("/hello", "first"))
		}
		accepted <- err
	}()
	_, err := cli.newSession(context.Background(), ca, origin{hooks: cli.chain.postDial, confirms: true})
	require.NoError(t, err)
	require.NoError(t, <-accepted)
	require.Equal(t, "first", <-pushed)

	// And if it is the very first: this server answers nothing.
	ca, cb = pipe.New(pipe.Options{})
	raw := newRawPeer(t, cb)
	go raw.send(&packet.Packet{Header: &packet.Header{Type: packet.TypePush, Uri: "/hello"}, Body: "only"})
	_, err = cli.newSession(context.Background(), ca, origin{hooks: cli.chain.postDial, confirms: true})
	require.NoError(t, err)
	require.Equal(t, "only", <-pushed)
}

// rawPeer speaks in packets.
type rawPeer struct {
	t    testing.TB
	sock *socket.Socket
}

func newRawPeer(t testing.TB, conn net.Conn) *rawPeer {
	r := &rawPeer{t, socket.New(conn, socket.Options{})}
	t.Cleanup(func() { _ = r.sock.Close() })
	return r
}

func (r *rawPeer) send(p *packet.Packet) {
	if err := r.sock.WritePacket(p); err != nil {
		r.t.Error(err)
	}
}

// receive returns nil at the end.
func (r *rawPeer) receive() *packet.Packet {
	p := new(packet.Packet)
	if r.sock.ReadPacket(p, nil) != nil {
		return nil
	}
	return p
}

func asError(x Xerror) error {
	if x == nil {
		return nil
	}
	return x
}

// A refusal that says nothing sensible is one all the same.
func TestOddRefusals(t *testing.T) {
	for _, h := range []packet.Header{{StatusCode: StatusOK, Status: "OK"}, {},
		{StatusCode: StatusConnClosed}, {StatusCode: 401, Gzip: 5}} {
		ca, cb := pipe.New(pipe.Options{})
		raw := newRawPeer(t, cb)
		h.Id, h.Type = refusedId, packet.TypeReply
		go func() {
			raw.send(&packet.Packet{Header: &h, Body: packet.RawBody("\xff\xfegarbage")})
			_ = raw.sock.Close()
		}()
		cli := newTestPeer(t, nil, shower("x"))
		_, err := cli.DialConn(t.Context(), ca)
		require.ErrorContains(t, err, "refused by the other side: ")
		var x Xerror
		require.ErrorAs(t, err, &x)
		require.NotEqual(t, StatusOK, x.Code())
		require.False(t, isLocal(x.Code()))
	}
}

// A server that does not know the ping answers it with 410, which is an answer.
func TestOutcomeByAnOldServer(t *testing.T) {
	ca, cb := pipe.New(pipe.Options{})
	raw := newRawPeer(t, cb)
	go func() {
		for {
			p := raw.receive()
			if p == nil {
				return
			}
			if p.Header.Type == packet.TypePing {
				raw.send(&packet.Packet{Header: &packet.Header{Id: p.Header.Id, Type: packet.TypeReply,
					StatusCode: StatusUnsupportedType}})
			}
		}
	}()
	cli := newTestPeer(t, nil, shower("good"))
	_, err := cli.newSession(context.Background(), ca, origin{hooks: cli.chain.postDial, confirms: true})
	require.NoError(t, err)
}

// A client that forgot its plugin: the pull that is taken for a token is answered, and
// nothing that was sent by the connection has run.
func TestPullInsteadOfAToken(t *testing.T) {
	srv := echoAt(newTestPeer(t, nil, doorman(nil)))
	sess, err := newTestPeer(t, nil).Dial(serve(t, srv))
	require.NoError(t, err)
	first := sess.Pull("/echo?token=x", "one", nil).Xerror
	require.Equal(t, StatusUnauthorized, first.Code())
	require.Equal(t, "expected a packet of the other side's PostDial hook, which may not have the plugin, "+
		`and there came a pull of "/echo"`, first.Text())
	require.True(t, NotRun(first))
	<-sess.Done()
	require.ErrorContains(t, sess.Err(), "refused by the other side: 401 expected a packet")
	require.Equal(t, first.Error(), sess.Pull("/echo", "two", nil).Xerror.Error())
	require.Equal(t, StatusUnauthorized, sess.Push("/echo", "two").Code())
}

// The same with a hook that does not look at the error: the connection goes on, and the pull
// is answered all the same.
func TestPullInsteadOfATokenThatIsPassedOver(t *testing.T) {
	srv := echoAt(newTestPeer(t, nil, hookPlugin("auth", "PostAccept", func(c interface{}) error {
		_, _ = c.(ForeSession).Receive(nil)
		return nil
	})))
	sess, err := newTestPeer(t, nil).Dial(serve(t, srv))
	require.NoError(t, err)
	require.Equal(t, StatusUnauthorized, sess.Pull("/echo", "one", nil).Xerror.Code())
	require.Nil(t, sess.Pull("/echo", "two", nil).Xerror)
}

// A push to a route is none of a handshake, unless a hook sends it.
func TestPushInsteadOfAToken(t *testing.T) {
	srv := newTestPeer(t, nil, doorman(errors.New("wrong")))
	HandlePush(srv.PushRouter, "/said", func(PushCtx, *string) {})
	addr := serve(t, srv)
	sess, err := newTestPeer(t, nil).Dial(addr)
	require.NoError(t, err)
	require.Nil(t, sess.Push("/said", "good"))
	<-sess.Done()
	require.ErrorContains(t, sess.Err(),
		"401 expected a packet of the other side's PostDial hook, which may not have the plugin, and there "+
			`came a push to "/said"`)

	hook := hookPlugin("auth", "PostDial", func(c interface{}) error {
		return c.(ForeSession).Send(&packet.Packet{Header: &packet.Header{Type: packet.TypePush,
			Uri: "/said"}, Body: "good"})
	})
	_, err = newTestPeer(t, nil, hook).Dial(addr)
	require.NoError(t, err)
}

// A server without the hook pushes: the client's hook does not take that for its answer.
func TestPushInsteadOfAnAnswer(t *testing.T) {
	srv := newTestPeer(t, nil)
	cli := newTestPeer(t, nil, hookPlugin("auth", "PostDial", func(c interface{}) error {
		_, err := c.(ForeSession).Receive(nil)
		return err
	}))
	HandlePush(cli.PushRouter, "/hello", func(PushCtx, *string) {})
	ca, cb := pipe.New(pipe.Options{})
	go func() {
		if s, err := srv.ServeConn(cb); err == nil {
			_ = s.Push("/hello", "you")
		}
	}()
	_, err := cli.newSession(context.Background(), ca, origin{hooks: cli.chain.postDial, confirms: true})
	require.ErrorContains(t, err,
		"expected a packet of the other side's PostAccept hook, which may not have the plugin, and there "+
			`came a push to "/hello"`)
}

// Pulls that were sent before the refusal came have not run.
func TestPullsOfARefusedConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := echoAt(newTestPeer(t, nil, hookPlugin("auth", "PostAccept", func(interface{}) error {
			time.Sleep(time.Second)
			return NewXerror(StatusForbidden, "not you")
		})))
		ca, cb := pipe.New(pipe.Options{})
		go srv.ServeConn(cb)
		sess, err := newTestPeer(t, nil).ServeConn(ca)
		require.NoError(t, err)
		for range 3 {
			cmd := sess.GoPull("/echo", "x", nil, nil)
			defer func() {
				x := (<-cmd.Done()).Xerror
				require.Equal(t, StatusForbidden, x.Code())
				require.Equal(t, "not you", x.Text())
				require.True(t, NotRun(x))
			}()
		}
	})
}

// What cannot get better ends the redialling, with one line.
func TestRedialEndsWithWhatCannotGetBetter(t *testing.T) {
	for name, c := range map[string]struct {
		refuses error
		ends    bool
	}{
		"401":     {NewXerror(StatusUnauthorized, "wrong token"), true},
		"403":     {NewXerror(StatusForbidden, "not you"), true},
		"424":     {errors.New("no database"), false},
		"503":     {NewXerror(StatusServiceUnavailable, "later"), false},
		"by hook": {nil, true},
	} {
		for _, how := range []string{"PostDial", "no hook", "PostConnect"} {
			t.Run(name+", "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n := newNet()
					var refuses atomic.Bool
					srv := newTestPeer(t, nil, hookPlugin("auth", "PostAccept", func(interface{}) error {
						if refuses.Load() {
							return c.refuses
						}
						return nil
					}))
					HandlePull(srv.PullRouter, "/echo", func(_ PullCtx, args *string) (string, Xerror) {
						return *args, nil
					})
					n.serve("a", srv)
					log := captureLog(t, LevelInfo)
					on := map[string]func(interface{}) error{}
					if name == "by hook" && how == "no hook" {
						return
					}
					if how != "no hook" {
						on[how] = func(interface{}) error {
							if refuses.Load() && name == "by hook" {
								return Permanent(errors.New("my licence has ended"))
							}
							return nil
						}
					}
					var plugins []Plugin
					if len(on) > 0 {
						plugins = append(plugins, newTestPlugin("auth", on))
					}
					cli := n.client(t, &PeerConfig{Redial: new(Redial)}, plugins...)
					sess, err := cli.Dial("a")
					require.NoError(t, err)
					require.Nil(t, sess.Pull("/echo", "x", nil).Xerror)
					refuses.Store(true)
					synctest.Wait()
					log.take()
					srv.RangeSession(func(s *Session) bool { _ = s.Close(); return true })
					time.Sleep(time.Hour)
					synctest.Wait()
					if !c.ends {
						require.True(t, sess.isOpen())
						refuses.Store(false)
						time.Sleep(time.Minute)
						require.Nil(t, sess.Pull("/echo", "x", nil).Xerror)
						return
					}
					<-sess.Done()
					x := sess.Pull("/echo", "x", nil).Xerror
					require.True(t, NotRun(x))
					var given []string
					for _, line := range log.take() {
						if strings.Contains(line, "given up") {
							given = append(given, line)
						}
					}
					require.Len(t, given, 1)
					require.Contains(t, given[0], " ended: redialling is given up: ")
					dials := len(n.dialled())
					time.Sleep(time.Hour)
					require.Len(t, n.dialled(), dials)
				})
			})
		}
	}
}

// With several addresses redialling ends when none of them can get better, or a hook says so.
func TestRedialGivesUpWhenNoAddressCanGetBetter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		srv := named(t, "A")
		n.serve("a", srv)
		cli := n.client(t, &PeerConfig{Redial: new(Redial)}, shower("x"))
		sess, err := cli.Dial("a, b")
		require.NoError(t, err)
		n.serve("a", newTestPeer(t, nil, doorman(NewXerror(StatusUnauthorized, "unknown"))))
		require.NoError(t, srv.Close())
		time.Sleep(time.Hour) // b does not answer: it may come back
		require.True(t, sess.isOpen())
		n.serve("b", newTestPeer(t, nil, doorman(NewXerror(StatusForbidden, "unknown"))))
		time.Sleep(time.Minute)
		<-sess.Done()
		require.ErrorContains(t, sess.Err(), "redialling is given up")
	})
}

// The server refuses the client's certificate, or that there is none, after the client's
// part of TLS 1.3 is over.
func TestDialIsToldOfItsCertificate(t *testing.T) {
	cert, key := new(authority).issue(t, nil)
	certFile, keyFile := files(t, cert, key)
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	srv := newTestPeer(t, &PeerConfig{TlsCertFile: certFile, TlsKeyFile: keyFile,
		TLSConfig: &tls.Config{ClientAuth: tls.RequireAnyClientCert}})
	echoAt(srv)
	addr := serve(t, srv)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		cli := newTestPeer(t, &PeerConfig{Redial: new(Redial), TLSConfig: &tls.Config{RootCAs: roots,
			MinVersion: version, MaxVersion: version}})
		_, err := cli.Dial(addr)
		require.Error(t, err)
		require.True(t, tlsconf.RefusesCertificate(err), "%v", err)
		require.True(t, lasting(err))
	}
	with := newTestPeer(t, &PeerConfig{TlsCertFile: certFile, TlsKeyFile: keyFile,
		TLSConfig: &tls.Config{RootCAs: roots}})
	sess, err := with.Dial(addr)
	require.NoError(t, err)
	require.Nil(t, sess.Pull("/echo", "x", nil).Xerror)

	require.Nil(t, Permanent(nil))
}

// PostConnect is called for the first connection and for those after it, and Dial fails with
// its error.
func TestPostConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		n.serve("a", named(t, "A"))
		var seen notes
		var fails atomic.Pointer[error]
		cli := n.client(t, &PeerConfig{Redial: new(Redial)}, newTestPlugin("p",
			map[string]func(interface{}) error{
				"PostConnect": func(s interface{}) error {
					seen.add("connected to " + nameOf(s.(*Session)))
					if err := fails.Load(); err != nil {
						return *err
					}
					return nil
				},
				"PostReconnect": func(interface{}) error { seen.add("again"); return nil },
			}))
		sess, err := cli.Dial("a")
		require.NoError(t, err)
		require.Equal(t, []string{"connected to A"}, seen.take())
		n.serve("a", named(t, "B"))
		require.NoError(t, sess.conn.Load().sock.Close())
		time.Sleep(time.Minute)
		require.Equal(t, []string{"connected to B", "again"}, seen.take())
		nothing := errors.New("nothing to subscribe to")
		fails.Store(&nothing)
		_, err = cli.Dial("a")
		require.ErrorContains(t, err, "tp: dial a: plugin p: PostConnect: nothing to subscribe to")
		require.Equal(t, 1, cli.CountSession())
	})
}

// Redial.First waits for a server that is not there yet.
func TestRedialFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet()
		cfg := func(r Redial) *PeerConfig {
			r.First = true
			return &PeerConfig{Redial: &r,
				DialContext: n.dial}
		}
		cli := newTestPeer(t, cfg(Redial{}))
		got := make(chan string, 1)
		go func() {
			sess, err := cli.Dial("a")
			require.NoError(t, err)
			got <- nameOf(sess)
		}()
		time.Sleep(time.Hour)
		require.Empty(t, got)
		require.Greater(t, len(n.dialled()), 100)
		n.serve("a", named(t, "A"))
		require.Equal(t, "A", <-got)

		_, err := newTestPeer(t, cfg(Redial{Attempts: 3})).Dial("b")
		require.EqualError(t, err, "tp: dial b: 3 attempts have failed: nobody is there")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err = cli.DialContext(ctx, "b")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, errNobody)
		go func() { time.Sleep(time.Minute); _ = cli.Close() }()
		_, err = cli.Dial("b")
		require.ErrorIs(t, err, ErrPeerClosed)

		// What cannot get better is not waited for.
		n.serve("c", newTestPeer(t, nil, doorman(NewXerror(StatusForbidden, "not you"))))
		_, err = newTestPeer(t, cfg(Redial{}), shower("x")).Dial("c")
		require.EqualError(t, err, "tp: dial c: refused by the other side: 403 not you")
		_, err = newTestPeer(t, cfg(Redial{}), shower("x")).Dial("c,")
		require.ErrorContains(t, err, "an address is empty")
		_, err = newTestPeer(t, &PeerConfig{Redial: &Redial{First: true}}).Dial("c")
		require.ErrorContains(t, err, "missing port in address")
	})
}

// DialConn runs the hooks of who dials on a connection that is given.
func TestDialConn(t *testing.T) {
	for name, pair := range map[string]func() (net.Conn, net.Conn){
		"net.Pipe": net.Pipe,
		"buffered": func() (net.Conn, net.Conn) { return pipe.New(pipe.Options{}) },
	} {
		for _, token := range []string{"good", "bad"} {
			t.Run(name+", "+token, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					srv := echoAt(newTestPeer(t, nil, doorman(NewXerror(StatusUnauthorized, "wrong"))))
					cli := newTestPeer(t, &PeerConfig{Redial: new(Redial)}, shower(token))
					a, b := pair()
					go srv.ServeConn(a)
					sess, err := cli.DialConn(t.Context(), b, "the server")
					if token == "bad" {
						require.EqualError(t, err,
							fmt.Sprintf("tp: dial %s: refused by the other side: 401 wrong", b.RemoteAddr()))
						return
					}
					require.NoError(t, err)
					require.Equal(t, "the server", sess.Id())
					require.Nil(t, sess.Pull("/echo", "x", nil).Xerror)
					require.NoError(t, srv.Close())
					<-sess.Done()
				})
			})
		}
	}
	t.Run("nobody answers", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, b := net.Pipe()
			defer a.Close()
			_, err := newTestPeer(t, nil, shower("x")).DialConn(t.Context(), b)
			require.ErrorContains(t, err, "the handshake took too long")
		})
	})
}
