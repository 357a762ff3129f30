package tptest_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/errno"
	"github.com/henrylee2cn/teleport/tptest"
)

// redialling returns a client on the network whose session outlives its connections.
func redialling(n *tptest.Network) *tp.Peer {
	return tp.NewPeer(&tp.PeerConfig{Redial: &tp.Redial{MaxWait: -1}, DialContext: n.DialContext})
}

func TestRedial(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T) {
		n := tptest.NewNetwork(t)
		server := echoServer(nil)
		n.Serve("server:1", server)
		link := n.Dial(redialling(n), "server:1")
		require.Same(t, server, link.Server.Peer())
		pullEcho(t, link.Client, "before")
		n.HoldDials()
		link.Cut()
		_, err := n.NextDial(t.Context()) // the client has noticed
		require.NoError(t, err)
		n.AllowDials()
		pullEcho(t, link.Client, "after")
		second, err := n.AwaitSession(t.Context(), 2)
		require.NoError(t, err)
		require.NotSame(t, link.Server, second)
		require.Same(t, server, second.Peer())
	})
}

// The test decides about each dial.
func TestHeldDials(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T) {
		n := tptest.NewNetwork(t)
		n.Serve("server:1", echoServer(nil))
		link := n.Dial(redialling(n), "server:1")
		n.HoldDials()
		link.Cut()
		for range 3 {
			d, err := n.NextDial(t.Context())
			require.NoError(t, err)
			require.Equal(t, "server:1", d.Address)
			d.Refuse(nil)
			d.Allow() // too late
		}
		d, err := n.NextDial(t.Context())
		require.NoError(t, err)
		_, err = n.AwaitSession(canceled(), 2)
		require.ErrorIs(t, err, context.Canceled, "there is none yet")
		d.Allow()
		pullEcho(t, link.Client, "again")
		require.Equal(t, 5, n.Dials())
	})
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// Dials that are held are decided by what the network is set to next.
func TestHeldDialsAreReleased(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := tptest.NewNetwork(t)
		n.Serve("server:1", echoServer(nil))
		dial := func() <-chan error {
			done := make(chan error, 1)
			go func() {
				c, err := n.DialContext(t.Context(), "tcp", "server:1")
				if err == nil {
					c.Close()
				}
				done <- err
			}()
			return done
		}
		n.HoldDials()
		first, second := dial(), dial()
		d, err := n.NextDial(t.Context())
		require.NoError(t, err)
		_ = d
		synctest.Wait()
		mine := errors.New("not now")
		n.RefuseDials(mine)
		require.ErrorIs(t, <-first, mine)
		require.ErrorIs(t, <-second, mine)
		require.ErrorIs(t, <-dial(), mine)
		n.RefuseDials(nil)
		require.ErrorIs(t, <-dial(), errno.Refused)
		n.HoldDials()
		third := dial()
		synctest.Wait()
		n.AllowDials()
		require.NoError(t, <-third)
		require.NoError(t, <-dial())
		_, err = n.NextDial(canceled())
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorContains(t, err, "tptest: no dial has come that is held")
		_, err = n.AwaitSession(t.Context(), 0)
		require.ErrorContains(t, err, "0 is not positive")
	})
}

// A server goes away, and another takes its address.
func TestServerIsReplaced(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T) {
		n := tptest.NewNetwork(t)
		first := echoServer(nil)
		n.Serve("server:1", first)
		link := n.Dial(redialling(n), "server:1")
		require.NoError(t, first.Shutdown(t.Context()))
		_, err := n.DialContext(t.Context(), "tcp", "server:1")
		require.ErrorIs(t, err, errno.Refused)
		require.ErrorContains(t, err, "its server is closed, or is shutting down")
		n.Serve("server:1", echoServer(nil))
		pullEcho(t, link.Client, "to the second")
	})
}

// The network's faults are those of later connections too, and a link's of its own.
func TestFaultsOfANetwork(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := tptest.NewNetwork(t, tptest.Both(tptest.Faults{Delay: time.Second}))
		n.Serve("server:1", echoServer(nil))
		took := func(l *tptest.Link) time.Duration {
			began := time.Now()
			pullEcho(t, l.Client, "x")
			return time.Since(began)
		}
		first := n.Dial(redialling(n), "server:1")
		require.Equal(t, 2*time.Second, took(first))
		n.ToServer.Set(tptest.Faults{Delay: 9 * time.Second})
		second := n.Dial(redialling(n), "server:1")
		require.Equal(t, 10*time.Second, took(first))
		require.Equal(t, 10*time.Second, took(second))
		second.Heal()
		require.Zero(t, took(second))
		require.Equal(t, 10*time.Second, took(first))
		n.Cut()
		n.Heal()
		synctest.Wait() // until the clients have noticed
		pullEcho(t, second.Client, "by another connection")
		pullEcho(t, first.Client, "by another connection")
	})
}

func TestTLSOfANetwork(t *testing.T) {
	t.Parallel()
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	inBoth(t, func(t *testing.T) {
		n := tptest.NewNetwork(t)
		n.Serve("example.com:1", echoServer(&tp.PeerConfig{TLSConfig: &tls.Config{
			Certificates: s.TLS.Certificates}}))
		client := tp.NewPeer(&tp.PeerConfig{TLSConfig: &tls.Config{RootCAs: roots},
			DialContext: n.DialContext})
		link := n.Dial(client, "example.com:1")
		_, ok := link.Client.Socket().TLS()
		require.True(t, ok)
		pullEcho(t, link.Client, "a secret")
		link.Cut()
		<-link.Client.Done()
	})
}

func TestDialsThatFail(t *testing.T) {
	t.Parallel()
	said := run(t, func(t testing.TB) {
		n := tptest.NewNetwork(t)
		n.Serve("server:1", tp.NewPeer(nil, refuse{}))
		n.Dial(redialling(n), "server:1")
	})
	require.Contains(t, said, "tptest: dial server:1: server: ")
	require.Contains(t, said, "no strangers")

	said = run(t, func(t testing.TB) {
		n := tptest.NewNetwork(t)
		n.Serve("server:1", tp.NewPeer(nil))
		dial := func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("another network")
		}
		n.Dial(tp.NewPeer(&tp.PeerConfig{DialContext: dial}), "server:1")
	})
	require.Contains(t, said, "another network, not by the network: expected a client with "+
		"PeerConfig.DialContext set to the network's method DialContext")

	said = run(t, func(t testing.TB) {
		n, other := tptest.NewNetwork(t), tptest.NewNetwork(t)
		other.Serve("server:1", tp.NewPeer(nil))
		n.Dial(tp.NewPeer(&tp.PeerConfig{DialContext: other.DialContext}), "server:1")
	})
	require.Contains(t, said, "tptest: server:1 was dialled, not by the network")
}

// A dial that is held at the end of the test ends with its client.
func TestEndWhileDialsAreHeld(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T) {
		require.Empty(t, run(t, func(t testing.TB) {
			n := tptest.NewNetwork(t)
			n.Serve("server:1", echoServer(nil))
			link := n.Dial(redialling(n), "server:1")
			n.HoldDials()
			link.Cut()
			_, err := n.NextDial(t.Context())
			require.NoError(t, err)
		}))
	})
}
