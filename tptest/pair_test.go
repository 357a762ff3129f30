package tptest_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/plugin/auth"
	"github.com/henrylee2cn/teleport/tptest"
)

// echoServer answers /echo with what it is sent.
func echoServer(cfg *tp.PeerConfig, plugins ...tp.Plugin) *tp.Peer {
	p := tp.NewPeer(cfg, plugins...)
	tp.HandlePull(p.PullRouter, "/echo", func(_ tp.PullCtx, s *string) (string, tp.Xerror) { return *s, nil })
	return p
}

func pullEcho(t testing.TB, sess *tp.Session, text string) {
	t.Helper()
	reply, err := tp.Call[string](t.Context(), sess, "/echo", text)
	require.NoError(t, err)
	require.Equal(t, text, reply)
}

// inBoth runs a test with the real clock and in a bubble.
func inBoth(t *testing.T, f func(t *testing.T)) {
	t.Run("real clock", f)
	t.Run("bubble", func(t *testing.T) { synctest.Test(t, f) })
}

func TestPair(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T) {
		server, client := echoServer(nil), echoServer(nil)
		link := tptest.Pair(t, server, client)
		require.Same(t, server, link.Server.Peer())
		require.Same(t, client, link.Client.Peer())
		pullEcho(t, link.Client, "to the server")
		pullEcho(t, link.Server, "to the client")
	})
}

// A peer may be both sides.
func TestPairWithItself(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T) {
		peer := echoServer(nil)
		link := tptest.Pair(t, peer, peer)
		pullEcho(t, link.Client, "to the server")
		pullEcho(t, link.Server, "to the client")
	})
}

// The session of a pair does not outlive its connection.
func TestPairDoesNotRedial(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T) {
		link := tptest.Pair(t, echoServer(nil), tp.NewPeer(&tp.PeerConfig{Redial: &tp.Redial{}}))
		link.Cut()
		<-link.Client.Done()
		require.Equal(t, tp.StatusConnClosed, link.Client.Pull("/echo", "x", nil).Xerror.Code())
	})
}

func TestSeveralClients(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T) {
		server := echoServer(nil)
		var links []*tptest.Link
		for range 5 {
			links = append(links, tptest.Pair(t, server, echoServer(nil)))
		}
		for i, l := range links {
			pullEcho(t, l.Client, fmt.Sprint(i))
			pullEcho(t, l.Server, fmt.Sprint(i))
		}
		links[0].Cut()
		<-links[0].Client.Done()
		<-links[0].Server.Done()
		pullEcho(t, links[1].Client, "the others go on")
	})
}

// Several tests have pairs at a time, and each is told of its own goroutines only.
func TestParallelTests(t *testing.T) {
	for i := range 20 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			link := tptest.Pair(t, echoServer(nil), tp.NewPeer(nil))
			for range 10 {
				pullEcho(t, link.Client, t.Name())
			}
		})
	}
}

func TestPeersAreClosedAtTheEnd(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T) {
		var link *tptest.Link
		server, client := echoServer(nil), tp.NewPeer(nil)
		require.Empty(t, run(t, func(t testing.TB) { link = tptest.Pair(t, server, client) }))
		<-link.Client.Done()
		<-link.Server.Done()
		said := run(t, func(t testing.TB) { tptest.Pair(t, server, tp.NewPeer(nil)) })
		require.Contains(t, said, "Pair: the server is closed, or is shutting down; expected a peer that "+
			"is open")
		said = run(t, func(t testing.TB) { tptest.Pair(t, echoServer(nil), client) })
		require.Contains(t, said, "Pair: the client is closed")
	})
}

// refuse is a PostAccept hook that refuses everybody.
type refuse struct{}

func (refuse) Name() string { return "refuse" }
func (refuse) PostAccept(tp.ForeSession) error {
	return tp.NewXerror(tp.StatusForbidden, "no strangers")
}

// ask is a PostDial hook, with which Dial waits for what the server says.
type ask struct{}

func (ask) Name() string                  { return "ask" }
func (ask) PostDial(tp.ForeSession) error { return nil }

func TestRefusal(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		plugins []tp.Plugin
		told    bool // the client
	}{
		{"client that asks", []tp.Plugin{ask{}}, true},
		{"client that does not", nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBoth(t, func(t *testing.T) {
				link, err := tptest.TryPair(t, tp.NewPeer(nil, refuse{}), tp.NewPeer(nil, tc.plugins...))
				require.Nil(t, link)
				require.ErrorContains(t, err, "no strangers")
				var x tp.Xerror
				require.ErrorAs(t, err, &x)
				require.Equal(t, tp.StatusForbidden, x.Code())
				var both *tptest.PairError
				require.ErrorAs(t, err, &both)
				require.ErrorContains(t, both.Server, "no strangers")
				require.Equal(t, tc.told, both.Client != nil)
				if tc.told {
					require.ErrorContains(t, both.Client, "refused by the other side: 403 no strangers")
				}
			})
		})
	}
	said := run(t, func(t testing.TB) { tptest.Pair(t, tp.NewPeer(nil, refuse{}), tp.NewPeer(nil)) })
	require.Contains(t, said, "tptest: the peers did not connect: server: ")
	require.Contains(t, said, "no strangers")
}

