package tp

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
)

// authority signs certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	cert, key := new(authority).issue(t, func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid = true, true
		c.KeyUsage |= x509.KeyUsageCertSign
	})
	return &authority{cert, key}
}

// issue makes a certificate for 127.0.0.1; without an authority it signs itself.
func (a *authority) issue(t testing.TB, change func(*x509.Certificate)) (*x509.Certificate,
	*ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	require.NoError(t, err)
	c := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "teleport test"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	if change != nil {
		change(c)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return cert, key
}

// files writes a pair as PEM files.
func files(t testing.TB, cert *x509.Certificate, key *ecdsa.PrivateKey) (string, string) {
	t.Helper()
	dir := t.TempDir()
	der, err := x509.MarshalECPrivateKey(key)
	require.NoError(t, err)
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	require.NoError(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
		Bytes: cert.Raw}), 0o600))
	require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY",
		Bytes: der}), 0o600))
	return certFile, keyFile
}

func TestTLSFromFiles(t *testing.T) {
	cert, key := new(authority).issue(t, nil)
	certFile, keyFile := files(t, cert, key)
	srv := newTestPeer(t, &PeerConfig{TlsCertFile: certFile, TlsKeyFile: keyFile})
	pullFn(srv, echo)
	addr := serve(t, srv)

	// The same pair on both sides is enough.
	cli := newTestPeer(t, &PeerConfig{TlsCertFile: certFile, TlsKeyFile: keyFile})
	sess, err := cli.Dial(addr)
	require.NoError(t, err)
	requireAlive(t, sess)
	state, ok := sess.Socket().TLS()
	require.True(t, ok)
	require.True(t, state.HandshakeComplete)
	require.Equal(t, cert.Raw, state.PeerCertificates[0].Raw)
	require.GreaterOrEqual(t, state.Version, uint16(tls.VersionTLS12))

	// Plaintext gets nowhere, and holds up nobody.
	plain := newTestPeer(t, nil)
	bad, err := plain.Dial(addr)
	require.NoError(t, err, "TCP alone connects")
	cmd := bad.Pull("/fn/call", 1, nil)
	require.NotNil(t, cmd.Xerror)
	<-bad.Done()
	requireAlive(t, sess)

	// A client that has no reason to trust the certificate does not connect.
	stranger := newTestPeer(t, &PeerConfig{TLSConfig: &tls.Config{}})
	_, err = stranger.Dial(addr)
	require.ErrorContains(t, err, "certificate")

	// TLS to a plaintext server fails too.
	clear := newTestPeer(t, nil)
	_, err = cli.Dial(serve(t, clear))
	require.Error(t, err)
}

func TestTLSFilesThatAreMissingOrHalfGiven(t *testing.T) {
	cert, key := new(authority).issue(t, nil)
	certFile, keyFile := files(t, cert, key)
	_, stray := new(authority).issue(t, nil)
	_, otherKey := files(t, cert, stray)
	for name, cfg := range map[string]PeerConfig{
		"missing files": {TlsCertFile: "/does/not/exist.pem", TlsKeyFile: "/does/not/exist.key"},
		"no key":        {TlsCertFile: certFile},
		"no cert":       {TlsKeyFile: keyFile},
		"wrong key":     {TlsCertFile: certFile, TlsKeyFile: otherKey},
		"not a pair":    {TlsCertFile: keyFile, TlsKeyFile: keyFile},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.ListenAddrs = []string{"127.0.0.1:0"}
			p := newTestPeer(t, &cfg)
			require.ErrorContains(t, p.Listen(), "Tls")
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			addr := ln.Addr().String()
			_, err = p.Dial(addr)
			require.ErrorContains(t, err, "Tls")
			require.ErrorContains(t, p.Serve(ln), "Tls")
			_, err = net.Dial("tcp", addr)
			require.Error(t, err, "the listener is closed: nothing is served in the clear")
		})
	}
}

