package auth

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/plugin/internal/plugintest"
	"github.com/henrylee2cn/teleport/plugin/limit"
	"github.com/henrylee2cn/teleport/socket"
)

func TestMain(m *testing.M) {
	tp.SetLogLevel(tp.LevelOff)
	goleak.VerifyTestMain(m)
}

var (
	secretOfAnn = []byte("0123456789abcdef0123456789abcdef")
	ann         = &Principal{Name: "ann", Roles: []string{"admin", "dev"}}
	bob         = &Principal{Name: "bob"}
)

func findSecret(_ context.Context, id string) ([]byte, *Principal, error) {
	if id == "ann" {
		return secretOfAnn, ann, nil
	}
	return nil, nil, nil
}

// server returns a peer with the plugin, with a route that says who calls and counts how often it was called.
func server(t *testing.T, a *Auth) (*tp.Peer, *atomic.Int32) {
	p := tp.NewPeer(nil, a)
	t.Cleanup(func() { p.Close() })
	calls := new(atomic.Int32)
	who := func(ctx tp.PullCtx, _ *string) (string, tp.Xerror) {
		calls.Add(1)
		if p := Identity(ctx); p != nil {
			return p.Name + " by " + p.Scheme, nil
		}
		return "nobody", nil
	}
	for _, path := range []string{"/who", "/admin", "/admin/users", "/admin/open", "/dev/x"} {
		tp.HandlePull(p.PullRouter, path, who)
	}
	return p, calls
}

// join connects the two peers; the client dials.
func join(t *testing.T, srv, cli *tp.Peer) (*tp.Session, error) {
	ca, cb := pipe.New(pipe.Options{})
	return joinBy(t, srv, cli, ca, cb)
}

func joinBy(t *testing.T, srv, cli *tp.Peer, ca, cb net.Conn) (*tp.Session, error) {
	served := make(chan error, 1)
	go func() { _, err := srv.ServeConn(ca); served <- err }()
	sess, err := cli.DialConn(t.Context(), cb)
	<-served
	return sess, err
}

