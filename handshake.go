package tp

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/goutil"

	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// A connection that was accepted takes a place until it is a session. Strangers can
// take places as fast as they can connect, and say nothing; so who comes is let in,
// and when there is no place left for it, who has waited longest goes. An honest
// client needs its place for a few round trips: it loses it only if as many others
// as there are places come within that time. One address cannot make them come,
// for it has a bound of its own.

// handshakes are the connections of a peer that were accepted and are not sessions yet.
//
// A handshake is pending until it has passed, has failed or was told to end, whichever
// comes first, and counted until whatever runs for it has ended.
type handshakes struct {
	// The most that are pending at once, in all and of one address. Negative numbers are
	// no bounds.
	most, mostOfOne int

	mu      sync.Mutex                  // guards the fields below, and every handshake's places
	pending list.List                   // of *handshake, the oldest first
	byAddr  map[netip.Prefix]*list.List // the same of each address
	leaving int                         // counted and not pending
	closed  bool
}

// handshake is one of them.
type handshake struct {
	all  *handshakes
	conn net.Conn // as it was accepted
	// ctx ends when the handshake is told to end.
	ctx    context.Context
	cancel context.CancelCauseFunc
	since  time.Time
	// patience is how long it may take; a negative value is no bound.
	patience time.Duration
	addr     netip.Prefix // zero if it has none that counts

	place, ofAddr *list.Element // in pending and in byAddr; nil if it is in neither
	passed        bool
}

// hurryFrom and hurryTo say how patience shrinks: it is whole while one in hurryFrom of
// the places is in use, and one part in hurryTo of it is left when all are.
const (
	hurryFrom = 2
	hurryTo   = 16
)

// minLeaving is the least number of handshakes that were told to end and still may be
// counted before nobody else is let in.
const minLeaving = 1 << 10

var (
	errMadeRoom = errors.New("its handshake was the one that had taken longest, and had to make room for others")
	errTooSlow  = errors.New("its handshake took too long for the number of others")
)

// enter gives a connection a place. Those that go for it are returned, and are to be
// told by [displaced.end]. An error is why nobody is let in.
func (hs *handshakes) enter(conn net.Conn, patience time.Duration) (h *handshake, gone []displaced, err error) {
	h = &handshake{all: hs, conn: conn, since: time.Now(), patience: patience, addr: addrPrefix(conn.RemoteAddr())}
	h.ctx, h.cancel = context.WithCancelCause(context.Background())
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if hs.closed {
		return nil, nil, ErrPeerClosed
	}
	if hs.most >= 0 && hs.leaving >= max(2*hs.most, minLeaving) {
		return nil, nil, fmt.Errorf("%d handshakes were told to end and go on: hooks of PostAccept that wait for something else than their connection", hs.leaving)
	}
	if patience == 0 { // nothing of it waits for the other side
		h.passed = true
		hs.leaving++
		return h, nil, nil
	}
	gone = hs.makeRoomLocked(h)
	h.place = hs.pending.PushBack(h)
	if h.addr.IsValid() {
		if hs.byAddr == nil {
			hs.byAddr = make(map[netip.Prefix]*list.List)
		}
		if hs.byAddr[h.addr] == nil {
			hs.byAddr[h.addr] = list.New()
		}
		h.ofAddr = hs.byAddr[h.addr].PushBack(h)
	}
	return h, gone, nil
}

// displaced is a handshake that is to end, and why.
type displaced struct {
	*handshake
	why error
}

// makeRoomLocked takes places away until there is one for h.
func (hs *handshakes) makeRoomLocked(h *handshake) (gone []displaced) {
	for first := hs.pending.Front(); first != nil; first = hs.pending.Front() {
		old := first.Value.(*handshake)
		if !hs.lateLocked(old, h.since) {
			break
		}
		gone = append(gone, hs.displaceLocked(old, errTooSlow))
	}
	if same := hs.byAddr[h.addr]; same != nil && !within(same.Len()+1, hs.mostOfOne) {
		gone = append(gone, hs.displaceLocked(same.Front().Value.(*handshake), errMadeRoom))
	}
	if !within(hs.pending.Len()+1, hs.most) {
		gone = append(gone, hs.displaceLocked(hs.pending.Front().Value.(*handshake), errMadeRoom))
	}
	return gone
}

func (hs *handshakes) displaceLocked(h *handshake, why error) displaced {
	hs.leaveLocked(h)
	return displaced{h, why}
}

// lateLocked reports whether h has taken longer than there is patience for now.
func (hs *handshakes) lateLocked(h *handshake, now time.Time) bool {
	return h.patience > 0 && now.Sub(h.since) > hurried(h.patience, hs.pending.Len(), hs.most)
}

