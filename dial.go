package tp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/henrylee2cn/teleport/internal/tlsconf"
)

// Dial connects to "host:port", or "unix:/path", and returns the session once the
// PostDial hooks, the other side's PostAccept hooks, if this side has PostDial hooks, and
// the PostConnect hooks have passed. If the other side does not want the connection the
// error wraps the [Xerror] that it gives for that. Of several addresses, separated by
// commas, it takes the first that can be connected to; the path of a unix socket has no
// comma in it. With PeerConfig.Redial the session outlives its connection. Its id is the
// one given, which must be free, or else the address of the other side, with "#" and a
// number behind it if that is taken. The whole takes PeerConfig.DefaultDialTimeout at
// most, unless [Redial].First is set.
func (p *Peer) Dial(addr string, id ...string) (*Session, error) {
	if r := p.cfg.Redial; r != nil && r.First {
		return p.DialContext(context.Background(), addr, id...)
	}
	ctx, cancel := bounded(context.Background(), p.cfg.DefaultDialTimeout)
	defer cancel()
	return p.DialContext(ctx, addr, id...)
}

// DialContext is Dial, bounded by ctx, and by PeerConfig.HookTimeout for the hooks of
// either kind. The end of ctx after DialContext has returned does not end the session.
func (p *Peer) DialContext(ctx context.Context, addr string, id ...string) (*Session, error) {
	if addr == "" {
		return nil, errors.New("tp: dial: the address is empty; expected host:port or unix:/path, or " +
			"several of them with commas between")
	}
	sess, err := p.dial(orNone(ctx), addr, id)
	if err != nil {
		return nil, fmt.Errorf("tp: dial %s: %w", addr, err)
	}
	return sess, nil
}

// DialConn makes a session of a connection that this side has made in its own way: through
// a proxy, by ssh, or in memory. It is to the PostDial and PostConnect hooks what
// [Peer.ServeConn] is to PostAccept hooks. The connection is used as it is, without TLS of
// the peer's own; an error closes it. The session ends with the connection:
// for sessions that redial see PeerConfig.DialContext. The id is as for [Peer.Dial]. The
// hooks are bounded by ctx and by PeerConfig.HookTimeout; the end of ctx after that does not end the session.
func (p *Peer) DialConn(ctx context.Context, conn net.Conn, id ...string) (*Session, error) {
	if conn == nil {
		return nil, errNoConn
	}
	if ctx == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("tp: dial %s: %w", conn.RemoteAddr(), errNoContext)
	}
	sess, err := p.newSession(ctx, conn, p.dialledFrom(id, false))
	if err != nil {
		return nil, fmt.Errorf("tp: dial %s: %w", conn.RemoteAddr(), err)
	}
	return sess, nil
}

// dialledFrom returns the origin of a connection that this side has made. Asked says whether TLS has asked
// this side for a certificate.
func (p *Peer) dialledFrom(id []string, asked bool) origin {
	return origin{hooks: p.chain.postDial, id: id, confirms: asked || len(p.chain.postDial) > 0,
		connect: p.chain.postConnect}
}

func (p *Peer) dial(ctx context.Context, addr string, id []string) (*Session, error) {
	addrs, err := splitAddrs(addr)
	if err != nil {
		return nil, err
	}
	if _, err := p.loadTLS(); err != nil {
		return nil, err
	}
	if r := p.cfg.Redial; r != nil && r.First {
		return p.dialFirst(ctx, addrs, id)
	}
	sess, err, _ := p.dialAny(ctx, addrs, id, p.cfg.Redial)
	return sess, err
}