func client(t *testing.T, options ...Option) *tp.Peer {
	var p *tp.Peer
	if len(options) > 0 {
		p = tp.NewPeer(nil, New(options...))
	} else {
		p = tp.NewPeer(nil)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func who(t *testing.T, sess *tp.Session) string {
	text, err := tp.Call[string](t.Context(), sess, "/who", "")
	require.NoError(t, err)
	return text
}

func accepting(more ...Option) *Auth {
	return New(append([]Option{AcceptTokens(StaticTokens(map[string]*Principal{"ann's token": ann,
		"bob's token": bob})), AcceptSecrets(findSecret), AcceptCertificates(nil), AcceptAnonymous()},
		more...)...)
}

// Each way to prove an identity, where the other side accepts all of them.
func TestSchemes(t *testing.T) {
	srv, _ := server(t, accepting())
	for want, option := range map[string]Option{
		"ann by token":  StaticToken("ann's token"),
		"bob by token":  StaticToken("bob's token"),
		"ann by secret": Secret("ann", secretOfAnn),
		"nobody":        Anonymous(),
	} {
		sess, err := join(t, srv, client(t, option))
		require.NoError(t, err, want)
		require.Equal(t, want, who(t, sess))
		if want == "ann by secret" {
			require.Equal(t, &Principal{Name: "ann", Scheme: SchemeSecret}, Of(sess),
				"the server has proved it")
		} else {
			require.Nil(t, Of(sess))
		}
	}
	require.Equal(t, "", ann.Scheme, "what the program has returned is not changed")
}

// What is wrong is told to the side that has dialled, and nothing is handled.
func TestRefusals(t *testing.T) {
	failing := AcceptTokens(func(_ context.Context, token string) (*Principal, error) {
		switch token {
		case "xerror":
			return nil, tp.NewXerror(tp.StatusForbidden, "ann is on holiday")
		case "error":
			return nil, errors.New("password of the database: 12345")
		case "expired":
			return &Principal{Name: "ann", Expires: time.Now().Add(-time.Second)}, nil
		}
		return nil, nil
	})
	short := AcceptSecrets(func(context.Context, string) ([]byte, *Principal, error) {
		return []byte("short"), ann, nil
	})
	for name, c := range map[string]struct {
		accepts *Auth
		shows   []Option
		says    string
	}{
		"wrong token": {accepting(), []Option{StaticToken("guess")}, "401 the token is not valid"},
		"empty token": {accepting(), []Option{Token(func(context.Context) (string, error) {
			return "", nil
		})}, "401 the token is not valid"},
		"wrong secret": {accepting(), []Option{Secret("ann", []byte(strings.Repeat("x", 32)))},
			"401 " + wrongSecret},
		"unknown id": {accepting(), []Option{Secret("eve", secretOfAnn)}, "401 " + wrongSecret},
		"no TLS": {accepting(), []Option{Certificate()},
			"401 a certificate is shown by TLS, and the connection does not speak it"},
		"not anonymous": {New(AcceptSecrets(findSecret)), []Option{Anonymous()}, `401 the scheme "anonymous" is not accepted here`},
		"downgrade":     {New(AcceptSecrets(findSecret)), []Option{StaticToken("ann's token")}, `401 the scheme "token" is not accepted here`},
		"error":         {New(failing), []Option{StaticToken("error")}, "401 the token is not valid"},
		"xerror":        {New(failing), []Option{StaticToken("xerror")}, "403 ann is on holiday"},
		"expired":       {New(failing), []Option{StaticToken("expired")}, "401 what was shown has expired"},
		"short secret":  {New(short), []Option{Secret("ann", secretOfAnn)}, "401 " + wrongSecret},
		"without a token": {New(failing), []Option{Token(func(context.Context) (string, error) {
			return "",
				io.EOF
		})}, "auth: no token to show: EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			srv, calls := server(t, c.accepts)
			_, err := join(t, srv, client(t, c.shows...))
			require.ErrorContains(t, err, c.says)
			require.NotContains(t, err.Error(), "12345")
			require.Zero(t, calls.Load())
		})
	}
	t.Run("without the plugin", func(t *testing.T) {
		srv, calls := server(t, accepting())
		ca, cb := pipe.New(pipe.Options{})
		go srv.ServeConn(ca)
		sess, err := client(t).ServeConn(cb)
		require.NoError(t, err)
		_, err = tp.Call[string](t.Context(), sess, "/who", "")
		require.ErrorContains(t, err, "401 this side wants to know by the plugin auth who is there: "+
			"expected a packet of the other side's PostDial hook, which may not have the plugin, and "+
			`there came a pull of "/who"`)
		require.Zero(t, calls.Load())
	})
}

// What a stranger can send in place of a handshake, before it and behind it: no handler is called.
func TestAttacks(t *testing.T) {
	push := func(id, uri, body string) []byte {
		return frame(t, &packet.Packet{Header: &packet.Header{Id: id, Type: packet.TypePush, Uri: uri},
			BodyCodec: "json", Body: packet.RawBody("j" + body)})
	}
	pull := frame(t, &packet.Packet{Header: &packet.Header{Id: "1", Type: packet.TypePull, Uri: "/who"},
		Body: ""})
	bad := push("handshake", uri, `{"version":1,"scheme":"token","token":"guess"}`)
	good := push("handshake", uri, `{"version":1,"scheme":"token","token":"ann's token"}`)
	recorded := record(t)
	for name, sent := range map[string][]byte{
		"a pull alone":                  pull,
		"a pull behind a refused hello": append(bytes.Clone(bad), pull...),
		"a pull in front of a hello":    append(bytes.Clone(pull), good...),
		"a reply in front": append(frame(t, &packet.Packet{Header: &packet.Header{Id: "1",
			Type: packet.TypeReply, StatusCode: 200}}), pull...),
		"a cancellation in front": append(frame(t, &packet.Packet{Header: &packet.Header{Id: "1",
			Type: packet.TypeCancel}}), pull...),
		"a ping in front": append(frame(t, &packet.Packet{Header: &packet.Header{Id: "1",
			Type: packet.TypePing}}), pull...),
		"going away": append(frame(t, &packet.Packet{Header: &packet.Header{Type: packet.TypeGoAway}}),
			pull...),
		"a stream": frame(t, &packet.Packet{Header: &packet.Header{Id: "1", Type: packet.TypeOpen,
			Uri: "/who"}, Body: packet.RawBody("j")}),
		"another path":      append(push("handshake", "/who", `{"version":1,"scheme":"token","token":"ann's token"}`), pull...),
		"another version":   append(push("handshake", uri, `{"version":2,"scheme":"token","token":"ann's token"}`), pull...),
		"another type":      append(push("handshake", uri, `[1]`), pull...),
		"no scheme":         append(push("handshake", uri, `{}`), pull...),
		"a proof at once":   append(push("handshake", uri, `{"version":1,"scheme":"secret","id":"ann","proof":"AAAA"}`), pull...),
		"a recorded secret": append(recorded, pull...),
		"nothing":           nil,
	} {
		t.Run(name, func(t *testing.T) {
			srv, calls := server(t, accepting())
			ca, cb := pipe.New(pipe.Options{Buffer: 1 << 20})
			served := make(chan error, 1)
			go func() { _, err := srv.ServeConn(ca); served <- err }()
			_, err := cb.Write(sent)
			require.NoError(t, err)
			_ = cb.(interface{ CloseWrite() error }).CloseWrite()
			_, _ = io.Copy(io.Discard, cb)
			require.Error(t, <-served)
			require.Zero(t, calls.Load())
		})
	}
	t.Run("a pull behind a good hello", func(t *testing.T) {
		srv, calls := server(t, accepting())
		ca, cb := pipe.New(pipe.Options{Buffer: 1 << 20})
		go srv.ServeConn(ca)
		_, err := cb.Write(append(bytes.Clone(good), pull...))
		require.NoError(t, err)
		sock := socket.New(cb, socket.Options{})
		var p packet.Packet
		for p.Header == nil || p.Header.Type != packet.TypeReply {
			require.NoError(t, sock.ReadPacket(&p, func(*packet.Header) any { return new(any) }))
		}
		require.EqualValues(t, 1, calls.Load())
		require.NoError(t, sock.Close())
	})
}

func frame(t *testing.T, p *packet.Packet) []byte {
	b, err := packet.Append(nil, p, packet.Limits{})
	require.NoError(t, err)
	return b
}

// recorder keeps what is written.
type recorder struct {
	net.Conn
	mu  sync.Mutex
	all bytes.Buffer
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all.Write(p)
	return r.Conn.Write(p)
}

// record returns what a side sends that proves a secret.
func record(t *testing.T) []byte {
	srv, _ := server(t, accepting())
	ca, cb := pipe.New(pipe.Options{})
	r := &recorder{Conn: cb}
	sess, err := joinBy(t, srv, client(t, Secret("ann", secretOfAnn)), ca, r)
	require.NoError(t, err)
	who(t, sess)
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.all.Bytes())
}

