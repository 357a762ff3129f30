package tp

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
)

// countedServer serves echo and the push /fn_push/call, and counts what is handled.
func countedServer(t *testing.T, cfg *PeerConfig, plugins ...Plugin) (*Peer, *atomic.Int32) {
	handled := new(atomic.Int32)
	srv := newTestPeer(t, cfg, plugins...)
	pullFn(srv, func(_ PullCtx, args interface{}) (interface{}, Xerror) {
		handled.Add(1)
		return args, nil
	})
	pushFn(srv, func(PushCtx, interface{}) { handled.Add(1) })
	return srv, handled
}

// Whoever cannot or need not be trusted by TLS gets nowhere: nothing is handled,
// in either direction, and no session is left. A good client beside them is served.
func TestTLSRefusals(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	pool := func(as ...*authority) *x509.CertPool {
		p := x509.NewCertPool()
		for _, a := range as {
			p.AddCert(a.cert)
		}
		return p
	}
	pair := func(by *authority, change func(*x509.Certificate)) []tls.Certificate {
		cert, key := by.issue(t, change)
		return []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}
	}
	expired := func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}
	early := func(c *x509.Certificate) { c.NotBefore = time.Now().Add(30 * time.Minute) }
	otherName := func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = nil, []string{"example.com"} }
	forServers := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }
	forClients := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }

	own := pair(ca, nil)
	one := &tls.Config{Certificates: own, RootCAs: pool(ca)}
	// ClientAuth is what follows from it
	both := &tls.Config{Certificates: own, RootCAs: pool(ca), ClientCAs: pool(ca)}
	for name, c := range map[string]struct {
		server, client *tls.Config // nil is plaintext
		ok             bool
	}{
		"good":                        {server: one, client: one, ok: true},
		"good, no client certificate": {server: one, client: &tls.Config{RootCAs: pool(ca)}, ok: true},
		"good, both certificates":     {server: both, client: both, ok: true},
		"plaintext client":            {server: one},
		"plaintext client, both":      {server: both},
		"plaintext server":            {client: one},
		"expired server": {server: &tls.Config{Certificates: pair(ca, expired)},
			client: one},
		"server not valid yet": {server: &tls.Config{Certificates: pair(ca, early)}, client: one},
		"server of a wrong CA": {server: &tls.Config{Certificates: pair(stranger, nil)},
			client: one},
		"server that signs itself": {server: &tls.Config{Certificates: pair(new(authority), nil)},
			client: one},
		"server of a wrong name": {server: &tls.Config{Certificates: pair(ca, otherName)},
			client: one},
		"client wants another name": {server: one, client: &tls.Config{RootCAs: pool(ca),
			ServerName: "example.com"}},
		"client's certificate as server": {server: &tls.Config{Certificates: pair(ca, forClients)},
			client: one},
		"server without any certificate": {server: &tls.Config{}, client: one},
		"no client certificate":          {server: both, client: &tls.Config{RootCAs: pool(ca)}},
		"no client certificate, TLS 1.2": {server: both, client: &tls.Config{RootCAs: pool(ca),
			MaxVersion: tls.VersionTLS12}},
		"expired client": {server: both, client: &tls.Config{RootCAs: pool(ca),
			Certificates: pair(ca, expired)}},
		"client of a wrong CA": {server: both, client: &tls.Config{RootCAs: pool(ca),
			Certificates: pair(stranger, nil)}},
		"client that signs itself": {server: both, client: &tls.Config{RootCAs: pool(ca),
			Certificates: pair(new(authority), nil)}},
		"server's certificate as client": {server: both, client: &tls.Config{RootCAs: pool(ca),
			Certificates: pair(ca, forServers)}},
		"certificates of clients allowed": {server: &tls.Config{Certificates: own, ClientCAs: pool(ca),
			ClientAuth: tls.VerifyClientCertIfGiven}, client: &tls.Config{RootCAs: pool(ca)}, ok: true},
	} {
		for _, inFiles := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, files=%v", name, inFiles), func(t *testing.T) {
				cfg := &PeerConfig{TLSConfig: c.server}
				if inFiles && c.server != nil && len(c.server.Certificates) > 0 { // the files' pair beside it
					plain := c.server.Clone()
					leaf, err := x509.ParseCertificate(plain.Certificates[0].Certificate[0])
					require.NoError(t, err)
					cfg.TlsCertFile, cfg.TlsKeyFile = files(t, leaf, keyOf(t, plain.Certificates[0]))
					plain.Certificates = nil
					cfg.TLSConfig = plain
				}
				srv, handled := countedServer(t, cfg)
				addr := serve(t, srv)
				cli, handledBack := countedServer(t, &PeerConfig{TLSConfig: c.client,
					DefaultDialTimeout: time.Minute})
				sess, err := cli.Dial(addr)
				if c.ok {
					require.NoError(t, err)
					requireAlive(t, sess)
					require.EqualValues(t, 1, handled.Load())
					return
				}
				if err == nil { // in plaintext, or with TLS 1.3, the refusal comes later
					_ = sess.Push("/fn_push/call", 1)
					require.Equal(t, StatusConnClosed, sess.Pull("/fn/call", 1, nil).Xerror.Code())
					<-sess.Done()
				}
				require.Zero(t, cli.CountSession())
				if cfg.TLSConfig != nil && c.server != nil && len(c.server.Certificates) > 0 {
					good := both.Clone()
					good.InsecureSkipVerify = true // the server's certificate may be what is wrong
					good.VerifyConnection = func(tls.ConnectionState) error { return nil }
					sess, err := newTestPeer(t, &PeerConfig{TLSConfig: good}).Dial(addr)
					require.NoError(t, err)
					require.Zero(t, handled.Load())
					requireAlive(t, sess)
					require.Equal(t, 1, srv.CountSession())
				} else {
					require.Zero(t, handled.Load())
				}
				require.Zero(t, handledBack.Load())
			})
		}
	}
}

