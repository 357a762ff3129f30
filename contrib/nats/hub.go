// Package nats spreads the sessions of one service over many servers: a push to a session's id, to an
// identity or to a group reaches it wherever it is connected, and so does a pull. What travels between the
// servers goes over NATS.
//
//	peer := tp.NewPeer(cfg, auto)
//	hub, err := nats.New(peer, auto, nats.URL("nats://10.0.0.1:4222"))
//
//	hub.Session(id).Pull(ctx, "/ask", question, &answer)
//	hub.Identity("ada").Push(ctx, "/note", text)
//	hub.Group("room").Push("/said", text)
//
// Without [URL] and [Conn] a hub knows the sessions of its own peer, and everything works in the same way
// in one process: moving from one machine to many is that option.
//
// # What is told when something fails
//
// An error is a tp.Xerror with the status, the details and the answers to tp.NotRun and tp.Retryable that a
// call to a session of this server has. [ErrNotConnected] says that no server has the session, [ErrAway]
// that the broker is away: then calls to sessions of this server, and pushes to the members on it, go on,
// and the hub connects again by itself.
//
// # What hubs trust
//
// Whoever may publish on the subjects of a service, "tp.NAME.>", may push to its sessions and pull from
// them, and read what its hubs send. That is what accounts and permissions of NATS are for.
package nats

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	tp "github.com/henrylee2cn/teleport"
)

const (
	// beatEvery is how often a hub says that it is there, and how often it says so of pulls that take long.
	// Who has not been heard for missedBeats times that is taken for gone.
	beatEvery   = time.Second
	missedBeats = 5
	// flushTime bounds the wait for the broker to have taken a subscription.
	flushTime = time.Second
	// requestsWait is how many messages to sessions may wait for the goroutine that takes them apart.
	requestsWait = 16 << 10
	maxCalls     = 16 << 10
)

// Hub is one server's part. [New] makes it. All methods are safe for concurrent use.
type Hub struct {
	peer  *tp.Peer
	o     options
	id    string // in subjects: letters and digits
	nc    *nats.Conn
	js    jetstream.JetStream
	subj  subjects
	lines lines

	all       *tp.Group // of the sessions that the hub knows; it tells their ends
	unwatch   func()
	requests  chan *nats.Msg // to sessions; nil is the last, for which drained is closed
	drained   chan struct{}
	leaves    atomic.Bool // Close has begun
	waiting   waiting
	calls     calls
	histories histories
	out       chan outgoing
	up        atomic.Bool  // there is a connection to the broker
	untold    atomic.Bool  // something that the others should know has not been told
	most      atomic.Int64 // bytes that it takes in a message
	good      atomic.Int64 // when the connection that was lost last was known to be good; as back
	echoed    atomic.Int64 // when this hub last heard itself; as back
	back      atomic.Int64 // when the broker was last there again, in nanoseconds since the epoch

	ctx    context.Context // ends with the hub
	cancel context.CancelFunc
	tasks  sync.WaitGroup // every goroutine of the hub's

	mu       sync.Mutex // guards the fields below
	settled  sync.Cond  // of mu: a place has its subscription, or has none, as it should be
	places   map[nameKey]*place
	sessions map[*tp.Session][]nameKey
	others   map[string]*other
	rooms    map[string]*room
	subs     []*nats.Subscription
	checks   map[string]bool      // see checkSoon; nil while no goroutine is about them
	drains   []*nats.Subscription // of names, which may still drain
	closed   bool
}

// hubRef is set when the hub is made.
type hubRef = atomic.Pointer[Hub]

