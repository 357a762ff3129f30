package tp

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/internal/places"
	"github.com/henrylee2cn/teleport/packet"
)

// silent opens connections that say nothing.
func silent(t *testing.T, addr string, n int) {
	for range n {
		conn, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
	}
}

// greeter is a server that expects a packet before anything else, and greeted a client
// that sends it.
func greeter(t *testing.T, cfg PeerConfig) *Peer {
	p := newTestPeer(t, &cfg, hookPlugin("greet", "PostAccept", func(c interface{}) error {
		if _, err := c.(ForeSession).Receive(nil); err != nil {
			return err
		}
		return c.(ForeSession).Send(&packet.Packet{Header: new(packet.Header)})
	}))
	pullFn(p, echo)
	return p
}

func greeted(t *testing.T, cfg PeerConfig) *Peer {
	return newTestPeer(t, &cfg, hookPlugin("greet", "PostDial", func(c interface{}) error {
		if err := c.(ForeSession).Send(&packet.Packet{Header: new(packet.Header)}); err != nil {
			return err
		}
		_, err := c.(ForeSession).Receive(nil)
		return err
	}))
}

// Good clients get in beside ten times as many silent ones as there are places, with
// TLS and with a hook that waits for a packet.
func TestSilentClientsLockOutNobody(t *testing.T) {
	cert, key := new(authority).issue(t, nil)
	certFile, keyFile := files(t, cert, key)
	for name, secure := range map[string]bool{"hook": false, "TLS and hook": true} {
		t.Run(name, func(t *testing.T) {
			log := captureLog(t, LevelInfo)
			cfg := PeerConfig{MaxHandshakes: 32}
			if secure {
				cfg.TlsCertFile, cfg.TlsKeyFile = certFile, keyFile
			}
			srv := greeter(t, cfg)
			addr := serve(t, srv)
			for range 10 {
				silent(t, addr, 32)
				var good sync.WaitGroup
				for range 4 {
					cli := greeted(t, cfg)
					good.Go(func() {
						sess, err := cli.Dial(addr)
						if err != nil {
							t.Error(err)
						} else if x := sess.Pull("/fn/call", 1, nil).Xerror; x != nil {
							t.Error(x)
						}
					})
				}
				good.Wait()
			}
			require.Equal(t, 40, srv.CountSession())
			require.LessOrEqual(t, srv.handshakes.Pending(), 32)
			log.next(t, "refused", "make room for others")
			require.NoError(t, srv.Close())
			require.Eventually(t, func() bool { return srv.handshakes.Len() == 0 }, time.Minute,
				time.Millisecond)
		})
	}
}

// from is a connection that comes from an address.
type fromAddr struct {
	net.Conn
	addr net.Addr
}

func (c fromAddr) RemoteAddr() net.Addr { return c.addr }

func tcpAddr(s string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }

// waitingRoom is a peer whose hook lets nobody pass who is not told to.
func waitingRoom(t *testing.T, cfg PeerConfig) *Peer {
	p := NewPeer(&cfg, hookPlugin("wait", "PostAccept", func(c interface{}) error {
		_, err := c.(ForeSession).Receive(nil)
		return err
	}))
	return p
}

// closedConns is which of the far ends have been closed.
func closedConns(far []net.Conn) (closed []int) {
	for i, c := range far {
		_ = c.SetReadDeadline(time.Now().Add(1))
		if _, err := c.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
			closed = append(closed, i)
		}
	}
	return closed
}

// Who came first goes first: of its own address when that has too many, and of all.
func TestOldestHandshakeMakesRoom(t *testing.T) {
	for _, c := range []struct {
		name   string
		from   []string
		closed []int
	}{
		{"room for all", []string{"10.0.0.1:1", "10.0.0.1:2", "10.0.0.2:1"}, nil},
		{"too many of one", []string{"10.0.0.2:1", "10.0.0.1:1", "10.0.0.1:2", "10.0.0.1:3", "10.0.0.1:4"},
			[]int{1, 2}},
		{"too many in all", []string{"10.0.0.2:1", "10.0.0.1:1", "10.0.0.1:2", "10.0.0.3:3", "10.0.0.4:4"},
			[]int{0}},
		{"one network of IPv6", []string{"[2001:db8:0:1::1]:1", "[2001:db8:0:1:2::2]:1",
			"[2001:db8:0:1:ffff::]:1"}, []int{0}},
		{"others", []string{"[2001:db8:0:1::1]:1", "[2001:db8:0:2::1]:1", "[2001:db8:0:3::]:1"}, nil},
		{"IPv4 in IPv6", []string{"[::ffff:10.0.0.1]:1", "10.0.0.1:2", "[::ffff:10.0.0.1]:3",
			"[::ffff:10.0.0.2]:3"}, []int{0}},
		{"no address", []string{"", "", "", "", ""}, []int{0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := waitingRoom(t, PeerConfig{MaxHandshakes: 4, MaxHandshakesPerAddr: 2})
				var far []net.Conn
				for _, addr := range c.from {
					here, there := pipe.New(pipe.Options{})
					if far = append(far, there); addr != "" {
						here = fromAddr{here, tcpAddr(addr)}
					}
					p.admit(here, nil)
					synctest.Wait()
				}
				require.Equal(t, c.closed, closedConns(far))
				require.Equal(t, len(far)-len(c.closed), p.handshakes.Len())
				require.Equal(t, p.handshakes.Pending(), p.handshakes.Len())
				require.NoError(t, p.Close())
				synctest.Wait()
				require.Zero(t, p.handshakes.Len())
				for _, c := range far {
					require.NoError(t, c.Close())
				}
			})
		})
	}
}

