package tp

import (
	"context"
	"crypto/tls"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/teleport/internal/keepalive"
	"github.com/henrylee2cn/teleport/internal/outbox"
	"github.com/henrylee2cn/teleport/internal/places"
	"github.com/henrylee2cn/teleport/internal/role"
	"github.com/henrylee2cn/teleport/internal/tlsconf"
	"github.com/henrylee2cn/teleport/internal/workers"
	"github.com/henrylee2cn/teleport/packet"
)

// Peer is one end of any number of connections: a server, a client or both.
// Make it with [NewPeer]. All methods are safe for concurrent use.
type Peer struct {
	// PullRouter and PushRouter lead to the handlers of what the other sides
	// send. Fill them before the first connection, or at any time.
	PullRouter *PullRouter
	PushRouter *PushRouter

	cfg    PeerConfig
	limits packet.Limits // of packets; each connection adds its budget
	// freeLimits are the limits of packets that are too small to be counted against a budget.
	freeLimits packet.Limits
	// The memory of all sessions: for packets that are received, and for output that waits.
	inPool, outPool *packet.Pool
	chain           *pluginChain
	sessions        sessions
	watch           role.Watch
	workers         workers.Pool
	load            loadMeter
	keyed           sync.Map // of *order: its *workers.KeyLanes
	groups          sync.Map // by name: a weak pointer to the *Group
	heldGroups      sync.Map // of those that must stay, by what holds them
	// The pushes of groups that wait for slow sessions.
	keptOnce   sync.Once
	keptBudget packet.Budget
	keptBoxes  outbox.Set
	keeper     keepalive.Keeper
	handshakes places.Places
	acceptors  atomic.Int64 // goroutines that accept connections
	log        lines
	packetLog  packetLog
	noCredit   bool // tests set this: the peer does not know credit, as peers of earlier versions
	// dialConn is PeerConfig.DialContext, or that of a net.Dialer.
	dialConn func(ctx context.Context, network, address string) (net.Conn, error)

	made time.Time // by NewPeer; package tptest tells by it whether that was in a bubble

	// loadTLS reads the files once; both results are nil without TLS.
	loadTLS func() (*tlsPair, error)

	mu        sync.Mutex // guards the fields below
	state     peerState
	listeners map[net.Listener]struct{}
	// drain is state != peerServing and over is state == peerClosed. They are read without mu.
	drain, over atomic.Bool
	// closing is closed when no new connections are wanted any more, closed when
	// Close or Shutdown is through.
	closing, closed chan struct{}
	// ending is set when the PreShutdown hooks begin; told is closed when they have ended, or have had
	// their time.
	ending bool
	told   chan struct{}
	// abandoned is why a Shutdown was cut short.
	abandoned error
	// quiet is signalled, while the peer drains, when something may have ended.
	quiet chan struct{}
}

// peerState only ever goes up.
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
		cfg:      cfg.withDefaults(),
		chain:    new(pluginChain).with(place{caller: "NewPeer", peer: true}, plugins),
		dialConn: cfg.DialContext,
		made:     time.Now(),
		closing:  make(chan struct{}),
		closed:   make(chan struct{}),
		told:     make(chan struct{}),
		quiet:    make(chan struct{}, 1),
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
	p.packetLog.init(&p.cfg, &p.log)
	p.loadTLS = sync.OnceValues(func() (*tlsPair, error) {
		server, client, err := tlsconf.Both(p.cfg.TlsCertFile, p.cfg.TlsKeyFile, p.cfg.TLSConfig)
		return &tlsPair{server, client}, err
	})
	p.PullRouter = &PullRouter{newGroup(p.chain, true)}
	p.PushRouter = &PushRouter{newGroup(p.chain, false)}
	return p
}

// bounded is context.WithTimeout, except that a negative d is no bound.
func bounded(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d < 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}

// draining reports whether Shutdown or Close has begun.
func (p *Peer) draining() bool { return p.drain.Load() }

// refusesPulls reports whether this side may start no pull any more: the peer drains and no handler runs. A
// handler that runs may need pulls.
func (p *Peer) refusesPulls() bool {
	if !p.draining() {
		return false
	}
	handlers, _ := p.sessions.busy()
	return handlers == 0
}

// activity tells a Shutdown under way to look again.
func (p *Peer) activity() {
	if !p.draining() {
		return
	}
	select {
	case p.quiet <- struct{}{}:
	default:
	}
}

func (p *Peer) allListeners() []net.Listener {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.listeners))
}

// addListeners reports whether the peer takes any more.
func (p *Peer) addListeners(lns []net.Listener) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != peerServing || p.ending {
		return false
	}
	if p.listeners == nil {
		p.listeners = make(map[net.Listener]struct{})
	}
	for _, ln := range lns {
		p.listeners[ln] = struct{}{}
	}
	return true
}

func (p *Peer) removeListener(ln net.Listener) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.listeners, ln)
}