func TestTLSConfigVerifiesBothSides(t *testing.T) {
	ca := newAuthority(t)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	pair := func(change func(*x509.Certificate)) tls.Certificate {
		cert, key := ca.issue(t, change)
		return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
	}
	srvCfg := &tls.Config{Certificates: []tls.Certificate{pair(nil)}, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert}
	srv := newTestPeer(t, &PeerConfig{TLSConfig: srvCfg})
	pullFn(srv, echo)
	addr := serve(t, srv)

	cli := newTestPeer(t, &PeerConfig{TLSConfig: &tls.Config{RootCAs: pool,
		Certificates: []tls.Certificate{pair(nil)}}})
	sess, err := cli.Dial(addr)
	require.NoError(t, err)
	requireAlive(t, sess)

	refused := func(name string, cfg *tls.Config) {
		p := newTestPeer(t, &PeerConfig{TLSConfig: cfg})
		s, err := p.Dial(addr)
		if err == nil { // with TLS 1.3 the server's refusal comes after the client is through
			cmd := s.Pull("/fn/call", 1, nil)
			require.NotNil(t, cmd.Xerror, name)
		}
	}
	refused("no client certificate", &tls.Config{RootCAs: pool})
	expired := pair(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	refused("expired client certificate", &tls.Config{RootCAs: pool,
		Certificates: []tls.Certificate{expired}})
	refused("wrong name", &tls.Config{RootCAs: pool, Certificates: srvCfg.Certificates,
		ServerName: "example.com"})
	refused("old version", &tls.Config{RootCAs: pool, Certificates: srvCfg.Certificates,
		MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
	requireAlive(t, sess)
	require.Zero(t, srvCfg.MinVersion, "the caller's configuration is not changed")
}

func TestSilentTLSHandshakeHoldsUpNobody(t *testing.T) {
	certFile, keyFile := func() (string, string) {
		c, k := new(authority).issue(t, nil)
		return files(t, c,
			k)
	}()
	cfg := &PeerConfig{TlsCertFile: certFile, TlsKeyFile: keyFile}
	srv, cli := newTestPeer(t, cfg), newTestPeer(t, cfg)
	pullFn(srv, echo)
	addr := serve(t, srv)
	silent, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer silent.Close()
	sess, err := cli.Dial(addr)
	require.NoError(t, err)
	requireAlive(t, sess)
	require.NoError(t, srv.Close())
	// Close ends the handshake under way too.
	_, err = silent.Read(make([]byte, 1))
	require.Error(t, err)
}

func TestTLSHandshakeHasADeadline(t *testing.T) {
	cert, key := new(authority).issue(t, nil)
	certFile, keyFile := files(t, cert, key)
	synctest.Test(t, func(t *testing.T) {
		p := NewPeer(&PeerConfig{TlsCertFile: certFile, TlsKeyFile: keyFile})
		defer p.Close()
		pair, err := p.loadTLS()
		require.NoError(t, err)
		ca, cb := pipe.New(pipe.Options{})
		start := time.Now()
		p.admit(ca, pair.server)
		_, err = cb.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
		require.Equal(t, 10*time.Second, time.Since(start))
		require.NoError(t, cb.Close())
	})
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	srv, cli := newTestPeer(t, &PeerConfig{ListenAddrs: []string{"unix:" + path, "127.0.0.1:0"}}),
		newTestPeer(t, nil)
	pullFn(srv, echo)
	ended := make(chan error)
	go func() { ended <- srv.Listen() }()
	for len(srv.Addrs()) < 2 {
		runtime.Gosched()
	}
	for range 2 {
		sess, err := cli.Dial("unix:" + path)
		require.NoError(t, err)
		requireAlive(t, sess)
		require.Equal(t, packet.TypeReply, sess.Pull("/fn/call", 1, nil).Input().Header.Type)
	}
	require.Equal(t, 2, srv.CountSession(), "clients of a unix socket have no address, and ids all the same")
	require.NoError(t, srv.Close())
	require.NoError(t, <-ended)
	require.Empty(t, srv.Addrs())
}

func TestListenErrors(t *testing.T) {
	p := newTestPeer(t, nil)
	require.ErrorContains(t, p.Listen(), "ListenAddrs is empty")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	p = newTestPeer(t, &PeerConfig{ListenAddrs: []string{"127.0.0.1:0", taken.Addr().String()}})
	require.ErrorContains(t, p.Listen(), taken.Addr().String())
	require.Empty(t, p.Addrs())
}

// A listener whose errors pass is asked again.
type flakyListener struct {
	net.Listener
	errs []error
}

type passing struct{ error }

func (passing) Temporary() bool { return true }

func (l *flakyListener) Accept() (net.Conn, error) {
	if len(l.errs) > 0 {
		err := l.errs[0]
		l.errs = l.errs[1:]
		return nil, err
	}
	return l.Listener.Accept()
}

func TestAcceptErrors(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	pullFn(srv, echo)
	ended := make(chan error)
	go func() {
		ended <- srv.Serve(&flakyListener{ln, []error{passing{os.ErrPermission}, passing{os.ErrPermission}}})
	}()
	sess, err := cli.Dial(ln.Addr().String())
	require.NoError(t, err)
	requireAlive(t, sess)
	// Closed behind the peer's back: that is an error.
	require.NoError(t, ln.Close())
	require.ErrorIs(t, <-ended, net.ErrClosed)
	requireAlive(t, sess)
}

func TestConfigIsChecked(t *testing.T) {
	for want, cfg := range map[string]PeerConfig{
		`tp: PeerConfig.SlowCometDuration: -1s is negative; zero means never.`:    {SlowCometDuration: -time.Second},
		`tp: PeerConfig.DefaultHeaderCodec: unknown codec: name "xml".`:           {DefaultHeaderCodec: "xml"},
		`tp: PeerConfig.DefaultBodyCodec: unknown codec: name "xml".`:             {DefaultBodyCodec: "xml"},
		`tp: PeerConfig.DefaultBodyGzipLevel: 10 is outside -2..9.`:               {DefaultBodyGzipLevel: 10},
		`tp: PeerConfig.DefaultBodyGzipLevel: -3 is outside -2..9.`:               {DefaultBodyGzipLevel: -3},
		`tp: PeerConfig.ListenAddrs: "unix:" has no address.`:                     {ListenAddrs: []string{"unix:"}},
		`tp: PeerConfig.ListenAddrs: "" has no address.`:                          {ListenAddrs: []string{"127.0.0.1:1", ""}},
		`tp: PeerConfig.ListenAddrs: address localhost: missing port in address.`: {ListenAddrs: []string{"localhost"}},
	} {
		require.PanicsWithValue(t, want, func() { NewPeer(&cfg) })
	}
	require.Panics(t, func() { NewPeer(&PeerConfig{DefaultHeaderCodec: "string"}) },
		"text cannot carry a header")
}

// A server without a certificate says so at once.
func TestTLSOfServers(t *testing.T) {
	p := newTestPeer(t, &PeerConfig{TLSConfig: &tls.Config{RootCAs: x509.NewCertPool()},
		ListenAddrs: []string{"127.0.0.1:0"}})
	require.ErrorContains(t, p.Listen(), "no certificate for a server")
}