// Hooks of both sides exchange packets.
func TestHandshakeHooks(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T) {
		link := tptest.Pair(t, echoServer(nil, greeting{"hello"}), tp.NewPeer(nil, greeting{"hi"}))
		said, _ := link.Server.Public().Load("said")
		require.Equal(t, "hi", said)
		said, _ = link.Client.Public().Load("said")
		require.Equal(t, "hello", said)
		pullEcho(t, link.Client, "afterwards")
	})
}

// greeting exchanges a text with the other side.
type greeting struct{ text string }

func (greeting) Name() string { return "greeting" }

func (g greeting) PostDial(s tp.ForeSession) error {
	if err := g.send(s); err != nil {
		return err
	}
	return g.receive(s)
}

func (g greeting) PostAccept(s tp.ForeSession) error {
	if err := g.receive(s); err != nil {
		return err
	}
	return g.send(s)
}

func (g greeting) send(s tp.ForeSession) error {
	return s.Send(&packet.Packet{Header: &packet.Header{Type: packet.TypePush}, Body: g.text})
}

func (g greeting) receive(s tp.ForeSession) error {
	var text string
	_, err := s.Receive(&text)
	s.Public().Store("said", text)
	return err
}

// A hook that waits for a packet that never comes is given up after PeerConfig.HookTimeout.
func TestHookThatWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		_, err := tptest.TryPair(t, tp.NewPeer(&tp.PeerConfig{HookTimeout: time.Minute}, greeting{"hello"}),
			tp.NewPeer(nil))
		require.ErrorContains(t, err, "the handshake took too long")
		require.Equal(t, time.Minute, time.Since(began))
	})
}

func TestAuth(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T) {
		server := echoServer(nil, auth.New(auth.AcceptTokens(auth.StaticTokens(map[string]*auth.Principal{
			"ann's token": {Name: "ann"},
		}))))
		link := tptest.Pair(t, server, tp.NewPeer(nil, auth.New(auth.StaticToken("ann's token"))))
		require.Equal(t, "ann", auth.Of(link.Server).Name)
		_, err := tptest.TryPair(t, server, tp.NewPeer(nil, auth.New(auth.StaticToken("a guess"))))
		var x tp.Xerror
		require.ErrorAs(t, err, &x)
		require.Equal(t, tp.StatusUnauthorized, x.Code())
		pullEcho(t, link.Client, "the other client does not matter")
	})
}

// Peers with TLS speak TLS, and the certificate is verified.
func TestTLS(t *testing.T) {
	t.Parallel()
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate()) // for 127.0.0.1 and example.com, from 1970 on
	serverTLS := &tls.Config{Certificates: s.TLS.Certificates}
	withTLS := func(cfg *tls.Config) *tp.PeerConfig { return &tp.PeerConfig{TLSConfig: cfg} }
	inBoth(t, func(t *testing.T) {
		for _, address := range []string{"", "example.com:1"} {
			var options []tptest.Option
			if address != "" {
				options = append(options, tptest.Address(address))
			}
			client := tp.NewPeer(withTLS(&tls.Config{RootCAs: roots}))
			link := tptest.Pair(t, echoServer(withTLS(serverTLS)), client, options...)
			state, ok := link.Client.Socket().TLS()
			require.True(t, ok)
			require.Equal(t, s.Certificate().Raw, state.PeerCertificates[0].Raw)
			pullEcho(t, link.Client, "a secret")
		}
	})
	for _, tc := range []struct {
		name           string
		server, client *tls.Config
		options        []tptest.Option
		want           string
	}{
		{"another name", serverTLS, &tls.Config{RootCAs: roots}, []tptest.Option{tptest.Address("other:1")},
			"client: TLS handshake: tls: failed to verify certificate: x509: certificate is valid for"},
		{"unknown authority", serverTLS, &tls.Config{}, nil, "x509: certificate signed by unknown authority"},
		{"client without TLS", serverTLS, nil, nil, "server: TLS handshake:"},
		{"server without TLS", nil, &tls.Config{RootCAs: roots}, nil, "client: TLS handshake:"},
		{"server without certificate", &tls.Config{}, &tls.Config{RootCAs: roots}, nil,
			"server: tp: PeerConfig.TLSConfig has no certificate for a server"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBoth(t, func(t *testing.T) {
				// A client with a hook sends something, which shows that the two do not speak the same.
				client := tp.NewPeer(withTLS(tc.client), ask{})
				link, err := tptest.TryPair(t, tp.NewPeer(withTLS(tc.server)), client, tc.options...)
				require.Nil(t, link)
				require.ErrorContains(t, err, tc.want)
			})
		})
	}
}