// New makes the hub of the peer. With [URL] it does not wait for the broker, which may be away: see
// [Hub.Connected], and the log. The error says that a URL or an option of the connection is wrong, or that a
// [Conn] was closed.
// [Hub.Close] ends the hub. A nil peer or option panics.
func New(peer *tp.Peer, option ...Option) (*Hub, error) {
	if peer == nil {
		panic("nats: New: the peer is nil.")
	}
	h := &Hub{
		peer: peer, id: rand.Text()[:13],
		o:        options{service: "teleport", calls: maxCalls, beat: beatEvery, ask: askTime},
		places:   make(map[nameKey]*place),
		sessions: make(map[*tp.Session][]nameKey),
		others:   make(map[string]*other),
		rooms:    make(map[string]*room),
		requests: make(chan *nats.Msg, requestsWait),
		drained:  make(chan struct{}),
		out:      make(chan outgoing, outWaits),
	}
	h.settled.L = &h.mu
	for i, o := range option {
		if o == nil {
			panic(fmt.Sprintf("nats: New: option %d of %d is nil.", i+1, len(option)))
		}
		o.apply(&h.o)
	}
	if h.o.conn != nil && h.o.url != "" {
		panic("nats: New: there are a URL and a Conn; one of them was expected.")
	}
	if h.o.name == "" {
		h.o.name = h.id
	}
	h.subj = subjectsOf(h.o.service)
	h.waiting.init()
	h.calls.init(h.o.calls)
	h.histories.init(h)
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.all = peer.Group("tp/contrib/nats sessions of " + h.id)
	h.unwatch = h.all.Watch(func(e tp.GroupEvent) {
		if !e.Joined {
			h.forget(e.Session)
		}
	})
	if err := h.connect(); err != nil {
		h.Close()
		return nil, err
	}
	if auto := h.o.auto; auto != nil {
		auto.hub.Store(h)
		peer.RangeSession(func(sess *tp.Session) bool {
			_ = h.Add(sess, auto.identities(sess)...) // an error says that the session has ended
			return true
		})
	}
	return h, nil
}

// connect makes the connection and the subscriptions of the hub, and starts its goroutines.
func (h *Hub) connect() (err error) {
	h.nc = h.o.conn
	if h.o.url != "" {
		if err = checkURLs(h.o.url); err != nil {
			return err
		}
		if h.nc, err = nats.Connect(h.o.url, append(connOptions(h.o.name), h.o.natsOpts...)...); err != nil {
			return fmt.Errorf("nats: %w", err)
		}
	}
	if h.nc == nil {
		return nil
	}
	if h.js, err = jetstream.New(h.nc); err != nil {
		return fmt.Errorf("nats: %w", err)
	}
	h.most.Store(h.nc.MaxPayload())
	status := h.nc.StatusChanged() // before IsConnected is asked: later changes are told
	if h.up.Store(h.nc.IsConnected()); !h.Connected() {
		h.logAway()
	}
	h.tasks.Go(func() { h.watchStatus(status) })
	h.tasks.Go(h.sends)
	h.tasks.Go(h.dispatch)
	h.tasks.Go(h.beats)
	for subject, f := range map[string]nats.MsgHandler{
		h.subj.hubs():              h.fromHub,
		h.subj.replies(h.id) + "*": h.waiting.reply,
	} {
		sub, err := h.nc.Subscribe(subject, f)
		if err != nil {
			return fmt.Errorf("nats: %w", err)
		}
		h.subs = append(h.subs, sub)
	}
	if h.Connected() {
		h.isBack()
		h.flush()
	}
	return nil
}

// connOptions are those of a connection of the hub's own. Nothing that could not be sent is kept to be sent
// later, as its caller has been told that it was not.
func connOptions(name string) []nats.Option {
	return []nats.Option{
		nats.Name("teleport " + name), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true),
		nats.ReconnectWait(250 * time.Millisecond), nats.ReconnectJitter(250*time.Millisecond, time.Second),
		nats.ReconnectBufSize(-1), nats.IgnoreAuthErrorAbort(), nats.Timeout(2 * time.Second),
		nats.PingInterval(2 * time.Second), nats.MaxPingsOutstanding(2), nats.FlusherTimeout(3 * time.Second),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
	}
}

// Close ends the hub: the sessions stay connected, and other servers do not reach them any more. It returns
// when all that the hub has begun has ended. Pulls and pushes of others to sessions of this server that are
// under way are given up, and those that come find the sessions connected nowhere. It may be called more than
// once.
func (h *Hub) Close() {
	h.leaves.Store(true)
	h.mu.Lock()
	was := h.closed
	h.closed = true
	subs := h.subs
	var names []*nats.Subscription
	for _, p := range h.places {
		if p.sub != nil {
			names = append(names, p.sub)
			p.sub = nil
		}
	}
	rooms := make([]*room, 0, len(h.rooms))
	for _, r := range h.rooms {
		rooms = append(rooms, r)
	}
	h.rooms = make(map[string]*room)
	h.mu.Unlock()
	if was {
		h.tasks.Wait()
		return
	}
	h.unwatch()
	for _, sess := range h.all.Members() {
		h.all.Leave(sess)
	}
	h.tell(&message{kind: kindBye})
	for _, sub := range names {
		_ = sub.Drain() // an error says that the connection is closed
	}
	for _, r := range rooms {
		r.end()
	}
	if h.Connected() { // calls that are on their way here are told that the sessions are not here
		h.flush()
		h.requests <- nil
		<-h.drained
	}
	h.cancel()
	h.waiting.fail(func() tp.Xerror {
		return unknown(tp.StatusConnClosed, ErrClosed, "the hub was closed, the outcome is unknown")
	})
	for _, sub := range subs {
		_ = sub.Unsubscribe()
	}
	if h.nc != nil && h.o.conn == nil {
		h.nc.Close()
	}
	h.tasks.Wait()
}

