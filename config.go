package tp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/internal/sockopt"
	"github.com/henrylee2cn/teleport/packet"
)

// PeerConfig configures a [Peer]. The zero value is ready to use for a peer that
// dials; one that listens needs ListenAddrs, or [Peer.Serve].
//
// It can be in a file, JSON or YAML, with the names of the fields in snake case: see
// [PeerConfig.UnmarshalJSON].
type PeerConfig struct {
	// Addresses and connections.

	// ListenAddrs are the addresses that Listen serves: "host:port", or
	// "unix:/path" for a unix socket.
	ListenAddrs []string
	// UnixMode is the mode of the unix sockets that Listen makes, of which only the
	// permissions count, 0600 for example: only processes that may write to a socket can connect to
	// it. The sockets have this mode before anybody can connect. Zero leaves it to the process's umask.
	// It is not for Windows, where Listen fails, nor for sockets that were handed over.
	UnixMode os.FileMode
	// DialContext makes the connections of Dial and of redialling, before any TLS: through a
	// SOCKS proxy, by ssh, over vsock, in memory. It is given "tcp" or "unix" and the address
	// without that, and must be safe for concurrent use. Nil means that of a net.Dialer.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
	// Redial makes the sessions that this peer dials outlive their connections; nil
	// means that they end with them. It is copied.
	Redial *Redial

	// TLS.

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
	// files means no TLS. Versions before TLS 1.2 are never spoken, a client always
	// verifies the server, and with ClientCAs a client must have a certificate, unless
	// ClientAuth is VerifyClientCertIfGiven.
	TLSConfig *tls.Config

	// What sessions are like to begin with.

	// DefaultReadTimeout is the longest that a session waits for the next packet
	// before its connection is closed; zero and negative values mean no bound. A side that
	// only listens for pushes sends nothing: with a read timeout it must send something, a
	// pull of a route for that purpose for example. Sides that have gone are found without
	// it, see KeepAlive.
	DefaultReadTimeout time.Duration
	// DefaultWriteTimeout is the longest that one write may take, and that a packet
	// waits for room in the session's output, before the session is closed; zero
	// means 30 s and a negative value no bound.
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
	DefaultBodyGzipLevel int32
	// PrintBody logs every packet's bodies, escaped and cut at 1 KiB, at
	// LevelInfo; without it packets are logged at LevelDebug and without bodies.
	PrintBody bool

	// Limits. They bound what the other sides, and the network, can do to this peer. In
	// each field zero means the default that is given, which is safe for a server that
	// anybody may connect to, and a negative value no bound.

	// Times:

	// DefaultPullTimeout is the longest that a pull of this peer's takes before it
	// completes with StatusDeadlineExceeded; zero means no bound.
	DefaultPullTimeout time.Duration
	// DefaultDialTimeout bounds Dial, TLS included (10 s).
	DefaultDialTimeout time.Duration
	// HandshakeTimeout bounds the TLS handshake with a client (10 s).
	HandshakeTimeout time.Duration
	// HookTimeout bounds the PostDial hooks, and the PostAccept hooks (10 s).
	HookTimeout time.Duration
	// FrameTimeout is the longest that a packet may take from its first byte to
	// its last, before the session is closed (30 s, or the session's read timeout
	// if that is shorter).
	FrameTimeout time.Duration
	// KeepAlive is for how long nothing comes by a TCP connection before the kernel
	// asks whether the other side is still there: three times, a third of this
	// apart; then the session ends (15 s). On every connection, while this side waits for
	// the reply to a pull, the peer asks as well, after the same time: the kernel answers
	// for a process that is stopped. If nothing comes for as long again, not even an
	// answer, the session ends. A handler may take as long as it likes; what must answer
	// is the other side's reader, which begins when its PostAccept hooks have passed. A
	// negative value turns both off.
	KeepAlive time.Duration
	// UserTimeout is for how long data that was sent by TCP may stay unacknowledged
	// before the session ends, on Linux (30 s). Elsewhere the kernel decides.
	UserTimeout time.Duration

	// Sizes:

	// MaxHeaderBytes bounds a packet's header (64 KiB), MaxBodyBytes its body on the
	// wire (16 MiB) and MaxInflatedBytes its body when decompressed (16 MiB), each in
	// both directions. At most 4 GiB can be sent at all.
	MaxHeaderBytes, MaxBodyBytes, MaxInflatedBytes int64
	// MaxHandshakeBytes bounds the bodies, on the wire and decompressed, that PostAccept
	// hooks receive, from somebody who may be a stranger still (64 KiB). Decoded they may
	// take four times as much. It is never more than the limits above.
	MaxHandshakeBytes int64
	// MaxDecodedBytes bounds the memory that a body takes when it is decoded (64 MiB), where
	// its codec can tell: json, protobuf and string can. A body beyond it fails with
	// StatusTooLarge.
	MaxDecodedBytes int64
	// MaxBodyDepth bounds how deep JSON and protobuf bodies may be nested (1,000).
	MaxBodyDepth int

	// Memory:

	// MaxBufferedBytes bounds the memory that all sessions make the process take (256 MiB):
	// three sixteenths of it are for what is received, from the first byte of a body until the
	// call is over, decompressed and decoded too, with its goroutine; an eighth for what waits
	// to be written; the rest for what the collector has not freed yet. What one session may
	// have of them depends on how much is left, so that some always is; and each has 192 KiB
	// and 64 KiB beside that, which nobody can take from it. When the memory is used up the sessions
	// end that have held most of it for longest while their other sides did not send, or
	// read, on. A pull for which there is no memory is answered with StatusOverloaded.
	MaxBufferedBytes int64
	// MaxSessionInput bounds the pushes of one session that wait for others to be
	// handled, in bytes of memory (8 MiB; 64 KiB at least). The other side is told, and its Push
	// waits. A side of a version that does not know this is cut off instead, see
	// [PushesLost]. One push may wait whatever its size.
	MaxSessionInput int64
	// MaxSessionOutput is how many bytes may wait to be written to one session
	// before the next call that writes to the session has to wait, for the write
	// timeout at most (8 MiB). As many again may wait of packets that go in parts,
	// which are those with more than 66 KiB of body: a call that writes another one
	// waits as long as the other side goes on reading.
	MaxSessionOutput int64

	// Numbers:

	// MaxSessionHandlers and MaxHandlers bound the handlers that run for one session
	// (4,096) and for all (65,536). An eighth of all are for sessions that run no more than
	// 64, so that many handlers of some do not keep out those of another. Beyond the
	// bounds a push waits. So does a pull, at the other side: it is told how many of its pulls may be
	// unanswered, when it has more than 128 of them. A pull of a side that was not told, or is of a version
	// that does not know this, is answered with StatusOverloaded and was not run.
	MaxSessionHandlers, MaxHandlers int
	// MaxSessionStreams bounds the streams of one session that the other side has opened
	// (16,384). A stream beyond it ends with StatusOverloaded and was not run. Streams do not count as
	// handlers.
	MaxSessionStreams int
	// MaxSessions bounds the sessions (65,536, or 80% of how many files the process
	// may open where that is less). Connections beyond it are closed at once.
	MaxSessions int
	// MaxHandshakes bounds the connections that were accepted and have not yet passed
	// TLS and the PostAccept hooks (1,024, or 10% of how many files the process may
	// open), and MaxHandshakesPerAddr those of one IPv4 address or one /64 of IPv6
	// addresses (a quarter of MaxHandshakes; none without that). For a connection that
	// comes when there are as many, the one that was accepted first is closed.
	//
	// When more than half of MaxHandshakes are in use, connections that have taken
	// long are closed too. How long that is shrinks with every place taken, from the whole of
	// HandshakeTimeout and HookTimeout when half of them are, to a sixteenth of it when
	// all are.
	MaxHandshakes, MaxHandshakesPerAddr int
}