// The more places are in use, the less time there is.
func TestPatienceOfHandshakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := waitingRoom(t, PeerConfig{MaxHandshakes: 8, HookTimeout: 16 * time.Second})
		var far []net.Conn
		come := func(n int) {
			for range n {
				here, there := pipe.New(pipe.Options{})
				far = append(far, there)
				p.admit(here, nil)
			}
			synctest.Wait()
		}
		come(4)
		time.Sleep(9 * time.Second)
		come(2) // the second finds five there, and four of them have 12.25 s
		require.Empty(t, closedConns(far))
		time.Sleep(4 * time.Second) // of the 8.5 s for one of six
		come(1)
		require.Equal(t, []int{0, 1}, closedConns(far), "then there are four, who have the whole time")
		time.Sleep(4 * time.Second)
		require.Equal(t, []int{0, 1, 2, 3}, closedConns(far), "which is over")
		time.Sleep(time.Minute)
		require.Len(t, closedConns(far), len(far))
		require.Zero(t, p.handshakes.Len())
		require.NoError(t, p.Close())
		for _, c := range far {
			require.NoError(t, c.Close())
		}
	})
}

// A handshake of which the hook has said no waits for the other side to read that; it
// makes room as others do.
func TestRefusedHandshakeMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPeer(&PeerConfig{MaxHandshakes: 1}, hookPlugin("no", "PostAccept",
			func(interface{}) error { return errors.New("no") }))
		first, far := pipe.New(pipe.Options{})
		p.admit(first, nil)
		synctest.Wait()
		require.Equal(t, 1, p.handshakes.Len())
		second, far2 := pipe.New(pipe.Options{})
		p.admit(second, nil)
		synctest.Wait()
		require.Equal(t, 1, p.handshakes.Len())
		_, err := first.Read(make([]byte, 1))
		require.ErrorIs(t, err, net.ErrClosed)
		time.Sleep(time.Minute)
		require.Zero(t, p.handshakes.Len())
		require.NoError(t, errors.Join(far.Close(), far2.Close(), p.Close()))
	})
}

// Hooks that go on although their connection was closed cannot become more and more.
func TestHandshakesThatDoNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		p := NewPeer(&PeerConfig{MaxHandshakes: 2}, hookPlugin("hang", "PostAccept",
			func(interface{}) error { <-hold; return nil }))
		var far []net.Conn
		for range places.MinLeaving + 100 {
			here, there := pipe.New(pipe.Options{})
			far = append(far, there)
			p.admit(here, nil)
			synctest.Wait()
		}
		require.Equal(t, places.MinLeaving+2, p.handshakes.Len())
		closed := closedConns(far)
		require.Len(t, closed, len(far)-2)
		require.NotContains(t, closed, places.MinLeaving+1)
		close(hold)
		synctest.Wait()
		require.Zero(t, p.handshakes.Len())
		require.Equal(t, 2, p.CountSession(), "who had a place")
		require.NoError(t, p.Close())
		for _, c := range far {
			require.NoError(t, c.Close())
		}
	})
}

// Handshakes take no places of sessions.
func TestHandshakesAreNoSessions(t *testing.T) {
	srv := greeter(t, PeerConfig{MaxSessions: 2})
	addr := serve(t, srv)
	silent(t, addr, 10)
	cli := greeted(t, PeerConfig{})
	for range 2 {
		sess, err := cli.Dial(addr)
		require.NoError(t, err)
		requireAlive(t, sess)
	}
	_, err := cli.Dial(addr)
	require.Error(t, err)
	require.Equal(t, 2, srv.CountSession())
	require.NoError(t, cli.Close())
	require.Eventually(t, func() bool { return srv.CountSession() == 0 }, time.Minute, time.Millisecond)
	cli = greeted(t, PeerConfig{})
	for range 2 {
		sess, err := cli.Dial(addr)
		require.NoError(t, err)
		requireAlive(t, sess)
	}
}
