package tp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"time"

	"github.com/henrylee2cn/teleport/internal/handover"
	"github.com/henrylee2cn/teleport/internal/places"
	"github.com/henrylee2cn/teleport/internal/sockopt"
	"github.com/henrylee2cn/teleport/internal/tlsconf"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// Listen serves all of PeerConfig.ListenAddrs until Close or Shutdown is
// through, and then returns nil. Any other end is an error, which is for the caller to log.
// If one address cannot be served none is.
func (p *Peer) Listen() error {
	if len(p.cfg.ListenAddrs) == 0 {
		return errors.New("tp: listen: PeerConfig.ListenAddrs is empty; expected addresses such as " +
			"127.0.0.1:9090, or use Serve")
	}
	if _, err := p.serverTLS(); err != nil {
		return err
	}
	var lns []net.Listener
	closeAll := func() {
		for _, ln := range lns {
			_ = ln.Close()
		}
	}
	for _, addr := range p.cfg.ListenAddrs {
		network, address := splitAddr(addr)
		ln, err := handover.Listen(network, address, addr, p.cfg.UnixMode)
		if err != nil {
			closeAll()
			return err
		}
		lns = append(lns, ln)
	}
	if err := p.listening(lns...); err != nil {
		closeAll()
		return err
	}
	errs := make(chan error, len(lns))
	for _, ln := range lns {
		logf(LevelInfo, "listening", "listening on %s", slog.Any("address", ln.Addr()))
		go func() {
			err := p.serve(ln)
			if err != nil {
				closeAll()
			}
			errs <- err
		}()
	}
	var first error
	for range lns {
		if err := <-errs; first == nil {
			first = err
		}
	}
	return first
}

// Serve accepts connections from ln, over TLS if the peer is configured for it,
// until Close or Shutdown is through, and then returns nil. It closes ln.
func (p *Peer) Serve(ln net.Listener) error {
	if _, err := p.serverTLS(); err != nil {
		_ = ln.Close()
		return err
	}
	if err := p.listening(ln); err != nil {
		_ = ln.Close()
		return err
	}
	return p.serve(ln)
}

// listening makes the listeners the peer's, and runs the PostListen hooks. After an error they are not the
// peer's.
func (p *Peer) listening(lns ...net.Listener) error {
	p.acceptors.Add(int64(len(lns)))
	err := ErrPeerClosed
	if p.addListeners(lns) {
		p.register()
		err = p.postListen(lns)
	}
	if err != nil {
		for _, ln := range lns {
			p.noListener(ln)
		}
	}
	return err
}