// The defaults of PeerConfig; of those that are not here see package packet.
const (
	defaultDialTimeout        = 10 * time.Second
	defaultHandshakeTimeout   = 10 * time.Second
	defaultHookTimeout        = 10 * time.Second
	defaultWriteTimeout       = 30 * time.Second
	defaultFrameTimeout       = 30 * time.Second
	defaultKeepAlive          = 15 * time.Second
	defaultUserTimeout        = 30 * time.Second
	defaultMaxBuffered        = 256 << 20
	defaultMaxHandshakeBytes  = 64 << 10
	defaultMaxSessionInput    = 8 << 20
	defaultMaxSessionOutput   = 8 << 20
	defaultMaxSessionHandlers = 4 << 10
	defaultMaxHandlers        = 64 << 10
	defaultMaxSessionStreams  = 16 << 10
	defaultMaxSessions        = 64 << 10
	defaultMaxHandshakes      = 1 << 10
)

// check panics with a sentence that names the field that is wrong.
func (c *PeerConfig) check() {
	if err := c.problem(); err != nil {
		panic(err.Error() + ".")
	}
}

// problem names the field that is wrong, nil if none is.
func (c *PeerConfig) problem() error {
	bad := func(field string, format string, args ...interface{}) error {
		return fmt.Errorf("tp: PeerConfig.%s: %s", field, fmt.Sprintf(format, args...))
	}
	if c.SlowCometDuration < 0 {
		return bad("SlowCometDuration", "%v is negative; zero means never", c.SlowCometDuration)
	}
	if c.DefaultHeaderCodec != "" {
		if err := packet.CheckHeaderCodec(c.DefaultHeaderCodec); errors.Is(err, codec.ErrUnknown) {
			return bad("DefaultHeaderCodec", "%v", err)
		} else if err != nil {
			return bad("DefaultHeaderCodec", "the codec %q cannot carry a header: %v", c.DefaultHeaderCodec,
				err)
		}
	}
	if c.DefaultBodyCodec != "" {
		if _, err := codec.GetByName(c.DefaultBodyCodec); err != nil {
			return bad("DefaultBodyCodec", "%v", err)
		}
	}
	if packet.CheckGzip(c.DefaultBodyGzipLevel) != nil {
		return bad("DefaultBodyGzipLevel", "%d is outside -2..9", c.DefaultBodyGzipLevel)
	}
	if c.UnixMode&^os.ModePerm != 0 {
		return bad("UnixMode", "%v is more than permissions", c.UnixMode)
	}
	if r := c.Redial; r != nil {
		if r.MinBackoff < 0 {
			return bad("Redial.MinBackoff", "%v is negative", r.MinBackoff)
		}
		if r.MaxBackoff < 0 || r.MaxBackoff > 0 && r.MaxBackoff < r.MinBackoff {
			return bad("Redial.MaxBackoff", "%v is less than MinBackoff, %v", r.MaxBackoff, r.MinBackoff)
		}
	}
	for _, addr := range c.ListenAddrs {
		if network, address := splitAddr(addr); address == "" {
			return bad("ListenAddrs", "%q has no address", addr)
		} else if network == "tcp" {
			if _, _, err := net.SplitHostPort(address); err != nil {
				return bad("ListenAddrs", "%v", err)
			}
		}
	}
	return nil
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
	orDefault(&cfg.DefaultDialTimeout, defaultDialTimeout)
	orDefault(&cfg.DefaultWriteTimeout, defaultWriteTimeout)
	orDefault(&cfg.HandshakeTimeout, defaultHandshakeTimeout)
	orDefault(&cfg.HookTimeout, defaultHookTimeout)
	orDefault(&cfg.FrameTimeout, defaultFrameTimeout)
	orDefault(&cfg.KeepAlive, defaultKeepAlive)
	orDefault(&cfg.UserTimeout, defaultUserTimeout)
	orDefault(&cfg.MaxBufferedBytes, defaultMaxBuffered)
	orDefault(&cfg.MaxHandshakeBytes, defaultMaxHandshakeBytes)
	orDefault(&cfg.MaxSessionInput, defaultMaxSessionInput)
	orDefault(&cfg.MaxSessionOutput, defaultMaxSessionOutput)
	orDefault(&cfg.MaxSessionHandlers, defaultMaxSessionHandlers)
	orDefault(&cfg.MaxHandlers, defaultMaxHandlers)
	orDefault(&cfg.MaxSessionStreams, defaultMaxSessionStreams)
	cfg.Redial = cfg.Redial.withDefaults()
	orDefault(&cfg.MaxHandshakes, max(1, min(defaultMaxHandshakes, sockopt.MaxOpenFiles()/10)))
	if cfg.MaxHandshakes < 0 {
		orDefault(&cfg.MaxHandshakesPerAddr, -1)
	} else {
		orDefault(&cfg.MaxHandshakesPerAddr, max(1, cfg.MaxHandshakes/4))
	}
	if cfg.MaxSessions == 0 {
		cfg.MaxSessions = max(1, min(defaultMaxSessions, sockopt.MaxOpenFiles()/5*4))
	}
	return cfg
}

