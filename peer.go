package tp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/teleport/internal/rarely"
	"github.com/henrylee2cn/teleport/internal/role"
	"github.com/henrylee2cn/teleport/internal/sockopt"
	"github.com/henrylee2cn/teleport/internal/tlsconf"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// ErrPeerClosed is what errors.Is finds when a peer that is closed, or shutting
// down, is asked for a new connection.
var ErrPeerClosed = errors.New("tp: the peer is closed")

// Peer is one end of any number of connections: a server, a client or both.
// Make it with [NewPeer]. All methods are safe for concurrent use.
type Peer struct {
	// PullRouter and PushRouter lead to the handlers of what the other sides
	// send. Fill them before the first connection, or at any time.
	PullRouter *PullRouter
	PushRouter *PushRouter

	cfg    PeerConfig
	limits packet.Limits // of packets; each link adds its budget
	// freeLimits are those of packets that are too small to be counted.
	freeLimits packet.Limits
	// The memory of all sessions: for what is received, and what waits to be written.
	inPool, outPool *packet.Pool
	chain           *pluginChain
	packetLevel     slog.Level // at which packets are logged
	hub             hub
	watch           role.Watch
	workers         workers
	keeper          keeper
	handshakes      handshakes
	acceptors       atomic.Int64 // goroutines that accept connections
	lines           rarely.Limiter[lineKind]
	// dialConn makes connections.
	dialConn func(ctx context.Context, network, address string) (net.Conn, error)

	// loadTLS reads the files once; both results are nil without TLS.
	loadTLS func() (*tlsPair, error)

	mu        sync.Mutex // guards the fields below
	state     peerState
	listeners map[net.Listener]struct{}
	// drain is state != peerServing and over is state == peerClosed, to be read
	// without mu.
	drain, over atomic.Bool
	// closing is closed when no new connections are wanted any more, closed when
	// Close or Shutdown is through.
	closing, closed chan struct{}
	// abandoned is why a Shutdown was cut short.
	abandoned error
	// quiet is signalled, while the peer drains, when something may have ended.
	quiet chan struct{}
}

// peerState never goes back.
type peerState uint8

const (
	peerServing peerState = iota
	peerDraining
	peerClosed
)

type tlsPair struct{ server, client *tls.Config }

// NewPeer makes a peer; nil stands for the zero PeerConfig, which is copied. It
// panics with a sentence that names the field if the configuration is wrong, and
// if two plugins have one name. TLS files are read at the first Listen, Serve or
// Dial, which return the error.
func NewPeer(cfg *PeerConfig, plugins ...Plugin) *Peer {
	if cfg == nil {
		cfg = new(PeerConfig)
	}
	p := &Peer{
		cfg:         cfg.withDefaults(),
		chain:       new(pluginChain).with(place{caller: "NewPeer", peer: true}, plugins),
		packetLevel: LevelDebug,
		dialConn:    cfg.DialContext,
		closing:     make(chan struct{}),
		closed:      make(chan struct{}),
		quiet:       make(chan struct{}, 1),
	}
	if p.dialConn == nil {
		p.dialConn = new(net.Dialer).DialContext
	}
	p.cfg.check()
	p.watch.Init(p.closed)
	p.limits = p.cfg.limits()
	p.freeLimits = p.limits
	p.freeLimits.Decoded = -1
	p.inPool, p.outPool = p.cfg.pools()
	p.hub.most = p.cfg.MaxSessions
	p.handshakes.most, p.handshakes.mostOfOne = p.cfg.MaxHandshakes, p.cfg.MaxHandshakesPerAddr
	p.workers.most, p.workers.mostOfOne = p.cfg.MaxHandlers, p.cfg.MaxSessionHandlers
	p.workers.mostWaiting = p.cfg.MaxSessionInput
	if p.cfg.PrintBody {
		p.packetLevel = LevelInfo
	}
	p.loadTLS = sync.OnceValues(func() (*tlsPair, error) {
		server, client, err := tlsconf.Both(p.cfg.TlsCertFile, p.cfg.TlsKeyFile, p.cfg.TLSConfig)
		return &tlsPair{server, client}, err
	})
	p.PullRouter = &PullRouter{newGroup(p.chain)}
	p.PushRouter = &PushRouter{newGroup(p.chain)}
	return p
}