// A client that speaks nothing newer than TLS 1.1 is refused, whoever it is made
// of, and so is such a server. A configuration that allows it is an error.
func TestOldTLS(t *testing.T) {
	ca := newAuthority(t)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	cert, key := ca.issue(t, nil)
	own := []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}
	srv, handled := countedServer(t, &PeerConfig{TLSConfig: &tls.Config{Certificates: own}})
	addr := serve(t, srv)
	for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11} {
		conn, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS10,
			MaxVersion: version})
		if err == nil {
			_ = conn.Close()
		}
		require.ErrorContains(t, err, "version")

		ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: own,
			MinVersion: tls.VersionTLS10, MaxVersion: version})
		require.NoError(t, err)
		served := make(chan struct{})
		go func() {
			defer close(served)
			if conn, err := ln.Accept(); err == nil {
				_, _ = io.Copy(io.Discard, conn)
				_ = conn.Close()
			}
		}()
		cli := newTestPeer(t, &PeerConfig{TLSConfig: &tls.Config{RootCAs: pool}})
		_, err = cli.Dial(ln.Addr().String())
		require.ErrorContains(t, err, "version")
		require.NoError(t, ln.Close())
		<-served

		for _, cfg := range []*tls.Config{{Certificates: own, MinVersion: version}, {Certificates: own,
			MaxVersion: version}} {
			requireRefused(t, PeerConfig{TLSConfig: cfg}, "TLS 1.2")
		}
	}
	good, err := newTestPeer(t, &PeerConfig{TLSConfig: &tls.Config{RootCAs: pool}}).Dial(addr)
	require.NoError(t, err)
	require.Zero(t, handled.Load())
	requireAlive(t, good)
}