// orDefault returns n, or def if n is zero.
func orDefault[T int | int64 | time.Duration](field *T, def T) {
	if *field == 0 {
		*field = def
	}
}

// within reports whether n is at most the bound; a negative bound is none.
func within[T int | int64](n, bound T) bool { return bound < 0 || n <= bound }

// limits returns the limits of packets.
func (c *PeerConfig) limits() packet.Limits {
	return packet.Limits{
		Header:   c.MaxHeaderBytes,
		Body:     c.MaxBodyBytes,
		Inflated: c.MaxInflatedBytes,
		Decoded:  c.MaxDecodedBytes,
		Depth:    c.MaxBodyDepth,
	}
}

// handshakeLimits returns the limits of the packets that come before the PostAccept hooks have passed.
func (c *PeerConfig) handshakeLimits() packet.Limits {
	l := c.limits()
	most := c.MaxHandshakeBytes
	if most < 0 {
		return l
	}
	atMost := func(n *int64, most int64) {
		if *n <= 0 || *n > most {
			*n = most
		}
	}
	atMost(&l.Body, most)
	atMost(&l.Inflated, most)
	atMost(&l.Decoded, 4*most)
	return l
}

// pools divide MaxBufferedBytes: three sixteenths are for what is received and an eighth for what
// waits to be written. As much again is what the collector has not freed yet, and the rest
// pays for the shares that each session has beside that, of 256 that use all of theirs.
func (c *PeerConfig) pools() (received, waiting *packet.Pool) {
	most := c.MaxBufferedBytes
	if most < 0 {
		return nil, nil
	}
	return packet.NewPool(most/16*3, min(inputShare, most/8)),
		packet.NewPool(most/8, min(outputShare, most/16))
}

