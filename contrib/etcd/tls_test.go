package etcd_test

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/henrylee2cn/teleport/contrib/etcd"
)

// Over TLS it is as without it. A client that does not know who has signed the certificate says so.
func TestTLS(t *testing.T) {
	t.Parallel()
	info, err := transport.SelfCert(zap.NewNop(), t.TempDir(), []string{"127.0.0.1:0"}, 1)
	require.NoError(t, err)
	c := newCluster(t, 1, func(cfg *embed.Config) {
		cfg.ListenClientUrls[0].Scheme, cfg.AdvertiseClientUrls[0].Scheme = "https", "https"
		cfg.ClientTLSInfo = info
	})
	text, err := os.ReadFile(info.CertFile)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(text))
	client := func(knows *x509.CertPool) *clientv3.Client {
		cfg := etcd.ClientConfig("https://" + c.members[0].clients.addr())
		cfg.TLS = &tls.Config{RootCAs: knows}
		return connect(t, cfg)
	}
	good := client(roots)
	servers := serveAll(t, good, 2, shortest)
	r := follow(t, etcd.NewResolver(good, "orders"))
	eventually(t, func() bool { return r.has(servers...) })

	bad := serve(t, client(x509.NewCertPool()), "orders")
	eventually(t, func() bool {
		err := bad.reg.Err()
		return err != nil && strings.Contains(err.Error(), "certificate")
	})
	require.False(t, bad.reg.Registered())

	c.stopUnder(servers)
	c.startAll()
	inEtcd(t, good, servers...)
	require.Len(t, keys(t, good, "orders"), 2)
	eventually(t, func() bool { return r.has(servers...) })
}
