// Package tlsconf makes the two TLS configurations of a peer, one to accept connections with and one to dial
// with. It also finds out about a handshake what package crypto/tls does not tell.
package tlsconf

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"reflect"
	"slices"
)

// Both builds the configurations for accepted and for dialled connections, of PEM files and of
// what the program has set; both are nil when there is neither. The errors name the fields of
// tp.PeerConfig that they are about.
func Both(certFile, keyFile string, base *tls.Config) (server, client *tls.Config, err error) {
	if certFile == "" && keyFile == "" {
		if base == nil {
			return nil, nil, nil
		}
		server, client = base.Clone(), base.Clone()
	} else {
		if certFile == "" {
			return nil, nil, errors.New("tp: PeerConfig.TlsKeyFile is set but TlsCertFile is not")
		}
		if keyFile == "" {
			return nil, nil, errors.New("tp: PeerConfig.TlsCertFile is set but TlsKeyFile is not")
		}
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, nil, fmt.Errorf("tp: PeerConfig.TlsCertFile and TlsKeyFile: %w", err)
		}
		server, client = new(tls.Config), new(tls.Config)
		if base != nil {
			server, client = base.Clone(), base.Clone()
		}
		server.Certificates = append(slices.Clip(server.Certificates), pair)
		client.Certificates = append(slices.Clip(client.Certificates), pair)
		if client.RootCAs == nil {
			if client.RootCAs, err = x509.SystemCertPool(); err != nil {
				client.RootCAs = x509.NewCertPool()
			}
			client.RootCAs.AddCert(pair.Leaf)
		}
	}
	if client.ClientSessionCache == nil { // with one, a redial resumes the TLS session
		client.ClientSessionCache = tls.NewLRUClientSessionCache(0)
	}
	if client.InsecureSkipVerify && client.VerifyConnection == nil {
		return nil, nil, errors.New("tp: PeerConfig.TLSConfig.InsecureSkipVerify is set without " +
			"VerifyConnection: a client always verifies the server")
	}
	if server.ClientCAs != nil && server.ClientAuth != tls.VerifyClientCertIfGiven {
		server.ClientAuth = tls.RequireAndVerifyClientCert
	}
	for _, cfg := range []*tls.Config{server, client} {
		if cfg.MinVersion != 0 && cfg.MinVersion < tls.VersionTLS12 || cfg.MaxVersion != 0 &&
			cfg.MaxVersion < tls.VersionTLS12 {
			return nil, nil, errors.New("tp: PeerConfig.TLSConfig: MinVersion or MaxVersion is before " +
				"TLS 1.2; expected TLS 1.2 or newer, or zero")
		}
		if cfg.MinVersion == 0 {
			cfg.MinVersion = tls.VersionTLS12
		}
	}
	if choose := server.GetConfigForClient; choose != nil {
		server.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			cfg, err := choose(hello)
			if cfg != nil && cfg.MinVersion < tls.VersionTLS12 {
				cfg = cfg.Clone()
				cfg.MinVersion = tls.VersionTLS12
			}
			return cfg, err
		}
	}
	return server, client, nil
}

// CanServe returns an error unless a server has a certificate to show.
func CanServe(cfg *tls.Config) error {
	if cfg != nil && len(cfg.Certificates) == 0 && cfg.GetCertificate == nil &&
		cfg.GetConfigForClient == nil {
		return errors.New("tp: PeerConfig.TLSConfig has no certificate for a server")
	}
	return nil
}

// Client makes a TLS client of conn, which is closed after an error. The name to verify is the
// address's unless the configuration has one. It reports whether the server has asked for a
// certificate, on which it has not passed judgement then: in TLS 1.3 that comes later.
func Client(ctx context.Context, conn net.Conn, cfg *tls.Config, address string) (_ net.Conn, asked bool,
	_ error) {
	cfg = cfg.Clone()
	choose, certificates := cfg.GetClientCertificate, cfg.Certificates
	cfg.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		asked = true
		if choose != nil {
			return choose(info)
		}
		for i := range certificates {
			if info.SupportsCertificate(&certificates[i]) == nil {
				return &certificates[i], nil
			}
		}
		return new(tls.Certificate), nil // none
	}
	if cfg.ServerName == "" {
		cfg.ServerName = address
		if host, _, err := net.SplitHostPort(address); err == nil {
			cfg.ServerName = host
		}
	}
	tc := tls.Client(conn, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, asked, err
	}
	return tc, asked, nil
}

// The alerts of RFC 8446, section 6, that say what is wrong with this side's certificate.
var certificateAlerts = []uint64{
	40,  // handshake_failure, which TLS 1.2 has where there is none
	42,  // bad_certificate
	43,  // unsupported_certificate
	44,  // certificate_revoked
	45,  // certificate_expired
	46,  // certificate_unknown
	48,  // unknown_ca
	49,  // access_denied
	116, // certificate_required
}

// RefusesCertificate reports whether the other side has sent an alert about this side's
// certificate. Package crypto/tls does not export the type of the alerts that have come,
// only that of [tls.AlertError].
func RefusesCertificate(err error) bool {
	var alert tls.AlertError
	if errors.As(err, &alert) {
		return slices.Contains(certificateAlerts, uint64(alert))
	}
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" || op.Err == nil {
		return false
	}
	v := reflect.ValueOf(op.Err)
	return v.Kind() == reflect.Uint8 && slices.Contains(certificateAlerts, v.Uint())
}