// A server that does not know the secret is not believed, whatever it says.
func TestServerWithoutTheSecret(t *testing.T) {
	for _, scheme := range []string{SchemeSecret, SchemeToken} {
		ca, cb := pipe.New(pipe.Options{})
		sock := socket.New(ca, socket.Options{})
		go func() {
			body := func(text string) *packet.Packet {
				return &packet.Packet{Header: &packet.Header{Type: packet.TypePush, Uri: uri},
					Body: packet.RawBody("j" + text)}
			}
			var p packet.Packet
			_ = sock.ReadPacket(&p, nil)
			_ = sock.WritePacket(body(`{"nonce":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`))
			_ = sock.ReadPacket(&p, nil)
			_ = sock.WritePacket(body(`{"scheme":"` + scheme + `","name":"ann","proof":"AAAA"}`))
		}()
		_, err := client(t, Secret("ann", secretOfAnn)).DialConn(t.Context(), cb)
		if scheme == SchemeSecret {
			require.ErrorContains(t, err, "401 the other side does not know the secret")
		} else {
			require.ErrorContains(t, err, `401 the other side has answered to the scheme "token", expected "secret"`)
		}
		_ = sock.Close()
	}
}

// The rules of a peer, and of a group.
func TestRules(t *testing.T) {
	srv, _ := server(t, accepting(Rule("/admin/*", "admin"), Rule("/admin/open"), Rule("/dev/*", "ops",
		"dev")))
	tp.HandlePull(srv.PullRouter.Group("g", Require("dev")), "/x",
		func(tp.PullCtx, *string) (string, tp.Xerror) { return "", nil })
	var pushed atomic.Int32
	tp.HandlePush(srv.PushRouter, "/admin/push", func(tp.PushCtx, *string) { pushed.Add(1) })
	tp.HandleStream(srv.PullRouter, "/admin/stream", func(tp.PullCtx, *tp.Stream[string, string]) tp.Xerror {
		return nil
	})
	for shows, want := range map[*[]Option]map[string]string{
		{StaticToken("ann's token")}: {"/who": "", "/admin": "", "/admin/users": "",
			"/admin/users?a=/who": "",
			"/admin/open":         "", "/dev/x": "", "/g/x": "", "/admin/none": "404"},
		{StaticToken("bob's token")}: {"/who": "",
			"/admin":       "403 /admin needs the role admin, which \"bob\" does not have",
			"/admin/users": "403", "/admin//users": "400", "/admin/open": "",
			"/dev/x": "403 /dev/x needs the role ops or dev",
			"/g/x":   "403 /g/x needs the role dev"},
		{Anonymous()}: {"/who": "", "/admin/open": "401 /admin/open is not open to a side that is not known",
			"/admin/users": "401", "/g/x": "401"},
	} {
		sess, err := join(t, srv, client(t, *shows...))
		require.NoError(t, err)
		for path, says := range want {
			_, err := tp.Call[string](t.Context(), sess, path, "")
			if says == "" {
				require.NoError(t, err, path)
			} else {
				require.ErrorContains(t, err, says)
				require.True(t, tp.NotRun(err.(tp.Xerror)))
			}
		}
		s, err := tp.OpenStream[string, string](t.Context(), sess, "/admin/stream")
		require.NoError(t, err)
		_, err = s.Recv()
		require.Equal(t, want["/admin/users"] == "", err == io.EOF, "%v", err)
		require.Nil(t, sess.Push("/admin/push", ""))
		who(t, sess)
	}
	require.LessOrEqual(t, pushed.Load(), int32(1))
}

