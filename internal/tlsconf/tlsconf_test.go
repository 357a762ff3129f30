package tlsconf_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/tlsconf"
)

// Without files and a configuration there is no TLS; a server needs a certificate, no callback
// brings old versions back, and client CAs mean that a certificate is required.
func TestBoth(t *testing.T) {
	server, client, err := tlsconf.Both("", "", nil)
	require.NoError(t, err)
	require.Nil(t, server)
	require.Nil(t, client)
	require.NoError(t, tlsconf.CanServe(nil))
	require.Error(t, tlsconf.CanServe(new(tls.Config)))

	old := &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	base := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return old, nil
	}}
	server, _, err = tlsconf.Both("", "", base)
	require.NoError(t, err)
	require.NoError(t, tlsconf.CanServe(server))
	got, err := server.GetConfigForClient(nil)
	require.NoError(t, err)
	require.EqualValues(t, tls.VersionTLS12, got.MinVersion)
	require.EqualValues(t, tls.VersionTLS10, old.MinVersion, "theirs is theirs")

	for _, auth := range []tls.ClientAuthType{tls.NoClientCert, tls.RequestClientCert,
		tls.RequireAnyClientCert, tls.RequireAndVerifyClientCert} {
		base := &tls.Config{ClientCAs: x509.NewCertPool(), ClientAuth: auth}
		server, _, err := tlsconf.Both("", "", base)
		require.NoError(t, err)
		require.Equal(t, tls.RequireAndVerifyClientCert, server.ClientAuth)
	}
	for _, bad := range []*tls.Config{
		{MinVersion: tls.VersionTLS10}, {MaxVersion: tls.VersionTLS11}, {InsecureSkipVerify: true},
	} {
		_, _, err := tlsconf.Both("", "", bad)
		require.ErrorContains(t, err, "tp: PeerConfig.TLSConfig")
	}
}

// The alerts about a certificate are known by their numbers, as package crypto/tls does not export
// their type.
func TestRefusesCertificate(t *testing.T) {
	require.True(t, tlsconf.RefusesCertificate(tls.AlertError(116)))
	require.False(t, tlsconf.RefusesCertificate(tls.AlertError(80)))
	require.False(t, tlsconf.RefusesCertificate(&net.OpError{Op: "remote error"}))
	require.False(t, tlsconf.RefusesCertificate(errors.New("x")))
}