// Half a configuration is an error wherever it would be used, and never
// plaintext. So is one in which a client would not verify the server.
func TestHalfATLSConfiguration(t *testing.T) {
	cert, key := new(authority).issue(t, nil)
	certFile, keyFile := files(t, cert, key)
	more := &tls.Config{}
	requireRefused(t, PeerConfig{TlsCertFile: certFile}, "TlsKeyFile is not")
	requireRefused(t, PeerConfig{TlsKeyFile: keyFile}, "TlsCertFile is not")
	requireRefused(t, PeerConfig{TlsCertFile: certFile, TLSConfig: more}, "TlsKeyFile is not")
	requireRefused(t, PeerConfig{TlsKeyFile: keyFile, TLSConfig: more}, "TlsCertFile is not")
	requireRefused(t, PeerConfig{TLSConfig: &tls.Config{InsecureSkipVerify: true}}, "InsecureSkipVerify")
	requireRefused(t, PeerConfig{TlsCertFile: certFile, TlsKeyFile: keyFile,
		TLSConfig: &tls.Config{InsecureSkipVerify: true}}, "InsecureSkipVerify")
}

// requireRefused shows that a peer so configured neither listens, serves nor dials.
func requireRefused(t *testing.T, cfg PeerConfig, why string) {
	t.Helper()
	cfg.ListenAddrs = []string{"127.0.0.1:0"}
	p := newTestPeer(t, &cfg)
	require.ErrorContains(t, p.Listen(), why)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	_, err = p.Dial(ln.Addr().String())
	require.ErrorContains(t, err, why)
	require.ErrorContains(t, p.Serve(ln), why)
	_, err = net.Dial("tcp", ln.Addr().String())
	require.Error(t, err)
}

// strangersFrames is what somebody sends who has not authenticated.
func strangersFrames(t *testing.T) map[string][]byte {
	t.Helper()
	header := func(typ int32, uri string) packet.Header {
		return packet.Header{Id: "1", Type: typ, Uri: uri}
	}
	all := map[string][]byte{}
	for name, h := range map[string]packet.Header{
		"pull":                {Id: "1", Type: packet.TypePull, Uri: "/fn/call"},
		"pull without an id":  {Type: packet.TypePull, Uri: "/fn/call"},
		"pull with a query":   header(packet.TypePull, "/fn/call?token=x"),
		"push":                header(packet.TypePush, "/fn_push/call"),
		"pull of the push":    header(packet.TypePull, "/fn_push/call"),
		"push of the pull":    header(packet.TypePush, "/fn/call"),
		"reply":               header(packet.TypeReply, "/fn/call"),
		"type 0":              header(0, "/fn/call"),
		"type -1":             header(-1, "/fn/call"),
		"type 99":             header(99, "/fn/call"),
		"type beyond 32 bits": header(1<<30+1, "/fn/call"),
		"escaped letters":     header(packet.TypePull, "/%66n/c%61ll"),
		"escaped slash":       header(packet.TypePull, "/fn%2Fcall"),
		"escaped first slash": header(packet.TypePull, "%2Ffn/call"),
		"escaped twice":       header(packet.TypePull, "/%2566n/call"),
		"no first slash":      header(packet.TypePull, "fn/call"),
		"two slashes":         header(packet.TypePull, "//fn/call"),
		"dots":                header(packet.TypePull, "/auth/../fn/call"),
		"escaped dots":        header(packet.TypePull, "/auth/%2e%2e/fn/call"),
		"other case":          header(packet.TypePull, "/Fn/Call"),
		"slash behind":        header(packet.TypePull, "/fn/call/"),
		"NUL":                 header(packet.TypePull, "/fn/call\x00"),
		"a host":              header(packet.TypePull, "tp://host/fn/call"),
		"fragment":            header(packet.TypePull, "/fn/call#x"),
		"/auth as a query":    header(packet.TypePull, "/fn/call?/auth"),
	} {
		for _, codec := range []string{"json", "protobuf"} {
			frame, err := packet.Append(nil, &packet.Packet{Header: &h, HeaderCodec: codec, Body: "x"},
				packet.Limits{})
			require.NoError(t, err)
			all[name+" "+codec] = frame
		}
	}
	return all
}

// sendAll writes everything in one piece, closes the output, reads what comes
// back and closes.
func sendAll(t *testing.T, addr string, frames ...[]byte) []byte {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer conn.Close()
	_, _ = conn.Write(bytes.Join(frames, nil))
	_ = conn.(*net.TCPConn).CloseWrite()
	answer, _ := io.ReadAll(conn)
	return answer
}