// hurried is what is left of patience when n of the places are in use.
func hurried(patience time.Duration, n, places int) time.Duration {
	from := places / hurryFrom
	if places <= 0 || n <= from {
		return patience
	}
	least := patience / hurryTo
	return least + time.Duration(float64(patience-least)*float64(max(places-n, 0))/float64(places-from))
}

// leaveLocked ends h's being pending.
func (hs *handshakes) leaveLocked(h *handshake) {
	hs.pending.Remove(h.place)
	h.place = nil
	if h.ofAddr != nil {
		same := hs.byAddr[h.addr]
		same.Remove(h.ofAddr)
		h.ofAddr = nil
		if same.Len() == 0 {
			delete(hs.byAddr, h.addr)
		}
	}
	hs.leaving++
}

// end tells the handshake to end, and does not wait.
func (d displaced) end() {
	d.cancel(d.why)
	go d.conn.Close() // which ends what does not know of ctx
}

// pass reports whether the connection may become a session. Afterwards it is not told
// to end any more.
func (h *handshake) pass() bool {
	h.all.mu.Lock()
	defer h.all.mu.Unlock()
	if h.place != nil {
		h.passed = true
		h.all.leaveLocked(h)
	}
	return h.passed
}

// done is the last that is heard of a handshake.
func (h *handshake) done() {
	h.pass()
	h.cancel(nil)
	h.all.count(-1)
}

// count counts what goes on after its handshake was told to end.
func (hs *handshakes) count(n int) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	hs.leaving += n
}

// crowded reports whether more than half of the places, or of those of an address, are
// in use.
func (hs *handshakes) crowded(h *handshake) bool {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if same := hs.byAddr[h.addr]; same != nil && !within(2*same.Len(), hs.mostOfOne) {
		return true
	}
	return !within(2*(hs.pending.Len()+hs.leaving), hs.most)
}

// len is the number of handshakes of which something still runs.
func (hs *handshakes) len() int {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	return hs.pending.Len() + hs.leaving
}

// close ends all, and refuses newcomers from now on.
func (hs *handshakes) close() {
	hs.mu.Lock()
	hs.closed = true
	var gone []displaced
	for first := hs.pending.Front(); first != nil; first = hs.pending.Front() {
		gone = append(gone, hs.displaceLocked(first.Value.(*handshake), ErrPeerClosed))
	}
	hs.mu.Unlock()
	for _, d := range gone {
		d.end()
	}
}

// addrPrefix is what counts as one address: an IPv4 address, or the 64 bits of an IPv6
// address that a single subscriber is given. What is no IP address does not count.
func addrPrefix(a net.Addr) netip.Prefix {
	ip, ok := a.(interface{ AddrPort() netip.AddrPort })
	if !ok {
		return netip.Prefix{}
	}
	addr := ip.AddrPort().Addr().Unmap()
	bits := 64
	if addr.Is4() {
		bits = 32
	}
	prefix, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return prefix
}

// patience is how long a handshake may take in all; a negative number is no bound.
func (p *Peer) patience(overTLS bool) (total time.Duration) {
	if overTLS {
		total = p.cfg.HandshakeTimeout
	}
	if len(p.chain.postAccept) > 0 {
		if p.cfg.HookTimeout < 0 || total < 0 {
			return -1
		}
		total += p.cfg.HookTimeout
	}
	return total
}

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

// ForeSession is a session whose handshake is under way: PostDial and PostAccept
// hooks may exchange packets with the other side before anything is routed, for
// example to authenticate. It is valid until the hook returns.
type ForeSession interface {
	// Peer is the local peer.
	Peer() *Peer
	// Id is the session's id so far.
	Id() string
	// ChangeId gives the session another id; see [Session.ChangeId].
	ChangeId(id string) error
	// ReplaceId takes an id over from a live session; see [Session.ReplaceId].
	ReplaceId(id string) error
	// RemoteIp is the other side's address and port.
	RemoteIp() string
	// Socket is the socket below, for addresses and TLS state.
	Socket() *socket.Socket
	// Public is the session's values, see [Session.Public].
	Public() goutil.Map
	// Send sends a packet. Codecs that are not set are the peer's defaults, and a push
	// without an id is given one that says that it is a part of a handshake.
	Send(p *packet.Packet) error
	// Receive reads the next packet and decodes its body into body, a pointer; a
	// nil body is skipped. If the other side does not want the connection the error is
	// the Xerror that its PostAccept hook has returned. A packet that is none of a
	// handshake, a pull of a client that has no PostDial hook for example, is an Xerror
	// too, with StatusUnauthorized; the pull is answered with what the hook returns.
	Receive(body interface{}) (*packet.Packet, error)
	// ReadTimeout and the three methods below are those of Session.
	ReadTimeout() time.Duration
	SetReadTimeout(d time.Duration)
	WriteTimeout() time.Duration
	SetWriteTimeout(d time.Duration)
	// Close ends the session.
	Close() error
}

