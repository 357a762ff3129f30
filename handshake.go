package tp

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
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