// An identity that expires ends the session, with what runs on it.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, calls := server(t, New(AcceptTokens(func(context.Context, string) (*Principal, error) {
			return &Principal{Name: "ann", Expires: time.Now().Add(time.Minute)}, nil
		})))
		ended := make(chan error, 1)
		tp.HandleStream(srv.PullRouter, "/s", func(ctx tp.PullCtx, s *tp.Stream[string, string]) tp.Xerror {
			_, err := s.Recv()
			ended <- err
			return nil
		})
		// The token is refused when it is shown again.
		first := true
		cli := client(t, Token(func(context.Context) (string, error) {
			if first {
				first = false
				return "ann's token", nil
			}
			return "", errors.New("the service of tokens is away")
		}))
		sess, err := join(t, srv, cli)
		require.NoError(t, err)
		_, err = tp.OpenStream[string, string](t.Context(), sess, "/s")
		require.NoError(t, err)
		time.Sleep(59 * time.Second)
		who(t, sess)
		start := time.Now()
		<-sess.Done()
		require.WithinDuration(t, start.Add(time.Second), time.Now(), time.Second)
		require.Error(t, <-ended)
		require.EqualValues(t, 1, calls.Load())
		require.Equal(t, tp.StatusConnClosed, sess.Pull("/who", "", nil).Xerror.Code())
		srv.Close()
		cli.Close()
		synctest.Wait()
	})
}

// Before that the side that has dialled renews it, with a token or a secret; calls go on.
func TestRenewal(t *testing.T) {
	for _, scheme := range []string{SchemeToken, SchemeSecret} {
		t.Run(scheme, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const hold = time.Minute
				var proofs atomic.Int32
				p := func() *Principal {
					proofs.Add(1)
					return &Principal{Name: "ann", Expires: time.Now().Add(hold)}
				}
				srv, _ := server(t, New(
					AcceptTokens(func(context.Context, string) (*Principal, error) { return p(), nil }),
					AcceptSecrets(func(context.Context, string) ([]byte, *Principal, error) {
						return secretOfAnn, p(), nil
					})))
				shows := StaticToken("x")
				if scheme == SchemeSecret {
					shows = Secret("ann", secretOfAnn)
				}
				cli := client(t, shows)
				sess, err := join(t, srv, cli)
				require.NoError(t, err)
				for range 600 {
					time.Sleep(time.Second)
					require.Equal(t, "ann by "+scheme, who(t, sess))
				}
				require.InDelta(t, 600/48+1, proofs.Load(), 1)
				require.NoError(t, sess.Close())
				srv.Close()
				cli.Close()
				synctest.Wait()
			})
		})
	}
}

// The two sides' clocks may differ by much: only durations cross the wire.
func TestClocksThatDiffer(t *testing.T) {
	for _, off := range []time.Duration{time.Hour, -time.Hour} {
		a := New(AcceptTokens(func(context.Context, string) (*Principal, error) {
			return &Principal{Name: "ann", Expires: time.Now().Add(off + time.Minute)}, nil
		}))
		a.now = func() time.Time { return time.Now().Add(off) }
		srv, _ := server(t, a)
		sess, err := join(t, srv, client(t, StaticToken("x")))
		require.NoError(t, err)
		who(t, sess)
		left := stateOf(sess).left
		require.Greater(t, left, 50*time.Second)
		require.LessOrEqual(t, left, time.Minute)
	}
}

// A renewal cannot make a session another's, nor be sent by one that has nothing to renew, nor twice.
func TestRenewalsThatAreRefused(t *testing.T) {
	name := "ann"
	srv, _ := server(t, New(AcceptAnonymous(), AcceptSecrets(findSecret),
		AcceptTokens(func(context.Context, string) (*Principal, error) {
			return &Principal{Name: name, Expires: time.Now().Add(time.Hour)}, nil
		})))
	renew := func(sess *tp.Session, h hello) error {
		_, err := tp.Call[welcome](t.Context(), sess, renewUri, &h)
		return err
	}
	token := hello{Version: version, Scheme: SchemeToken, Token: "x"}
	sess, err := join(t, srv, client(t, StaticToken("x")))
	require.NoError(t, err)
	require.NoError(t, renew(sess, token))
	require.ErrorContains(t, renew(sess, hello{Version: version, Scheme: SchemeSecret}),
		"401 there is nothing")
	name = "bob"
	require.ErrorContains(t, renew(sess, token), "403 a session cannot become another's by a renewal")
	require.Equal(t, "ann by token", who(t, sess))
	sess, err = join(t, srv, client(t, Anonymous()))
	require.NoError(t, err)
	require.ErrorContains(t, renew(sess, token), "401 there is nothing to renew in this way")
	sess, err = join(t, srv, client(t, Secret("ann", secretOfAnn)))
	require.NoError(t, err)
	h, err := shared{"ann", secretOfAnn}.renewal(t.Context(), stateOf(sess).next)
	require.NoError(t, err)
	require.NoError(t, renew(sess, *h))
	was := *Of(sess)
	require.NoError(t, renew(sess, *h), "the answer may have been lost: it is given again, and no more")
	require.Equal(t, was, *Of(sess))
	other, err := shared{"ann", secretOfAnn}.renewal(t.Context(), stateOf(sess).next)
	require.NoError(t, err)
	require.ErrorContains(t, renew(sess, *other), "401 "+wrongSecret, "for what is over")
}

