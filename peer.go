package tp

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/teleport/internal/keepalive"
	"github.com/henrylee2cn/teleport/internal/places"
	"github.com/henrylee2cn/teleport/internal/rarely"
	"github.com/henrylee2cn/teleport/internal/role"
	"github.com/henrylee2cn/teleport/internal/tlsconf"
	"github.com/henrylee2cn/teleport/internal/workers"
	"github.com/henrylee2cn/teleport/packet"
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
	limits packet.Limits // of packets; each connection adds its budget
	// freeLimits are those of packets that are too small to be counted.
	freeLimits packet.Limits
	// The memory of all sessions: for what is received, and what waits to be written.
	inPool, outPool *packet.Pool
	chain           *pluginChain
	packetLevel     slog.Level // at which packets are logged
	sessions        sessions
	watch           role.Watch
	workers         workers.Pool
	keeper          keepalive.Keeper
	handshakes      places.Places
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
	p.keeper.Init(p.cfg.KeepAlive, p.sessions.waiting)
	p.limits = p.cfg.limits()
	p.freeLimits = p.limits
	p.freeLimits.Decoded = -1
	p.inPool, p.outPool = p.cfg.pools()
	p.sessions.most = p.cfg.MaxSessions
	p.handshakes.Init(p.cfg.MaxHandshakes, p.cfg.MaxHandshakesPerAddr, ErrPeerClosed)
	p.workers.Init(p.cfg.MaxHandlers, p.cfg.MaxSessionHandlers, p.cfg.MaxSessionInput)
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

// bounded is context.WithTimeout with negative values for no bound.
func bounded(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d < 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}

// GetSession returns the live session with the id.
func (p *Peer) GetSession(id string) (*Session, bool) {
	if s := p.sessions.get(id); s != nil && s.isOpen() {
		return s, true
	}
	return nil, false
}

// RangeSession calls fn for the sessions that were live when it was called,
// until fn returns false.
func (p *Peer) RangeSession(fn func(sess *Session) bool) {
	for _, s := range p.sessions.all() {
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

// Close ends the peer at once: listeners and sessions are closed, pulls in
// flight complete with StatusConnClosed, no handler is waited for, and pushes that
// wait for one are dropped. It may be called more than once and from anywhere.
func (p *Peer) Close() error {
	err := p.stopAccepting()
	p.setState(peerClosed)
	p.handshakes.Close()
	sessions := p.sessions.close()
	errs := make(chan error, len(sessions))
	for _, s := range sessions { // each may take a second
		go func() { errs <- s.Close() }()
	}
	for range sessions {
		if e := <-errs; e != nil && err == nil {
			err = e
		}
	}
	for _, cn := range p.sessions.lingering() {
		cn.abandon()
	}
	p.mu.Lock()
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	p.mu.Unlock()
	p.workers.Close()
	p.keeper.Stop()
	p.unregister()
	return err
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