// Connected reports whether the hub has a connection to the broker. A hub without a broker has none.
func (h *Hub) Connected() bool { return h.up.Load() }

// Peer returns the hub's peer.
func (h *Hub) Peer() *tp.Peer { return h.peer }

// start runs f on a goroutine of the hub's, unless the hub is closed.
func (h *Hub) start(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.tasks.Go(f)
	}
}

// isClosed reports whether Close has begun.
func (h *Hub) isClosed() bool { return h.ctx.Err() != nil }

// watchStatus looks after the connection until the hub ends.
func (h *Hub) watchStatus(status chan nats.Status) {
	defer h.nc.RemoveStatusListener(status)
	for {
		select {
		case s, ok := <-status:
			switch {
			case !ok:
				return
			case s == nats.CONNECTED:
				h.up.Store(true)
				h.start(h.isBack)
			default:
				h.isAway()
			}
		case <-h.ctx.Done():
			return
		}
	}
}

// isAway ends what waits for an answer, which would not come any more.
func (h *Hub) isAway() {
	if h.up.Swap(false) && h.ctx.Err() == nil {
		h.logAway()
	}
	h.good.Store(h.echoed.Load())
	h.waiting.fail(func() tp.Xerror {
		return unknown(tp.StatusConnClosed, ErrAway,
			"the connection to the broker was lost, the outcome is unknown")
	})
}

// logAway says that there is no connection to the broker, and where it was looked for.
func (h *Hub) logAway() {
	where := "that the program has given"
	if h.o.url != "" {
		where = "at " + redacted(h.o.url)
	}
	why := h.nc.LastError()
	if why == nil {
		why = ErrAway
	}
	h.lines.warnf("there is no connection to the broker %s: %v; the hub connects again by itself", where, why)
}

// isBack tells the others of this hub again, and looks what it has missed.
func (h *Hub) isBack() {
	h.most.Store(h.nc.MaxPayload())
	h.back.Store(time.Now().UnixNano())
	h.mu.Lock()
	for _, o := range h.others {
		o.heard = time.Now()
	}
	h.mu.Unlock()
	h.endDrains(true)
	h.tellAll()
	h.checkSoon("")
}

// tellAll tells the others all that they should know of this hub.
func (h *Hub) tellAll() {
	h.untold.Store(false)
	h.hello(true)
	h.claimAll()
}

// tell sends a message to all hubs, if there is a broker. If that fails they are told all again, when the
// broker is back or by the next beat.
func (h *Hub) tell(m *message) {
	if h.nc == nil {
		return
	}
	m.from = h.id
	if h.publish(h.subj.hubs(), "", m.append(nil)) != nil {
		h.untold.Store(true)
	}
}

// beats looks after what lasts, until the hub ends.
func (h *Hub) beats() {
	tick := time.NewTicker(h.o.beat)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if h.Connected() && h.untold.Load() {
				h.tellAll()
			} else {
				h.hello(false)
			}
			h.endDrains(false)
			h.missing()
			h.saysRuns()
			h.waiting.expire(missedBeats * h.o.beat)
			h.checkDropped()
		case <-h.ctx.Done():
			return
		}
	}
}

// foreign is what becomes of a message that this hub does not understand.
func (h *Hub) foreign(m *nats.Msg, err error) {
	h.lines.warnf("a message on %s: %s", m.Subject, err)
	var v versionError
	if m.Reply != "" && errors.As(err, &v) && strings.HasPrefix(m.Reply, h.subj.prefix+"r.") {
		b := (&message{kind: kindReply, from: h.id}).append(nil)
		_ = h.publish(m.Reply, "", b) // the caller takes no reply without a packet for an answer
	}
}