// A side that has dialled takes no renewal: who it has dialled proves nothing by that.
func TestRenewalTheWrongWayRound(t *testing.T) {
	cli, _ := server(t, New(Secret("ann", secretOfAnn), AcceptSecrets(findSecret), Rule("/admin", "admin")))
	_, err := join(t, cli, client(t, Secret("ann", secretOfAnn))) // from now on it takes renewals
	require.NoError(t, err)
	srv := tp.NewPeer(nil, New(AcceptSecrets(findSecret)))
	defer srv.Close()
	near, far := pipe.New(pipe.Options{})
	served := make(chan *tp.Session, 1)
	go func() { s, _ := srv.ServeConn(near); served <- s }()
	_, err = cli.DialConn(t.Context(), far)
	require.NoError(t, err)
	back := <-served
	h, err := shared{"ann", secretOfAnn}.renewal(t.Context(), stateOf(back).next)
	require.NoError(t, err)
	_, err = tp.Call[welcome](t.Context(), back, renewUri, h)
	require.ErrorContains(t, err, "401 there is nothing to renew in this way")
	require.ErrorContains(t, back.Pull("/admin", "", nil).Xerror, "403")
}

// Only routes of plugins that there are have no rules: an unknown handler has.
func TestRulesOfUnknownRoutes(t *testing.T) {
	srv, _ := server(t, accepting(Rule("/*", "admin")))
	srv.PullRouter.SetUnknown(func(tp.UnknownPullCtx, *[]byte) (any, tp.Xerror) { return nil, nil })
	sess, err := join(t, srv, client(t, StaticToken("bob's token")))
	require.NoError(t, err)
	for _, path := range []string{"/tp-auth", "/tp-auth/renew/x", "/tp-x", "/x"} {
		require.ErrorContains(t, sess.Pull(path, "", nil).Xerror, "403", path)
	}
}

// Renewals succeed although a rule closes all routes, a limit refuses most calls, the answer comes late
// once, and the function cannot say anything for a while; that is not counted as failed attempts.
func TestRenewalsInTrouble(t *testing.T) {
	for _, o := range []Option{StaticToken("x"), Secret("ann", secretOfAnn)} {
		synctest.Test(t, func(t *testing.T) {
			var calls atomic.Int32
			p := func() (*Principal, error) {
				switch n := calls.Add(1); {
				case n == 2:
					time.Sleep(5 * time.Second) // longer than a try may take
				case n > 3 && n < 6:
					return nil, tp.NewXerror(tp.StatusServiceUnavailable, "the database is away")
				}
				return &Principal{Name: "ann", Expires: time.Now().Add(time.Minute)}, nil
			}
			a := New(AcceptTokens(func(context.Context, string) (*Principal, error) { return p() }),
				AcceptSecrets(func(context.Context, string) ([]byte, *Principal, error) {
					ann, err := p()
					return secretOfAnn, ann, err
				}), Rule("/*", "admin"), Rule("/who"), Failures(1, time.Hour))
			srv := tp.NewPeer(nil, a, limit.New(limit.Rate(limit.ByAll, 1e-9, 1)))
			tp.HandlePull(srv.PullRouter, "/who", func(ctx tp.PullCtx, _ *string) (string, tp.Xerror) {
				return Name(ctx), nil
			})
			sess, err := join(t, srv, client(t, o))
			require.NoError(t, err)
			require.Equal(t, "ann", who(t, sess))
			time.Sleep(10 * time.Minute)
			require.NoError(t, sess.Err())
			require.Greater(t, calls.Load(), int32(12))
			_, err = join(t, srv, client(t, o))
			require.NoError(t, err, "nothing counts as a failed attempt")
			srv.Close()
			sess.Peer().Close()
			synctest.Wait()
		})
	}
}

// Of two renewals that prove the same, because the first has taken too long, both get the same answer,
// whichever is first, and the next one succeeds.
func TestRenewalThatIsSentAgainMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var calls atomic.Int32
		srv, _ := server(t, New(AcceptSecrets(func(context.Context, string) ([]byte, *Principal, error) {
			if calls.Add(1) == 2 {
				<-release
			}
			return secretOfAnn, &Principal{Name: "ann", Expires: time.Now().Add(time.Hour)}, nil
		})))
		sess, err := join(t, srv, client(t, Secret("ann", secretOfAnn)))
		require.NoError(t, err)
		h, err := shared{"ann", secretOfAnn}.renewal(t.Context(), stateOf(sess).next)
		require.NoError(t, err)
		first, second := new(welcome), new(welcome)
		late := sess.GoPull(renewUri, h, first, nil, tp.WithBodyCodec("json"))
		synctest.Wait()
		require.Nil(t, sess.Pull(renewUri, h, second, tp.WithBodyCodec("json")).Xerror)
		close(release)
		require.Nil(t, (<-late.Done()).Xerror)
		require.Equal(t, first, second)
		require.Positive(t, first.Left)
		h, err = shared{"ann", secretOfAnn}.renewal(t.Context(), first.Next)
		require.NoError(t, err)
		require.Nil(t, sess.Pull(renewUri, h, nil).Xerror)
		srv.Close()
		sess.Peer().Close()
		synctest.Wait()
	})
}