// Listen serves all of PeerConfig.ListenAddrs until Close or Shutdown is
// through, and then returns nil. Any other end is an error, which is for the caller to log.
// If one address cannot be served none is.
func (p *Peer) Listen() error {
	if len(p.cfg.ListenAddrs) == 0 {
		return errors.New("tp: listen: PeerConfig.ListenAddrs is empty; expected addresses such as 127.0.0.1:9090, or use Serve")
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
		ln, err := newListener(addr, p.cfg.UnixMode)
		if err != nil {
			closeAll()
			return err
		}
		lns = append(lns, ln)
	}
	errs := make(chan error, len(lns))
	for _, ln := range lns {
		logf(LevelInfo, "listening", "listening on %s", slog.Any("address", ln.Addr()))
		go func() {
			err := p.Serve(ln)
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
	defer func() { _ = ln.Close() }()
	cfg, err := p.serverTLS()
	if err != nil {
		return err
	}
	p.acceptors.Add(1)
	err = ErrPeerClosed
	if p.addListener(ln) {
		p.register()
		err = p.acceptFrom(ln, cfg)
		p.removeListener(ln)
	}
	p.acceptors.Add(-1)
	p.activity()
	if err == errNoMore {
		<-p.closed
		waitForExit()
		err = nil
	}
	return err
}

// errNoMore is the end of acceptFrom when the peer wants no more connections.
var errNoMore = errors.New("the peer accepts no more connections")

// acceptFrom starts the handshakes of what it accepts.
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
		p.rarely(LevelWarn, "accepting failed", "accept on %s: %v; again in %v", slog.Any("address", ln.Addr()), errAttr(err), slog.Duration("again_in", delay))
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
	h, gone, err := p.handshakes.enter(conn, p.patience(cfg != nil))
	for _, d := range gone {
		d.end()
	}
	if err != nil {
		p.turnAway(conn, err)
		return
	}
	go p.accept(h, cfg)
	if p.handshakes.crowded(h) {
		runtime.Gosched() // others may be able to go on, and leave
	}
}

// turnAway closes a connection that was accepted and is not wanted.
func (p *Peer) turnAway(conn net.Conn, why error) {
	addr := conn.RemoteAddr()
	go conn.Close() // which may take a while
	p.rarely(LevelWarn, "connection refused", "connection from %s refused: %v", slog.Any("remote", addr), errAttr(why))
}

// accept takes one connection through its handshakes, off the accept loop.
func (p *Peer) accept(h *handshake, cfg *tls.Config) {
	if conn, err := p.shake(h, cfg); err != nil {
		var hook *hookError
		if cause := context.Cause(h.ctx); cause != nil && !errors.As(err, &hook) {
			err = cause
		}
		p.turnAway(conn, err)
	}
	h.done()
	p.activity()
}

// shake makes a session of the connection, or returns what is to be closed.
func (p *Peer) shake(h *handshake, cfg *tls.Config) (net.Conn, error) {
	conn := h.conn
	if p.hub.full() { // before it costs anything
		return conn, errTooManySessions
	}
	p.tune(conn)
	if cfg != nil {
		tc := tls.Server(conn, cfg)
		ctx, cancel := bounded(h.ctx, p.cfg.HandshakeTimeout)
		defer cancel()
		if err := tc.HandshakeContext(ctx); err != nil {
			return conn, refuseTLS(err)
		}
		conn = tc
	}
	_, err := p.newSession(h.ctx, conn, origin{hooks: p.chain.postAccept, stranger: true, handshake: h})
	return conn, err
}

// tune sets the options of a connection of the kernel's, as far as it has them.
func (p *Peer) tune(conn net.Conn) {
	tc, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	keep := net.KeepAliveConfig{Enable: p.cfg.KeepAlive > 0, Idle: p.cfg.KeepAlive, Interval: p.cfg.KeepAlive / 3, Count: 3}
	_ = tc.SetKeepAliveConfig(keep)
	if d := p.cfg.UserTimeout; d > 0 {
		sockopt.SetUserTimeout(tc, d)
	}
}

// bounded is context.WithTimeout with negative values for no bound.
func bounded(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d < 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}

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
// either kind. Once the session has been returned ctx means nothing to it.
func (p *Peer) DialContext(ctx context.Context, addr string, id ...string) (*Session, error) {
	if addr == "" {
		return nil, errors.New("tp: dial: the address is empty; expected host:port or unix:/path, or several of them with commas between")
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
// hooks are bounded by ctx and by PeerConfig.HookTimeout; ctx means nothing to the session.
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

// dialledFrom is the origin of a connection that this side has made.
func (p *Peer) dialledFrom(id []string, asked bool) origin {
	return origin{hooks: p.chain.postDial, id: id, confirms: asked || len(p.chain.postDial) > 0, connect: p.chain.postConnect}
}

func (p *Peer) dial(ctx context.Context, addr string, id []string) (*Session, error) {
	addrs := strings.Split(addr, ",")
	for i := range addrs {
		if addrs[i] = strings.TrimSpace(addrs[i]); addrs[i] == "" {
			return nil, errors.New("an address is empty; expected host:port or unix:/path, or several of them with commas between")
		}
	}
	if _, err := p.loadTLS(); err != nil {
		return nil, err
	}
	if r := p.cfg.Redial; r != nil && r.First {
		return p.dialFirst(ctx, addrs, id)
	}
	sess, err, _ := p.dialAny(ctx, addrs, id)
	return sess, err
}

// dialFirst dials again until there is a session, see Redial.First.
func (p *Peer) dialFirst(ctx context.Context, addrs, id []string) (*Session, error) {
	r, began := p.cfg.Redial, time.Now()
	for tries := 1; ; tries++ {
		attempt, cancel := bounded(ctx, p.cfg.DefaultDialTimeout)
		sess, err, final := p.dialAny(attempt, addrs, id)
		cancel()
		switch {
		case err == nil:
			return sess, nil
		case final || ctx.Err() != nil:
			return nil, err
		case r.Attempts > 0 && tries >= r.Attempts:
			return nil, fmt.Errorf("%d attempts have failed: %w", tries, err)
		}
		p.rarely(LevelWarn, "dialling failed", "dialling %s: %v; again soon", slog.String("address", strings.Join(addrs, ",")), errAttr(err))
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

// dialAny tries the addresses in turn. It reports whether another attempt would fail too.
func (p *Peer) dialAny(ctx context.Context, addrs, id []string) (_ *Session, all error, final bool) {
	final = true
	for i, addr := range addrs {
		conn, asked, err := p.connect(ctx, addr)
		if err == nil {
			from := p.dialledFrom(id, asked)
			if p.cfg.Redial != nil {
				from.redial = newRedialer(p.cfg.Redial, addrs, i)
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

// noAddress reports whether an error is that of an address that is none.
func noAddress(err error) bool {
	var address *net.AddrError
	return errors.As(err, &address)
}

// joinDialErrors adds the error of an address to those of others.
func joinDialErrors(all error, addrs []string, i int, err error) error {
	if len(addrs) > 1 {
		err = fmt.Errorf("%s: %w", addrs[i], err)
	}
	if all == nil {
		return err
	}
	return fmt.Errorf("%w; %w", all, err)
}

// connect makes a connection to one address. It reports whether the other side has asked
// for a certificate, which it has not judged then.
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

// tlsError says what has come instead of TLS, as far as that can be told.
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

// alertNoTLS is a record of TLS that says that a handshake has failed, as in RFC 8446: who
// has sent something else, and reads a packet, sees by it that TLS is spoken here.
var alertNoTLS = []byte{21, 3, 1, 0, 2, 2, 40}

// refuseTLS is tlsError on the side that has accepted the connection, which it tells.
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

// origin is where a connection comes from.
type origin struct {
	hooks     hooks[ForeSession]
	id        []string        // the session's, if it is given
	handshake *handshake      // if a listener of the peer's has accepted it
	stranger  bool            // the other side is one, until the hooks have passed
	confirms  bool            // the other side is asked whether it wants the connection
	redial    *redialer       // if the session outlives it
	connect   hooks[*Session] // to be run when the connection is in use
}

// newSession runs the hooks and starts the session. One that was accepted while the
// peer drains is told at once to go elsewhere.
func (p *Peer) newSession(ctx context.Context, conn net.Conn, from origin) (*Session, error) {
	s := &Session{peer: p, redial: from.redial}
	if s.redial != nil {
		s.redial.sess = s
	}
	l := &s.first
	l.init(s, conn)
	s.link.Store(l)
	id, given := conn.RemoteAddr().String(), len(from.id) > 0
	if given {
		id = from.id[0]
	}
	if err := p.hub.add(s, id, given); err != nil {
		_ = conn.Close()
		return nil, err
	}
	p.register()
	if p.draining() && from.handshake == nil {
		_ = s.shut(ErrPeerClosed)
		return nil, ErrPeerClosed
	}
	if from.stranger {
		l.limitReading(p.cfg.handshakeLimits())
	}
	first, err := l.greet(ctx, &from)
	if err == nil && from.handshake != nil && !from.handshake.pass() {
		err = context.Cause(from.handshake.ctx)
	}
	if err == nil {
		err = p.hub.open(s)
	}
	if err == nil && from.stranger {
		l.limitReading(p.limits)
	}
	if err == nil && !s.open() {
		err = errClosedInHandshake
	}
	if err != nil {
		l.linger()
		_ = s.shut(err)
		return nil, err
	}
	if err := s.connected(ctx, first, from.connect); err != nil {
		_ = s.shut(err)
		return nil, err
	}
	return s, nil
}

// connected starts the session, and runs the hooks of its first connection.
func (s *Session) connected(ctx context.Context, first *reader, hs hooks[*Session]) error {
	if len(hs) == 0 {
		s.first.start(first)
		return nil
	}
	over := make(chan error)
	defer close(over)
	if s.redial != nil {
		s.redial.hooks = over
	}
	s.first.start(first)
	ctx, cancel := bounded(ctx, s.peer.cfg.HookTimeout)
	defer cancel()
	select {
	case err := <-hs.start(s):
		return err
	case <-ctx.Done():
		return fmt.Errorf("PostConnect took too long: %w", ctx.Err())
	case <-s.Done():
		return s.Err()
	}
}

// GetSession returns the live session with the id.
func (p *Peer) GetSession(id string) (*Session, bool) {
	if s := p.hub.get(id); s != nil && s.isOpen() {
		return s, true
	}
	return nil, false
}

// RangeSession calls fn for the sessions that were live when it was called,
// until fn returns false.
func (p *Peer) RangeSession(fn func(sess *Session) bool) {
	for _, s := range p.hub.all() {
		if s.isOpen() && !fn(s) {
			return
		}
	}
}

// CountSession returns how many sessions are live.
func (p *Peer) CountSession() int {
	n := 0
	p.RangeSession(func(*Session) bool { n++; return true })
	return n
}

// Addrs returns the addresses that the peer listens on now, in no set order, for
// ports that the system has chosen.
func (p *Peer) Addrs() []net.Addr {
	var addrs []net.Addr
	for _, ln := range p.allListeners() {
		addrs = append(addrs, ln.Addr())
	}
	return addrs
}

func (p *Peer) allListeners() []net.Listener {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.listeners))
}

// Close ends the peer at once: listeners and sessions are closed, pulls in
// flight complete with StatusConnClosed, no handler is waited for, and pushes that
// wait for one are dropped. It may be called more than once and from anywhere.
func (p *Peer) Close() error {
	err := p.stopAccepting()
	p.setState(peerClosed)
	p.handshakes.close()
	sessions := p.hub.close()
	errs := make(chan error, len(sessions))
	for _, s := range sessions { // each may take a second
		go func() { errs <- s.Close() }()
	}
	for range sessions {
		if e := <-errs; e != nil && err == nil {
			err = e
		}
	}
	for _, l := range p.hub.lingering() {
		l.abandon()
	}
	p.mu.Lock()
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	p.mu.Unlock()
	p.workers.close()
	p.keeper.stop()
	p.unregister()
	return err
}

func (p *Peer) addListener(ln net.Listener) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != peerServing {
		return false
	}
	if p.listeners == nil {
		p.listeners = make(map[net.Listener]struct{})
	}
	p.listeners[ln] = struct{}{}
	return true
}

func (p *Peer) removeListener(ln net.Listener) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.listeners, ln)
}

// stopAccepting closes the listeners.
func (p *Peer) stopAccepting() error {
	p.setState(peerDraining)
	p.mu.Lock()
	select {
	case <-p.closing:
	default:
		close(p.closing)
	}
	p.mu.Unlock()
	var err error
	for _, ln := range p.allListeners() { // no others are added any more
		if e := ln.Close(); e != nil && !errors.Is(e, net.ErrClosed) && !errors.Is(e, os.ErrClosed) && err == nil {
			err = e
		}
	}
	return err
}

func (p *Peer) setState(state peerState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if state > p.state {
		p.state = state
		p.drain.Store(true)
		p.over.Store(state == peerClosed)
	}
}