// dialOnce is DialContext for a session that ends with its connection, whatever PeerConfig.Redial is.
func (p *Peer) dialOnce(ctx context.Context, addr string) (*Session, error) {
	addrs, err := splitAddrs(addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := bounded(ctx, p.cfg.DefaultDialTimeout)
	defer cancel()
	sess, err, _ := p.dialAny(ctx, addrs, nil, nil)
	return sess, err
}

// splitAddrs returns the addresses that stand in addr with commas between.
func splitAddrs(addr string) ([]string, error) {
	addrs := strings.Split(addr, ",")
	for i := range addrs {
		if addrs[i] = strings.TrimSpace(addrs[i]); addrs[i] == "" {
			return nil, errors.New("an address is empty; expected host:port or unix:/path, or several of " +
				"them with commas between")
		}
	}
	return addrs, nil
}

// dialFirst dials again until there is a session, see Redial.First.
func (p *Peer) dialFirst(ctx context.Context, addrs, id []string) (*Session, error) {
	r, began := p.cfg.Redial, time.Now()
	for tries := 1; ; tries++ {
		attempt, cancel := bounded(ctx, p.cfg.DefaultDialTimeout)
		sess, err, final := p.dialAny(attempt, addrs, id, r)
		cancel()
		switch {
		case err == nil:
			return sess, nil
		case final || ctx.Err() != nil:
			return nil, err
		case r.Attempts > 0 && tries >= r.Attempts:
			return nil, fmt.Errorf("%d attempts have failed: %w", tries, err)
		}
		p.log.rarely(LevelWarn, "dialling failed", "dialling %s: %v; again soon",
			slog.String("address", strings.Join(addrs, ",")), errAttr(err))
		timer := time.NewTimer(rand.N(r.bound(time.Since(began))))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-p.closing:
			timer.Stop()
			return nil, ErrPeerClosed
		}
	}
}

// dialAny tries the addresses in turn, for a session that redials unless redial is nil. It reports final if
// another attempt would fail too.
func (p *Peer) dialAny(ctx context.Context, addrs, id []string, redial *Redial) (_ *Session, all error,
	final bool) {
	final = true
	for i, addr := range addrs {
		conn, asked, err := p.connect(ctx, addr)
		if err == nil {
			from := p.dialledFrom(id, asked)
			if redial != nil {
				from.redial = newRedialer(redial, addrs, i)
			}
			var sess *Session
			if sess, err = p.newSession(ctx, conn, from); err == nil {
				return sess, nil, false
			}
		}
		if noAddress(err) {
			err = fmt.Errorf("%w; expected host:port or unix:/path", err)
		}
		all = joinDialErrors(all, addrs, i, err)
		if errors.Is(err, ErrPeerClosed) || errors.Is(err, ErrIdTaken) || marked(err) {
			return nil, all, true
		}
		final = final && (lasting(err) || noAddress(err))
		if ctx.Err() != nil {
			return nil, all, false
		}
	}
	return nil, all, final
}

// noAddress reports whether the error says that a text is not an address.
func noAddress(err error) bool {
	var address *net.AddrError
	return errors.As(err, &address)
}

// joinDialErrors adds the error of the address i to the errors of the others.
func joinDialErrors(all error, addrs []string, i int, err error) error {
	if len(addrs) > 1 {
		err = fmt.Errorf("%s: %w", addrs[i], err)
	}
	if all == nil {
		return err
	}
	return fmt.Errorf("%w; %w", all, err)
}

// connect makes a connection to one address, with TLS if the peer is configured for it. It reports asked if
// the other side has asked for a certificate; whether it accepts the certificate is not known then.
func (p *Peer) connect(ctx context.Context, addr string) (conn net.Conn, asked bool, err error) {
	pair, err := p.loadTLS()
	if err != nil {
		return nil, false, err
	}
	if p.draining() {
		return nil, false, ErrPeerClosed
	}
	network, address := splitAddr(addr)
	if conn, err = p.dialConn(ctx, network, address); err != nil {
		return nil, false, err
	}
	if conn == nil {
		return nil, false, errors.New("PeerConfig.DialContext has returned neither a connection nor an error")
	}
	p.tune(conn)
	if pair.client != nil {
		if conn, asked, err = tlsconf.Client(ctx, conn, pair.client, address); err != nil {
			return nil, false, tlsError(err)
		}
	}
	return conn, asked, nil
}