type foreSession struct {
	*Session
	link    *link // the one whose handshake it is
	dialled bool  // by this side
	over    atomic.Bool
	strays  []string // ids of pulls that were received instead; the hooks' goroutine's
}

var errHandshakeOver = errors.New("tp: the handshake is over: Send and Receive are for PostDial and PostAccept")

func (f *foreSession) Send(p *packet.Packet) error {
	if f.over.Load() {
		return errHandshakeOver
	}
	cfg := &f.peer.cfg
	if p.HeaderCodec == "" {
		p.HeaderCodec = cfg.DefaultHeaderCodec
	}
	if p.BodyCodec == "" {
		p.BodyCodec = cfg.DefaultBodyCodec
	}
	if h := p.Header; h != nil && h.Type == packet.TypePush && h.Id == "" {
		h.Id = handshakeId
	}
	return f.link.sock.WritePacket(p)
}

func (f *foreSession) Receive(body interface{}) (*packet.Packet, error) {
	if f.over.Load() {
		return nil, errHandshakeOver
	}
	p := new(packet.Packet)
	var stray Xerror
	var refused packet.RawBody
	err := f.link.sock.ReadPacket(p, func(h *packet.Header) interface{} {
		if h.Type == packet.TypeReply && h.Id == refusedId {
			return &refused
		}
		if stray = f.stray(h); stray != nil {
			return nil
		}
		return body
	})
	switch h := p.Header; {
	case err != nil && socket.Fatal(err):
		return p, err
	case h != nil && h.Type == packet.TypeReply && h.Id == refusedId:
		return p, f.link.heardRefusal(h, refused)
	case stray != nil:
		return p, stray
	case err != nil:
		return p, bodyXerror(err)
	}
	return p, nil
}

func (f *foreSession) RemoteIp() string                { return f.link.remoteIp() }
func (f *foreSession) Socket() *socket.Socket          { return f.link.sock }
func (f *foreSession) ReadTimeout() time.Duration      { return f.link.sock.ReadTimeout() }
func (f *foreSession) SetReadTimeout(d time.Duration)  { f.link.sock.SetReadTimeout(d) }
func (f *foreSession) WriteTimeout() time.Duration     { return f.link.sock.WriteTimeout() }
func (f *foreSession) SetWriteTimeout(d time.Duration) { f.link.sock.SetWriteTimeout(d) }

// greet runs the hooks of the handshake, for at most HookTimeout, and waits for its outcome
// where it is to. After an error the link is to be ended. A reader is returned if a packet
// has come that is not a part of the handshake.
func (l *link) greet(ctx context.Context, from *origin) (*reader, error) {
	if len(from.hooks) == 0 && !from.confirms {
		return nil, nil
	}
	ctx, cancel := bounded(ctx, l.peer.cfg.HookTimeout)
	defer cancel()
	// On a goroutine of their own: a hook may wait for something that closing
	// the connection does not end.
	fore := &foreSession{Session: l.sess, link: l, dialled: !from.stranger}
	var first *reader
	done := onItsOwn(func() error {
		err := from.hooks.run(fore).orNil()
		fore.over.Store(true)
		switch {
		case err == nil && from.confirms:
			first, err = l.confirm()
		case err != nil && !from.stranger && isWriteError(err): // perhaps the other side has said why
			if refused := l.lastWord(); refused != nil {
				err = refused
			}
		}
		return err
	})
	select {
	case err := <-done:
		fore.over.Store(true) // if a hook has ended its goroutine
		var refused *refusedConn
		switch {
		case errors.As(err, &refused):
			err = refused // whatever the hook has made of it
		case err != nil && from.stranger:
			l.refuse(err, fore.strays)
		default:
			for _, id := range fore.strays { // which the hooks have passed over
				l.pressReply(id, newXerror(StatusUnauthorized, "it came before the handshake was over", nil))
			}
		}
		return first, err
	case <-ctx.Done():
		fore.over.Store(true)
		err := fmt.Errorf("the handshake took too long: %w", ctx.Err())
		_ = l.end(err)
		l.peer.handshakes.count(1) // as long as the hook goes on
		go func() {
			<-done
			l.peer.handshakes.count(-1)
			l.peer.activity()
		}()
		return nil, err
	}
}