const (
	// inputShare is what a session may always have: a body of up to 64 KiB, in a buffer of
	// 65 KiB, and what that is decoded into.
	inputShare  = 192 << 10
	outputShare = 64 << 10
)

// splitAddr returns the network and the address: "unix:/a/b" is unix, all else
// tcp.
func splitAddr(addr string) (network, address string) {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		return "unix", path
	}
	return "tcp", addr
}

// fill makes out a packet to be sent, with the header hdr: the peer's defaults, then the settings.
func (cfg *PeerConfig) fill(out *packet.Packet, hdr *packet.Header, typ int32, uri string, body interface{},
	settings []PacketSetting) {
	*hdr = packet.Header{Type: typ, Uri: uri, Gzip: cfg.DefaultBodyGzipLevel}
	*out = packet.Packet{
		HeaderCodec: cfg.DefaultHeaderCodec,
		BodyCodec:   cfg.DefaultBodyCodec,
		Header:      hdr,
		Body:        body,
	}
	applySettings(out, settings)
}

// Redial says how the sessions that a peer dials outlive their connections. When a
// connection is lost, or the other side says that it shuts down, the session dials
// again, runs the PostDial hooks on the new connection and goes on: the same Session,
// with its id and its Public values. A connection whose other side shuts down is kept
// until it has answered what it was sent.
//
// An error that another attempt would meet again ends the session instead: what
// [Permanent] says of an error, and where no address has failed in another way a refusal
// with StatusUnauthorized or StatusForbidden and an alert about this side's certificate.
//
// A pull or a push that certainly has not run, see [NotRun], because its connection
// has gone, is sent again by the next one, and its PreWrite and PostWrite hooks run
// again. What may have run never is: it fails with StatusConnClosed.
//
// On the other side the new connection is a new session. What it has to know about
// this one, who it is or what it subscribes to, is for PostDial and PostConnect
// hooks to tell.
type Redial struct {
	// Attempts is how many attempts in a row may fail before the session ends; zero
	// and negative values mean no bound. An attempt tries each address once. One whose
	// connection does not last as long as the next attempt might have waited for has
	// failed.
	Attempts int
	// Before each attempt a random time passes, between nothing and a bound ("full
	// jitter", as in "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
	// The bound is half the time for which the session has had no lasting connection,
	// but MinBackoff at least and MaxBackoff at most (100 ms, 30 s). When the other
	// side has said that it shuts down the first attempt is made at once.
	MinBackoff, MaxBackoff time.Duration
	// MaxWait is the longest that a pull or a push waits for a connection before it
	// fails with StatusConnClosed (30 s); a negative value means no bound. It counts
	// as part of the time that a pull may take.
	MaxWait time.Duration
	// FailFast makes pulls and pushes fail at once with StatusConnClosed while there
	// is no connection. When the other side shuts down they wait all the same, for the
	// first attempt to make a new one.
	FailFast bool
	// First makes [Peer.Dial] itself try again, as redialling does, when the server is not
	// there yet: until it succeeds, Attempts have failed, the peer is closed, the context of
	// DialContext ends, or the error is one that another attempt would meet again. Without
	// an end of these kinds Dial waits for ever; PeerConfig.DefaultDialTimeout bounds each
	// attempt. It is not for DialConn.
	First bool
}

// withDefaults returns a copy with the defaults filled in; nil for nil.
func (r *Redial) withDefaults() *Redial {
	if r == nil {
		return nil
	}
	c := *r
	orDefault(&c.MinBackoff, defaultMinBackoff)
	orDefault(&c.MaxBackoff, max(defaultMaxBackoff, c.MinBackoff))
	orDefault(&c.MaxWait, defaultMaxWait)
	return &c
}

// bound is the longest wait before an attempt when there has been no lasting
// connection for some time.
func (r *Redial) bound(without time.Duration) time.Duration {
	return min(max(without/2, r.MinBackoff), r.MaxBackoff)
}

const (
	defaultMinBackoff = 100 * time.Millisecond
	defaultMaxBackoff = 30 * time.Second
	defaultMaxWait    = 30 * time.Second
)