// Nothing that a stranger sends before, together with or after a failed
// authentication in a PostAccept hook is handled.
func TestNothingIsHandledBeforePostAcceptPasses(t *testing.T) {
	var handled, pushed atomic.Int32
	srv := authServer(t, &handled)
	pushFn(srv, func(PushCtx, interface{}) { pushed.Add(1) })
	addr := serve(t, srv)
	good, err := authClient(t, "let me in").Dial(addr)
	require.NoError(t, err)
	token := func(text string) []byte {
		frame, err := packet.Append(nil, &packet.Packet{Header: &packet.Header{Uri: "/auth"}, Body: text},
			packet.Limits{})
		require.NoError(t, err)
		return frame
	}
	served := int32(0)
	for name, frame := range strangersFrames(t) {
		handled.Store(0)
		sendAll(t, addr, frame) // instead
		// before: the hook has read the wrong packet
		sendAll(t, addr, frame, token("let me in"), frame)
		sendAll(t, addr, token("guess"), frame)                       // together with
		sendAll(t, addr, token("guess"), token("let me in"), frame)   // and again
		sendAll(t, addr, token("")[:5], frame)                        // within
		sendAll(t, addr, token("guess"), bytes.Repeat(frame, 1000))   // more than is read at once
		sendAll(t, addr, token("let me in"), frame)                   // the id is taken: that fails too
		sendAll(t, addr, token("guess"), append([]byte{0}, frame...)) // shifted
		conn, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		_, err = conn.Write(token("guess"))
		require.NoError(t, err)
		answer := make([]byte, len(token("denied")))
		_, err = io.ReadFull(conn, answer)
		require.NoError(t, err)
		require.Contains(t, string(answer), "denied")
		_, _ = conn.Write(frame) // after
		_ = conn.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, conn)
		_ = conn.Close()
		require.Zero(t, handled.Load(), name)
		require.Zero(t, pushed.Load(), name)
		requireAlive(t, good)
		served++
	}
	require.Equal(t, 1, srv.CountSession())
	require.Greater(t, served, int32(40))
}

