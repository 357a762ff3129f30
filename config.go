package tp

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/packet"
)

// PeerConfig configures a [Peer]. The zero value is ready to use for a peer that
// dials; one that listens needs ListenAddrs, or [Peer.Serve].
type PeerConfig struct {
	// TlsCertFile and TlsKeyFile are PEM files. With them a listener speaks only
	// TLS with this certificate; a dialled connection speaks only TLS too,
	// presents the certificate when asked for one, and trusts it beside the
	// system's roots, so that two peers with the same self-signed pair
	// understand each other. Both empty means no TLS, unless TLSConfig is set.
	// A file that is missing or broken makes Listen, Serve and Dial fail.
	TlsCertFile string
	TlsKeyFile  string
	// TLSConfig says what files cannot: client certificates, other roots, names,
	// versions. It is cloned; the files' certificate is added to it. Nil with no
	// files means no TLS.
	TLSConfig *tls.Config
	// DefaultReadTimeout is the longest that a session waits for the next packet
	// before it is closed; zero means no bound.
	DefaultReadTimeout time.Duration
	// DefaultWriteTimeout is the longest that one write may take before the
	// session is closed; zero means no bound.
	DefaultWriteTimeout time.Duration
	// SlowCometDuration is the time from which a pull, or the handling of a pull
	// or a push, is logged as slow; zero means never.
	SlowCometDuration time.Duration
	// DefaultHeaderCodec is the codec of headers that this peer sends first;
	// empty means protobuf.
	DefaultHeaderCodec string
	// DefaultBodyCodec is the codec of bodies that this peer sends first; empty
	// means json.
	DefaultBodyCodec string
	// DefaultBodyGzipLevel compresses bodies that this peer sends first: 1 to 9,
	// -1 for the default level, -2 for Huffman coding only; zero means none.
	DefaultBodyGzipLevel int
	// PrintBody logs every packet's bodies, escaped and cut at 1 KiB, at
	// LevelInfo; without it packets are logged at LevelDebug and without bodies.
	PrintBody bool
	// DefaultDialTimeout bounds Dial, TLS included; zero means 10 s and a
	// negative value no bound.
	DefaultDialTimeout time.Duration
	// ListenAddrs are the addresses that Listen serves: "host:port", or
	// "unix:/path" for a unix socket.
	ListenAddrs []string
}

const (
	defaultDialTimeout = 10 * time.Second
	// handshakeTimeout bounds a TLS handshake with a client, and the PostDial and
	// PostAccept hooks.
	handshakeTimeout = 10 * time.Second
)

// check panics with a sentence that names the field that is wrong.
func (c *PeerConfig) check() {
	bad := func(field string, format string, args ...interface{}) {
		panic(fmt.Sprintf("tp: PeerConfig.%s: %s.", field, fmt.Sprintf(format, args...)))
	}
	for _, f := range []struct {
		name string
		d    time.Duration
	}{
		{"DefaultReadTimeout", c.DefaultReadTimeout},
		{"DefaultWriteTimeout", c.DefaultWriteTimeout},
		{"SlowCometDuration", c.SlowCometDuration},
	} {
		if f.d < 0 {
			bad(f.name, "%v is negative; zero means none", f.d)
		}
	}
	if err := packet.CheckHeaderCodec(c.DefaultHeaderCodec); err != nil {
		bad("DefaultHeaderCodec", "%v", err)
	}
	if _, err := codec.GetByName(c.DefaultBodyCodec); err != nil {
		bad("DefaultBodyCodec", "%v", err)
	}
	if err := packet.CheckGzip(int32(c.DefaultBodyGzipLevel)); err != nil || int(int32(c.DefaultBodyGzipLevel)) != c.DefaultBodyGzipLevel {
		bad("DefaultBodyGzipLevel", "%d is outside -2..9", c.DefaultBodyGzipLevel)
	}
	for _, addr := range c.ListenAddrs {
		if network, address := splitAddr(addr); address == "" {
			bad("ListenAddrs", "%q has no address", addr)
		} else if network == "tcp" {
			if _, _, err := net.SplitHostPort(address); err != nil {
				bad("ListenAddrs", "%v", err)
			}
		}
	}
}

// withDefaults returns a copy in which names are filled in.
func (c *PeerConfig) withDefaults() PeerConfig {
	cfg := *c
	if cfg.DefaultHeaderCodec == "" {
		cfg.DefaultHeaderCodec = codec.NameProtobuf
	}
	if cfg.DefaultBodyCodec == "" {
		cfg.DefaultBodyCodec = codec.NameJSON
	}
	if cfg.DefaultDialTimeout == 0 {
		cfg.DefaultDialTimeout = defaultDialTimeout
	}
	return cfg
}

// splitAddr returns the network and the address: "unix:/a/b" is unix, all else
// tcp.
func splitAddr(addr string) (network, address string) {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		return "unix", path
	}
	return "tcp", addr
}

// tlsConfigs builds the configurations for accepted and for dialled connections;
// both are nil when the peer uses no TLS.
func (c *PeerConfig) tlsConfigs() (server, client *tls.Config, err error) {
	if c.TlsCertFile == "" && c.TlsKeyFile == "" {
		if c.TLSConfig == nil {
			return nil, nil, nil
		}
		server, client = c.TLSConfig.Clone(), c.TLSConfig.Clone()
	} else {
		if c.TlsCertFile == "" {
			return nil, nil, errors.New("tp: PeerConfig.TlsKeyFile is set but TlsCertFile is not")
		}
		if c.TlsKeyFile == "" {
			return nil, nil, errors.New("tp: PeerConfig.TlsCertFile is set but TlsKeyFile is not")
		}
		pair, err := tls.LoadX509KeyPair(c.TlsCertFile, c.TlsKeyFile)
		if err != nil {
			return nil, nil, fmt.Errorf("tp: PeerConfig.TlsCertFile and TlsKeyFile: %w", err)
		}
		server, client = new(tls.Config), new(tls.Config)
		if c.TLSConfig != nil {
			server, client = c.TLSConfig.Clone(), c.TLSConfig.Clone()
		}
		server.Certificates = append(server.Certificates[:len(server.Certificates):len(server.Certificates)], pair)
		client.Certificates = append(client.Certificates[:len(client.Certificates):len(client.Certificates)], pair)
		if client.RootCAs == nil {
			if client.RootCAs, err = x509.SystemCertPool(); err != nil {
				client.RootCAs = x509.NewCertPool()
			}
			client.RootCAs.AddCert(pair.Leaf)
		}
	}
	for _, cfg := range []*tls.Config{server, client} {
		if cfg.MinVersion == 0 {
			cfg.MinVersion = tls.VersionTLS12
		}
	}
	return server, client, nil
}