// A renewal belongs to its connection: it ends with that, and is not sent on the next one.
func TestRenewalEndsWithItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newState(shared{"ann", secretOfAnn})
		st.stop()
		srv, _ := server(t, accepting())
		sess, err := join(t, srv, client(t, Secret("ann", secretOfAnn)))
		require.NoError(t, err)
		h := new(hello)
		require.ErrorIs(t, st.ctx.Err(), context.Canceled)
		require.Error(t, (&Auth{}).renewOnce(sess, st, &h, time.Second))
		srv.Close()
		sess.Peer().Close()
		synctest.Wait()
	})
}

// Whichever of two renewals at once comes last, the session is closed when the identity that it has expires.
func TestRenewalsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := accepting()
		srv, _ := server(t, a)
		near, far := pipe.New(pipe.Options{})
		served := make(chan *tp.Session, 1)
		go func() { s, _ := srv.ServeConn(near); served <- s }()
		sess, err := client(t, StaticToken("ann's token")).DialConn(t.Context(), far)
		require.NoError(t, err)
		back := <-served
		for _, lasts := range []time.Duration{62, 61, 0, 63, 60} {
			p := &Principal{Name: "ann", Scheme: SchemeToken}
			if lasts > 0 {
				p.Expires = time.Now().Add(lasts * time.Second)
			}
			require.NoError(t, a.hold(back, stateOf(back), p, new(welcome)))
		}
		time.Sleep(59 * time.Second)
		require.NoError(t, back.Err())
		time.Sleep(2 * time.Second)
		require.Error(t, back.Err())
		srv.Close()
		sess.Peer().Close()
		synctest.Wait()
	})
}

// Connections that are open before others fail have no more attempts than they, and a function that panics
// counts.
func TestFailuresAtOnce(t *testing.T) {
	for _, panics := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var verified atomic.Int32
			srv, _ := server(t, New(Failures(3, time.Minute), AcceptTokens(func(_ context.Context,
				token string) (*Principal, error) {
				if verified.Add(1); panics {
					_ = token[100]
				}
				return nil, nil
			})))
			frame, err := packet.Append(nil, &packet.Packet{Header: &packet.Header{Id: "handshake",
				Type: packet.TypePush, Uri: uri}, Body: &hello{Version: version, Scheme: SchemeToken,
				Token: "x"}}, packet.Limits{})
			require.NoError(t, err)
			var conns []net.Conn
			for i := range 20 {
				near, far := pipe.New(pipe.Options{})
				go srv.ServeConn(plugintest.From{Conn: near, Addr: fmt.Sprintf("10.0.0.1:%d", i+1)})
				conns = append(conns, far)
			}
			synctest.Wait()
			for _, conn := range conns {
				_, _ = conn.Write(frame)
				synctest.Wait()
			}
			require.EqualValues(t, 3, verified.Load())
			for _, conn := range conns {
				_ = conn.Close()
			}
			srv.Close()
			synctest.Wait()
		})
	}
}

// A session that redials proves its identity again, by itself.
func TestRedial(t *testing.T) {
	srv, _ := server(t, accepting())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go srv.Serve(ln)
	cli := tp.NewPeer(&tp.PeerConfig{Redial: &tp.Redial{}}, New(Secret("ann", secretOfAnn)))
	defer cli.Close()
	sess, err := cli.Dial(ln.Addr().String())
	require.NoError(t, err)
	for range 3 {
		// A pull that was on its way when the connection ended may have been lost with it.
		require.Eventually(t, func() bool {
			text, err := tp.Call[string](t.Context(), sess, "/who", "")
			return err == nil && text == "ann by secret"
		}, 20*time.Second, time.Millisecond)
		srv.RangeSession(func(s *tp.Session) bool { _ = s.Close(); return true })
	}
}

// Who fails too often from an address has to wait; others have not, and then that one has not either.
func TestFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := accepting(Failures(3, time.Minute))
		srv, _ := server(t, a)
		attempt := func(addr, token string) error {
			ca, cb := pipe.New(pipe.Options{})
			sess, err := joinBy(t, srv, client(t, StaticToken(token)), plugintest.From{Conn: ca,
				Addr: addr}, cb)
			if err == nil {
				require.NoError(t, sess.Close())
			}
			return err
		}
		require.NoError(t, attempt("10.0.0.1:1", "ann's token"))
		for port := range 3 {
			require.ErrorContains(t, attempt(fmt.Sprintf("10.0.0.1:%d", port), "guess"), "401")
		}
		err := attempt("10.0.0.1:9", "ann's token")
		require.ErrorContains(t, err, "429 too many attempts from this address have failed")
		var x tp.Xerror
		require.ErrorAs(t, err, &x)
		after, _ := tp.Retryable(x)
		require.Positive(t, after)
		require.NoError(t, attempt("10.0.0.2:9", "ann's token"))
		for range 3 {
			require.Error(t, attempt("[2001:db8::1]:1", "guess"))
		}
		require.ErrorContains(t, attempt("[2001:db8::2]:1", "ann's token"), "429", "it is one network")
		require.NoError(t, attempt("[2001:db8:0:1::2]:1", "ann's token"))
		time.Sleep(time.Minute + time.Second)
		require.NoError(t, attempt("10.0.0.1:9", "ann's token"))
		srv.Close()
		synctest.Wait()
	})
}