// Whatever way a hook has of not returning nil, the handler is not run: neither for
// who fails, nor for what comes in the same segment. Where the hook ends only the
// packet, the session lives on and is asked again; others do not notice.
func TestNothingIsHandledUnlessEveryHookPasses(t *testing.T) {
	fails := map[string]func() error{
		"error":        func() error { return errors.New("denied") },
		"Xerror":       func() error { return NewXerror(StatusUnauthorized, "denied") },
		"code 200":     func() error { return NewXerror(StatusOK, "denied") },
		"panic":        func() error { panic("denied") },
		"panic(nil)":   func() error { panic(nil) },
		"panic(error)": func() error { panic(errors.New("denied")) },
		"index":        func() error { var s []string; return errors.New(s[len(os.Args)]) },
		"Goexit":       func() error { runtime.Goexit(); return nil },
	}
	for _, point := range []string{"PostAccept", "PreReadHeader", "PostReadHeader", "PreReadBody",
		"PostReadBody"} {
		for _, where := range []string{"peer", "route", "group"} {
			if where != "peer" && (point == "PostAccept" || point == "PreReadHeader") {
				continue
			}
			for how, fail := range fails {
				t.Run(point+" "+where+" "+how, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						var handled, asked atomic.Int32
						plugin := hookPlugin("auth", point, func(c interface{}) error {
							var id string
							switch c := c.(type) {
							case ReadCtx:
								id = c.Session().Id()
							case ForeSession:
								id = c.Id()
							}
							if id == "good" {
								return nil
							}
							asked.Add(1)
							return fail()
						})
						pull := &Fn{F: func(_ PullCtx, args interface{}) (interface{}, Xerror) {
							handled.Add(1)
							return args, nil
						}}
						push := &FnPush{F: func(PushCtx, interface{}) { handled.Add(1) }}
						var srv *Peer
						switch where {
						case "peer":
							srv = newTestPeer(t, nil, plugin)
							srv.PullRouter.Reg(pull)
							srv.PushRouter.Reg(push)
						case "route":
							srv = newTestPeer(t, nil)
							srv.PullRouter.Reg(pull, plugin)
							srv.PushRouter.Reg(push, plugin)
						case "group":
							srv = newTestPeer(t, nil)
							srv.PullRouter.Group("", plugin).Reg(pull)
							srv.PushRouter.Group("", plugin).Reg(push)
						}
						cli := newTestPeer(t, nil)
						goodNear, goodFar := pipe.New(pipe.Options{})
						go func() { _, _ = srv.ServeConn(goodFar, "good") }()
						good, err := cli.ServeConn(goodNear)
						require.NoError(t, err)
						requireAlive(t, good)
						handled.Store(0)
						all := []byte{}
						for name, frame := range strangersFrames(t) {
							all = append(all, frame...)
							for _, piece := range [][]byte{frame, bytes.Repeat(frame, 20)} {
								near, far := pipe.New(pipe.Options{Buffer: 1 << 20})
								go func() { _, _ = srv.ServeConn(far) }()
								_, _ = near.Write(piece)
								synctest.Wait()
								require.Zero(t, handled.Load(), name)
								require.NoError(t, near.Close())
								synctest.Wait()
								require.Zero(t, handled.Load(), name)
							}
						}
						near, far := pipe.New(pipe.Options{Buffer: 1 << 20})
						go func() { _, _ = srv.ServeConn(far) }()
						_, _ = near.Write(all)
						synctest.Wait()
						require.Zero(t, handled.Load())
						require.NoError(t, near.Close())
						synctest.Wait()
						require.Zero(t, handled.Load())
						require.Positive(t, asked.Load())
						requireAlive(t, good)
						time.Sleep(2 * time.Second) // who is refused is given a second to read it
						require.Equal(t, 1, srv.CountSession())
						require.NoError(t, srv.Shutdown(t.Context()))
						require.Zero(t, srv.memory())
					})
				})
			}
		}
	}
}

// A hook that looks at the path sees the one that is routed by, so nobody gets
// past it by another spelling.
func TestAHookThatGuardsAPathCannotBePassedBy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var handled, seen atomic.Int32
		srv := newTestPeer(t, nil, hookPlugin("guard", "PostReadHeader", func(c interface{}) error {
			uri := c.(ReadCtx).Input().Header.Uri
			path, _, _ := strings.Cut(uri, "?")
			if strings.HasPrefix(path, "/fn/") || strings.HasPrefix(path, "/fn_push/") {
				seen.Add(1)
				return NewXerror(StatusUnauthorized, "denied")
			}
			return nil
		}))
		pullFn(srv, func(_ PullCtx, args interface{}) (interface{}, Xerror) {
			handled.Add(1)
			return args, nil
		})
		pushFn(srv, func(PushCtx, interface{}) { handled.Add(1) })
		HandlePull(srv.PullRouter, "/open", func(PullCtx, *string) (string, Xerror) { return "", nil })
		sess, _ := connect(t, newTestPeer(t, nil), srv, pipe.Options{})
		for name, frame := range strangersFrames(t) {
			near, far := pipe.New(pipe.Options{Buffer: 1 << 20})
			_, err := srv.ServeConn(far)
			require.NoError(t, err)
			_, err = near.Write(frame)
			require.NoError(t, err)
			synctest.Wait()
			require.Zero(t, handled.Load(), name)
			require.NoError(t, near.Close())
		}
		require.Positive(t, seen.Load())
		require.Nil(t, sess.Pull("/open", "", nil).Xerror)
		for _, uri := range []string{"/fn/call", "/%66n/call", "/fn/c%61ll?x=1"} {
			require.Equal(t, StatusUnauthorized, sess.Pull(uri, 1, nil).Xerror.Code(), uri)
		}
		require.Zero(t, handled.Load())
	})
}

func keyOf(t *testing.T, pair tls.Certificate) *ecdsa.PrivateKey {
	t.Helper()
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	require.True(t, ok)
	return key
}
