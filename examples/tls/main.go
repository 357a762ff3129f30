// TLS shows an encrypted connection: a server with a certificate from files, a
// client that knows the authority, and what happens to who does not.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	tp "github.com/henrylee2cn/teleport"
)

// Echo answers with what it was sent.
type Echo struct {
	tp.PullCtx
}

// Back serves /echo/back.
func (e *Echo) Back(text *string) (string, tp.Xerror) { return *text, nil }

func main() {
	dir, err := os.MkdirTemp("", "teleport-tls")
	check(err)
	defer os.RemoveAll(dir)
	certFile, keyFile, roots := makeCertificate(dir)

	// Two files are all that a server needs.
	server := tp.NewPeer(&tp.PeerConfig{TlsCertFile: certFile, TlsKeyFile: keyFile})
	defer server.Close()
	server.PullRouter.Reg(new(Echo))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	go server.Serve(ln)

	// TLSConfig says what files cannot: here, whom the client trusts.
	client := tp.NewPeer(&tp.PeerConfig{TLSConfig: &tls.Config{RootCAs: roots}})
	defer client.Close()
	sess, err := client.Dial(ln.Addr().String())
	check(err)
	var reply string
	if cmd := sess.Pull("/echo/back", "nobody else can read this", &reply); cmd.Xerror != nil {
		log.Fatal(cmd.Xerror)
	}
	state, _ := sess.Socket().TLS()
	fmt.Printf("%s, %s: %s\n", tls.VersionName(state.Version), state.PeerCertificates[0].Subject, reply)

	// A client with no reason to trust the certificate does not connect.
	stranger := tp.NewPeer(&tp.PeerConfig{TLSConfig: &tls.Config{}})
	defer stranger.Close()
	_, err = stranger.Dial(ln.Addr().String())
	fmt.Println("a stranger:", err)

	// A missing file is an error, never plaintext.
	broken := tp.NewPeer(&tp.PeerConfig{TlsCertFile: filepath.Join(dir, "missing.pem"), TlsKeyFile: keyFile})
	defer broken.Close()
	_, err = broken.Dial(ln.Addr().String())
	fmt.Println("a missing file:", err != nil)
}

// makeCertificate writes a self-signed certificate for 127.0.0.1 and its key.
func makeCertificate(dir string) (certFile, keyFile string, roots *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "teleport example"},
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	check(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	check(err)
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	check(os.WriteFile(certFile, certPEM, 0o600))
	check(os.WriteFile(keyFile, keyPEM, 0o600))
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(certPEM)
	return certFile, keyFile, roots
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