// However many addresses fail, what is remembered of them has a bound.
func TestFailuresOfManyAddresses(t *testing.T) {
	var a attempts
	a.init(3, time.Minute)
	now := time.Now()
	address := func(i int) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
	}
	for i := range 3 * maxAddresses {
		a.failed(address(i), now)
	}
	require.Len(t, a.now, maxAddresses)
	a.failed(address(1<<20), now.Add(40*time.Second))
	require.Len(t, a.last, maxAddresses)
	a.failed(address(1<<20), now.Add(40*time.Minute))
	require.Nil(t, a.last)
	require.Len(t, a.now, 1)
	a.failed(address(1<<20), now.Add(-40*time.Minute))
	require.Len(t, a.now, 1, "a clock that was set back")
}

// authority makes certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	ca := &authority{key: key}
	cert := ca.issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "authority"}, IsCA: true,
		BasicConstraintsValid: true, NotAfter: time.Now().Add(2 * time.Hour)})
	ca.cert = cert.Leaf
	return ca
}

func (a *authority) issue(t *testing.T, c *x509.Certificate) tls.Certificate {
	c.SerialNumber, c.NotBefore = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour)
	key, parent := a.key, a.cert
	if parent == nil {
		parent = c
	} else {
		var err error
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, a.key)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// overTLS returns the two ends of a TLS connection, with certificates of both sides.
func overTLS(t *testing.T, certs bool) (srv, cli net.Conn) {
	ca := newAuthority(t)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	own := ca.issue(t, &x509.Certificate{DNSNames: []string{"server"}, NotAfter: time.Now().Add(time.Hour)})
	shown := ca.issue(t, &x509.Certificate{NotAfter: time.Now().Add(time.Hour), Subject: pkix.Name{
		CommonName: "ann", OrganizationalUnit: []string{"admin"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	ca1, cb1 := pipe.New(pipe.Options{})
	srvConf := &tls.Config{Certificates: []tls.Certificate{own}, ClientCAs: pool,
		ClientAuth: tls.VerifyClientCertIfGiven}
	cliConf := &tls.Config{RootCAs: pool, ServerName: "server"}
	if certs {
		cliConf.Certificates = []tls.Certificate{shown}
	}
	s, c := tls.Server(ca1, srvConf), tls.Client(cb1, cliConf)
	done := make(chan error, 1)
	go func() { done <- s.Handshake() }()
	require.NoError(t, c.Handshake())
	require.NoError(t, <-done)
	return s, c
}

// Certificates, and secrets over TLS.
func TestTLS(t *testing.T) {
	srv, _ := server(t, accepting(Rule("/admin/*", "admin")))
	ca, cb := overTLS(t, true)
	sess, err := joinBy(t, srv, client(t, Certificate()), ca, cb)
	require.NoError(t, err)
	require.Equal(t, "ann by certificate", who(t, sess))
	_, err = tp.Call[string](t.Context(), sess, "/admin/users", "")
	require.NoError(t, err)

	ca, cb = overTLS(t, false)
	_, err = joinBy(t, srv, client(t, Certificate()), ca, cb)
	require.ErrorContains(t, err, "401 the connection has no certificate of its other side that was verified")

	ca, cb = overTLS(t, false)
	sess, err = joinBy(t, srv, client(t, Secret("ann", secretOfAnn)), ca, cb)
	require.NoError(t, err)
	require.Equal(t, "ann by secret", who(t, sess))
}

// Somebody between the two sides, with a TLS connection to each, passes on what they say: that is of no use,
// unless both sides say that they expect it.
func TestSecretThroughSomebodyElsesTLS(t *testing.T) {
	for _, unbound := range []bool{false, true} {
		var more []Option
		if unbound {
			more = append(more, Unbound())
		}
		srv, calls := server(t, accepting(more...))
		front, cli := overTLS(t, false)
		back, behind := overTLS(t, false)
		for _, way := range [][2]net.Conn{{front, behind}, {behind, front}} {
			go func() {
				_, _ = io.Copy(way[0], way[1])
				_ = way[0].Close()
			}()
		}
		sess, err := joinBy(t, srv, client(t, append(more, Secret("ann", secretOfAnn))...), back, cli)
		if unbound {
			require.NoError(t, err)
			require.Equal(t, "ann by secret", who(t, sess))
			require.NoError(t, sess.Close())
		} else {
			require.ErrorContains(t, err, "401 "+wrongSecret)
			require.Zero(t, calls.Load())
		}
		for _, c := range []net.Conn{front, behind} {
			_ = c.Close()
		}
	}
}

// Options that make no sense panic, with what was expected.
func TestMistakes(t *testing.T) {
	for says, f := range map[string]func(){
		"auth: New: no option says what":        func() { New() },
		"auth: New: no option says":             func() { New(Rule("/a"), Failures(3, time.Second)) },
		"auth: New: option 2 of 2 is nil":       func() { New(Anonymous(), nil) },
		"auth: AcceptTokens: the function":      func() { AcceptTokens(nil) },
		"auth: AcceptSecrets: the function":     func() { AcceptSecrets(nil) },
		"the option AcceptSecrets is there":     func() { accepting(AcceptSecrets(findSecret)) },
		"auth: Token: the function is nil":      func() { Token(nil) },
		"auth: StaticToken: the token is empty": func() { StaticToken("") },
		"auth: StaticTokens: a token is empty":  func() { StaticTokens(map[string]*Principal{"": ann}) },
		`auth: Rule("/a/"): no call has such`:   func() { Rule("/a/") },
		`auth: Rule("/a//b"): no call has such`: func() { Rule("/a//b") },
		`auth: Rule("/a"): a role is empty`:     func() { Rule("/a", "") },
		`there are two rules for "/a/*"`:        func() { New(Anonymous(), Rule("/a/*"), Rule("/a/*", "x")) },
		"auth: Failures(0, 1m0s): expected a":   func() { Failures(0, time.Minute) },
		"says already what this side shows":     func() { New(Anonymous(), StaticToken("x")) },
		"the secret has 5 bytes, expected 16":   func() { New(Secret("ann", []byte("short"))) },
		`auth: Rule("admin"): expected a path`:  func() { New(Rule("admin")) },
		`auth: Rule("/a/*/b"): expected a path`: func() { New(Rule("/a/*/b")) },
		"auth: Failures(1, 0s): expected a":     func() { Failures(1, 0) },
	} {
		func() {
			defer func() { require.Contains(t, fmt.Sprint(recover()), says) }()
			f()
		}()
	}
}

// BenchmarkCall measures what the plugin adds to a call: nothing where the peer has none, the identity's
// expiry, and a rule.
func BenchmarkCall(b *testing.B) {
	for _, name := range []string{"none", "identity", "rule"} {
		b.Run(name, func(b *testing.B) {
			srv, cli := tp.NewPeer(nil), tp.NewPeer(nil)
			if name != "none" {
				options := []Option{AcceptTokens(StaticTokens(map[string]*Principal{"x": ann}))}
				if name == "rule" {
					options = append(options, Rule("/a/*", "admin"), Rule("/b/*", "admin"), Rule("/c/*",
						"admin"))
				}
				srv, cli = tp.NewPeer(nil, New(options...)), tp.NewPeer(nil, New(StaticToken("x")))
			}
			plugintest.BenchmarkPulls(b, "/c/who", srv, cli)
		})
	}
}

// refusing refuses every connection, and keeps its session.
type refusing struct{ sess *tp.Session }

func (*refusing) Name() string { return "refusing" }

func (r *refusing) PostAccept(fore tp.ForeSession) error {
	r.sess = fore.Session()
	return tp.NewXerror(tp.StatusForbidden, "not today")
}

// A connection that another plugin refuses behind this one is not kept until its identity expires.
func TestRefusedByAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := new(refusing)
		srv := tp.NewPeer(nil, New(AcceptTokens(func(context.Context, string) (*Principal, error) {
			return &Principal{Name: "ann", Expires: time.Now().Add(time.Hour)}, nil
		})), other)
		cli := client(t, StaticToken("x"))
		_, err := join(t, srv, cli)
		require.ErrorContains(t, err, "403 not today")
		time.Sleep(2 * lookAgain)
		st := stateOf(other.sess)
		st.mu.Lock()
		defer st.mu.Unlock()
		require.False(t, st.timer.Stop(), "a timer still holds the session")
		srv.Close()
		cli.Close()
	})
}

// Rules hold on the side that has dialled, too.
func TestRulesOfTheSideThatDials(t *testing.T) {
	srv, _ := server(t, accepting())
	for shows, want := range map[*[]Option][2]string{
		{Secret("ann", secretOfAnn)}: {"", "403 /boss needs the role boss"},
		{StaticToken("ann's token")}: {"401 /known is not open", "401 /boss is not open"},
	} {
		cli := client(t, append(*shows, Rule("/known"), Rule("/boss", "boss"))...)
		for _, path := range []string{"/known", "/boss", "/open"} {
			tp.HandlePull(cli.PullRouter, path, func(tp.PullCtx, *string) (string, tp.Xerror) {
				return "",
					nil
			})
		}
		sess, err := join(t, srv, cli)
		require.NoError(t, err)
		srv.RangeSession(func(back *tp.Session) bool {
			require.Nil(t, back.Pull("/open", "", nil).Xerror)
			for i, path := range []string{"/known", "/boss"} {
				if x := back.Pull(path, "", nil).Xerror; want[i] == "" {
					require.Nil(t, x)
				} else {
					require.ErrorContains(t, x, want[i])
				}
			}
			return true
		})
		require.NoError(t, sess.Close())
		require.Eventually(t, func() bool { return srv.CountSession() == 0 }, 20*time.Second,
			time.Millisecond)
	}
}