// postListen runs the PostListen hooks, for HookTimeout at most. It leaves off when the peer closes.
func (p *Peer) postListen(lns []net.Listener) error {
	hs := p.chain.postListen
	if len(hs) == 0 {
		return nil
	}
	for _, ln := range lns {
		ctx, cancel := bounded(context.Background(), p.cfg.HookTimeout)
		var err error
		select {
		case err = <-hs.start(&listenCtx{ctx, p, ln.Addr()}):
		case <-ctx.Done():
			err = fmt.Errorf("tp: listen: PostListen took longer than %v", p.cfg.HookTimeout)
		case <-p.closing:
		}
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// listenCtx is a ListenCtx.
type listenCtx struct {
	ctx  context.Context
	peer *Peer
	addr net.Addr
}

func (l *listenCtx) Peer() *Peer              { return l.peer }
func (l *listenCtx) Addr() net.Addr           { return l.addr }
func (l *listenCtx) Context() context.Context { return l.ctx }
func (l *listenCtx) lines() *lines            { return &l.peer.log }

// noListener is the end of a listener.
func (p *Peer) noListener(ln net.Listener) {
	p.removeListener(ln)
	p.acceptors.Add(-1)
	p.activity()
}

// serve is Serve for a listener that is the peer's.
func (p *Peer) serve(ln net.Listener) error {
	defer func() { _ = ln.Close() }()
	cfg, err := p.serverTLS()
	if err == nil {
		err = p.acceptFrom(ln, cfg)
	}
	p.noListener(ln)
	if err == errNoMore {
		<-p.closed
		waitForExit()
		err = nil
	}
	return err
}

// errNoMore is what acceptFrom returns when the peer wants no more connections.
var errNoMore = errors.New("the peer accepts no more connections")

// acceptFrom accepts connections and starts their handshakes.
func (p *Peer) acceptFrom(ln net.Listener, cfg *tls.Config) error {
	var delay time.Duration
	for {
		conn, err := ln.Accept()
		if err == nil {
			delay = 0
			p.admit(conn, cfg)
			continue
		}
		select {
		case <-p.closing:
			return errNoMore
		default:
		}
		var temp interface{ Temporary() bool }
		if !errors.As(err, &temp) || !temp.Temporary() {
			return fmt.Errorf("tp: accept: %w", err)
		}
		delay = min(max(2*delay, 5*time.Millisecond), time.Second)
		p.log.rarely(LevelWarn, "accepting failed", "accept on %s: %v; again in %v",
			slog.Any("address", ln.Addr()), errAttr(err), slog.Duration("again_in", delay))
		select {
		case <-time.After(delay):
		case <-p.closing:
		}
	}
}

// serverTLS returns what accepted connections speak TLS with, nil for none.
func (p *Peer) serverTLS() (*tls.Config, error) {
	pair, err := p.loadTLS()
	if err != nil {
		return nil, err
	}
	return pair.server, tlsconf.CanServe(pair.server)
}

// admit begins the handshakes of a connection that was accepted. It does not wait.
func (p *Peer) admit(conn net.Conn, cfg *tls.Config) {
	h, gone, err := p.handshakes.Enter(conn, p.patience(cfg != nil))
	for _, d := range gone {
		d.End()
	}
	if err != nil {
		p.turnAway(conn, err)
		return
	}
	go p.accept(h, cfg)
	if p.handshakes.Crowded(h) {
		runtime.Gosched() // the goroutines of other handshakes may be able to end, which frees places
	}
}

// turnAway closes a connection that was accepted and does not become a session.
func (p *Peer) turnAway(conn net.Conn, why error) {
	addr := conn.RemoteAddr()
	go conn.Close() // Close may take a while
	p.log.rarely(LevelWarn, "connection refused", "connection from %s refused: %v",
		slog.Any("remote", addr), errAttr(why))
}

// accept takes one connection through its handshakes, off the accept loop.
func (p *Peer) accept(h *places.Place, cfg *tls.Config) {
	if conn, err := p.shake(h, cfg); err != nil {
		var hook *hookError
		if cause := context.Cause(h.Ctx); cause != nil && !errors.As(err, &hook) {
			err = cause
		}
		p.turnAway(conn, err)
	}
	h.Done()
	p.activity()
}

// shake runs TLS and the handshake, and makes a session of the connection. After an error the caller closes
// the connection that is returned.
func (p *Peer) shake(h *places.Place, cfg *tls.Config) (net.Conn, error) {
	conn := h.Conn
	if p.sessions.full() { // before it costs anything
		return conn, errTooManySessions
	}
	p.tune(conn)
	if cfg != nil {
		tc := tls.Server(conn, cfg)
		ctx, cancel := bounded(h.Ctx, p.cfg.HandshakeTimeout)
		defer cancel()
		if err := tc.HandshakeContext(ctx); err != nil {
			return conn, refuseTLS(err)
		}
		conn = tc
	}
	_, err := p.newSession(h.Ctx, conn, origin{hooks: p.chain.postAccept, stranger: true, place: h})
	return conn, err
}

// tune sets the options of a TCP connection; others have none.
func (p *Peer) tune(conn net.Conn) {
	tc, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	keep := net.KeepAliveConfig{Enable: p.cfg.KeepAlive > 0, Idle: p.cfg.KeepAlive,
		Interval: p.cfg.KeepAlive / 3, Count: 3}
	_ = tc.SetKeepAliveConfig(keep)
	if d := p.cfg.UserTimeout; d > 0 {
		sockopt.SetUserTimeout(tc, d)
	}
}

// tlsError is the error of a TLS handshake. It says what the other side speaks instead of TLS if that can be
// told.
func tlsError(err error) error {
	err = fmt.Errorf("TLS handshake: %w", err)
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &record):
		if guess := packet.LooksLike(record.RecordHeader[:]); guess != "" {
			return fmt.Errorf("%w: %s", err, guess)
		}
	case errors.Is(err, io.EOF) || socket.Gone(err):
		return fmt.Errorf("%w: the other side has ended the connection; perhaps it speaks no TLS", err)
	}
	return err
}

// alertNoTLS is a TLS record (RFC 8446) with the alert that a handshake has failed. A peer without TLS that
// expects a packet recognises the record, and can say that TLS is spoken here.
var alertNoTLS = []byte{21, 3, 1, 0, 2, 2, 40}

// refuseTLS is tlsError for the side that has accepted the connection. It also sends alertNoTLS if what has
// come was not TLS.
func refuseTLS(err error) error {
	var record tls.RecordHeaderError
	if errors.As(err, &record) && record.Conn != nil {
		_ = record.Conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = record.Conn.Write(alertNoTLS)
		if half, ok := record.Conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	}
	return tlsError(err)
}

// ServeConn makes a session of a connection that was accepted elsewhere, as it
// is, without TLS of its own. It runs the PostAccept hooks and returns the
// session, which is then read from; an error closes conn. The id is as for
// [Peer.Dial].
func (p *Peer) ServeConn(conn net.Conn, id ...string) (*Session, error) {
	if conn == nil {
		return nil, errNoConn
	}
	return p.newSession(context.Background(), conn, origin{hooks: p.chain.postAccept, id: id, stranger: true})
}

var errNoConn = errors.New("tp: the connection is nil")

// Addrs returns the addresses that the peer listens on now, in no set order, for
// ports that the system has chosen.
func (p *Peer) Addrs() []net.Addr {
	var addrs []net.Addr
	for _, ln := range p.allListeners() {
		addrs = append(addrs, ln.Addr())
	}
	return addrs
}
