package tp

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/packet"
)

// Who speaks another protocol than a listener, and whoever looks at its log, is told which it
// looks like.
func TestMixUps(t *testing.T) {
	cert, key := newAuthority(t).issue(t, nil)
	withTLS := func() *PeerConfig {
		pair := tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
		return &PeerConfig{TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}}}
	}
	say := func(t *testing.T, addr, text string) {
		conn, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		defer conn.Close()
		_, err = conn.Write([]byte(text))
		require.NoError(t, err)
		_, _ = io.ReadAll(conn)
	}
	t.Run("a client with TLS, a server without", func(t *testing.T) {
		log := captureLog(t, LevelInfo)
		_, err := newTestPeer(t, withTLS()).Dial(serve(t, newTestPeer(t, nil)))
		require.ErrorContains(t, err, "TLS handshake: ")
		require.ErrorContains(t, err, "a packet of this protocol without TLS, which is on for this side only")
		log.next(t, "ended: packet: bad header", "it looks like TLS, which is on for the other side only")
	})
	t.Run("a client without TLS, a server with it", func(t *testing.T) {
		log := captureLog(t, LevelInfo)
		sess, err := newTestPeer(t, nil).Dial(serve(t, newTestPeer(t, withTLS())))
		require.NoError(t, err, "it has nothing to say")
		x := sess.Pull("/a", 1, nil).Xerror
		require.Equal(t, StatusConnClosed, x.Code())
		require.ErrorContains(t, x, "it looks like TLS, which is on for the other side only")
		<-sess.Done()
		require.ErrorIs(t, sess.Err(), packet.ErrTLS)
		log.next(t, "refused: TLS handshake", "a packet of this protocol without TLS")
	})
	t.Run("others", func(t *testing.T) {
		log := captureLog(t, LevelInfo)
		say(t, serve(t, newTestPeer(t, nil)), "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		log.next(t, "ended: packet: bad header", "it looks like an HTTP request")
		say(t, serve(t, newTestPeer(t, withTLS())), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
		log.next(t, "refused: TLS handshake", "it looks like an HTTP request")
		say(t, serve(t, newTestPeer(t, nil)), "SSH-2.0-x\r\n")
		log.next(t, "ended: packet: bad header", "it looks like SSH")
	})
	t.Run("no server of this protocol", func(t *testing.T) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer ln.Close()
		go func() {
			for _, answer := range []string{"HTTP/1.1 400 Bad Request\r\n\r\n", ""} {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Read(make([]byte, 1000))
				_, _ = io.WriteString(conn, answer)
				_ = conn.Close()
			}
		}()
		_, err = newTestPeer(t, withTLS()).Dial(ln.Addr().String())
		require.ErrorContains(t, err, "it looks like the answer of an HTTP server")
		_, err = newTestPeer(t, withTLS()).Dial(ln.Addr().String())
		require.ErrorContains(t, err, "the other side has ended the connection; perhaps it speaks no TLS")
	})
}

func TestLooksLike(t *testing.T) {
	require.Empty(t, packet.LooksLike(nil))
	require.Empty(t, packet.LooksLike([]byte("abcd")))
	require.NotEmpty(t, packet.LooksLike([]byte{22, 3, 1, 2}))
	require.NotEmpty(t, packet.LooksLike([]byte{0, 0, 0, 9, 'p'}))
}

// A client that dials again resumes its TLS session, though its configuration says nothing
// of that.
func TestTLSSessionsAreResumed(t *testing.T) {
	cert, key := newAuthority(t).issue(t, nil)
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	srv := newTestPeer(t,
		&PeerConfig{TLSConfig: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw},
			PrivateKey: key}}}})
	resumed := make(chan bool, 1)
	HandlePull(srv.PullRouter, "/a", func(ctx PullCtx, _ *int) (int, Xerror) {
		state, _ := ctx.Session().Socket().TLS()
		resumed <- state.DidResume
		return 1, nil
	})
	cli := newTestPeer(t, &PeerConfig{TLSConfig: &tls.Config{RootCAs: roots}})
	addr := serve(t, srv)
	for i := range 3 {
		sess, err := cli.Dial(addr)
		require.NoError(t, err)
		require.Nil(t, sess.Pull("/a", 1, nil).Xerror)
		require.Equal(t, i > 0, <-resumed)
		require.NoError(t, sess.Close())
	}
}

func TestUnixMode(t *testing.T) {
	require.PanicsWithValue(t, "tp: PeerConfig.UnixMode: dT--------- is more than permissions.", func() {
		NewPeer(&PeerConfig{UnixMode: os.ModeDir | os.ModeTemporary})
	})
	path := filepath.Join(t.TempDir(), "s")
	for _, mode := range []os.FileMode{0o600, 0o666, 0o700} {
		p := newTestPeer(t, &PeerConfig{ListenAddrs: []string{"unix:" + path}, UnixMode: mode})
		pullFn(p, echo)
		if runtime.GOOS == "windows" {
			require.ErrorIs(t, p.Listen(), errors.ErrUnsupported)
			continue
		}
		done := make(chan error, 1)
		go func() { done <- p.Listen() }()
		require.Eventually(t, func() bool { return len(p.Addrs()) > 0 }, time.Minute, time.Millisecond)
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode().Perm())
		sess, err := newTestPeer(t, nil).Dial("unix:" + path)
		require.NoError(t, err)
		requireAlive(t, sess)
		require.NoError(t, p.Close())
		<-done
		_, err = os.Stat(path)
		require.ErrorIs(t, err, os.ErrNotExist, "it is removed")
	}
	p := newTestPeer(t, &PeerConfig{ListenAddrs: []string{"unix:" + filepath.Join(path, "none")},
		UnixMode: 0o600})
	require.Error(t, p.Listen())
}
