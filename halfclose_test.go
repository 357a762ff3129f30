package tp

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// halfCloser is a client that ends its output when it has sent what it wants.
type halfCloser struct {
	conn interface {
		net.Conn
		CloseWrite() error
	}
	*socket.Socket
}

func (h *halfCloser) ask(t *testing.T, typ int32, uri string, ids ...string) {
	t.Helper()
	for _, id := range ids {
		require.NoError(t, h.WritePacket(&packet.Packet{Header: &packet.Header{Id: id, Type: typ, Uri: uri},
			BodyCodec: "json", Body: id}))
	}
}

// answers reads until the other side ends, and returns the ids of the replies.
func (h *halfCloser) answers(t *testing.T) (ids []string) {
	t.Helper()
	for {
		var p packet.Packet
		err := h.ReadPacket(&p, func(*packet.Header) interface{} { return new(string) })
		if err == io.EOF {
			return ids
		}
		require.NoError(t, err)
		require.Equal(t, packet.TypeReply, p.Header.Type)
		require.Equal(t, StatusOK, p.Header.StatusCode)
		require.Equal(t, p.Header.Id, *p.Body.(*string))
		ids = append(ids, p.Header.Id)
	}
}

// lingerPeer has handlers of /slow, which wait for release whatever happens to their
// callers, and tells when one has begun and when its context is done.
func lingerPeer(t *testing.T, cfg *PeerConfig) (srv *Peer, begun, told chan struct{}, release chan struct{}) {
	srv = newTestPeer(t, cfg)
	begun, told, release = make(chan struct{}, 100), make(chan struct{}, 100), make(chan struct{})
	HandlePull(srv.PullRouter, "/slow", func(ctx PullCtx, s *string) (string, Xerror) {
		begun <- struct{}{}
		<-ctx.Context().Done()
		require.ErrorIs(t, context.Cause(ctx.Context()), ErrSessionEnded)
		told <- struct{}{}
		<-release
		return *s, nil
	})
	HandlePull(srv.PullRouter, "/quick", func(_ PullCtx, s *string) (string, Xerror) { return *s, nil })
	return srv, begun, told, release
}

// Who ends its output and reads on gets all its replies, on every kind of connection.
func TestRepliesAfterAHalfClose(t *testing.T) {
	cert, key := newAuthority(t).issue(t, nil)
	pair := tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
	for name, c := range map[string]struct {
		cfg     *PeerConfig
		network string
		dial    func(addr string) (net.Conn, error)
	}{
		"tcp": {nil, "tcp", func(addr string) (net.Conn, error) { return net.Dial("tcp", addr) }},
		"tls": {&PeerConfig{TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}}}, "tcp",
			func(addr string) (net.Conn, error) {
				return tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
			}},
		"unix": {nil, "unix", func(addr string) (net.Conn, error) { return net.Dial("unix", addr) }},
	} {
		t.Run(name, func(t *testing.T) {
			srv, begun, told, release := lingerPeer(t, c.cfg)
			addr := "127.0.0.1:0"
			if c.network == "unix" {
				addr = filepath.Join(t.TempDir(), "s")
			}
			ln, err := net.Listen(c.network, addr)
			require.NoError(t, err)
			served := make(chan struct{})
			go func() { defer close(served); _ = srv.Serve(ln) }()
			defer func() { _ = srv.Close(); <-served }()
			conn, err := c.dial(ln.Addr().String())
			require.NoError(t, err)
			defer conn.Close()
			h := &halfCloser{Socket: socket.New(conn, socket.Options{})}
			h.conn = conn.(interface {
				net.Conn
				CloseWrite() error
			})
			h.ask(t, packet.TypePull, "/slow", "1", "2")
			h.ask(t, packet.TypePull, "/quick", "3")
			require.NoError(t, h.conn.CloseWrite())
			for range 2 {
				<-begun
				<-told // for there may be nobody any more
			}
			require.Zero(t, srv.CountSession())
			close(release)
			require.ElementsMatch(t, []string{"1", "2", "3"}, h.answers(t))
		})
	}
}

// Such a session is one of MaxSessions until its socket is closed, Shutdown waits for its
// handlers and Close does not.
func TestHalfClosedSessionsCount(t *testing.T) {
	open := func(t *testing.T, srv *Peer) *halfCloser {
		conn, err := net.Dial("tcp", serve(t, srv))
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		return &halfCloser{conn.(*net.TCPConn), socket.New(conn, socket.Options{})}
	}
	t.Run("MaxSessions", func(t *testing.T) {
		srv, begun, told, release := lingerPeer(t, &PeerConfig{MaxSessions: 1})
		h := open(t, srv)
		h.ask(t, packet.TypePull, "/slow", "1")
		<-begun
		require.NoError(t, h.conn.CloseWrite())
		<-told
		sess, err := newTestPeer(t, nil).Dial(srv.Addrs()[0].String())
		if err == nil { // it was accepted, and is closed a moment later
			<-sess.Done()
		}
		close(release)
		require.Equal(t, []string{"1"}, h.answers(t))
		require.Eventually(t, func() bool {
			sess, err := newTestPeer(t, nil).Dial(srv.Addrs()[0].String())
			return err == nil && sess.Pull("/quick", "x", nil).Xerror == nil
		}, 10*time.Second, time.Millisecond)
	})
	t.Run("Shutdown", func(t *testing.T) {
		srv, begun, told, release := lingerPeer(t, nil)
		h := open(t, srv)
		h.ask(t, packet.TypePull, "/slow", "1")
		<-begun
		require.NoError(t, h.conn.CloseWrite())
		<-told
		done := make(chan error, 1)
		go func() { done <- srv.Shutdown(context.Background()) }()
		close(release)
		require.Equal(t, []string{"1"}, h.answers(t))
		require.NoError(t, <-done)
	})
	t.Run("Close", func(t *testing.T) {
		srv, begun, told, release := lingerPeer(t, nil)
		h := open(t, srv)
		h.ask(t, packet.TypePull, "/slow", "1")
		<-begun
		require.NoError(t, h.conn.CloseWrite())
		<-told
		require.NoError(t, srv.Close())
		require.Empty(t, h.answers(t))
		close(release)
	})
}

// Who has gone as a whole looks the same until something is written to it: then the socket
// is closed, whatever else runs.
func TestAHalfCloseThatIsAWholeOne(t *testing.T) {
	srv, begun, told, release := lingerPeer(t, nil)
	conn, err := net.Dial("tcp", serve(t, srv))
	require.NoError(t, err)
	h := &halfCloser{conn.(*net.TCPConn), socket.New(conn, socket.Options{})}
	h.ask(t, packet.TypePull, "/slow", "1", "2", "3")
	for range 3 {
		<-begun
	}
	require.NoError(t, conn.Close())
	for range 3 {
		<-told
	}
	conns := srv.sessions.lingering()
	require.Len(t, conns, 1)
	for range 3 { // the second write, at the latest, fails
		release <- struct{}{}
	}
	require.Eventually(t, func() bool {
		return conns[0].handlers.Load() == 0 &&
			len(srv.sessions.lingering()) == 0
	}, 10*time.Second, time.Millisecond)
}
