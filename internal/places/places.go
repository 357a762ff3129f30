// Package places bounds how many accepted connections are in their handshake, and decides which one ends when
// another comes and no place is left.
//
// Strangers can connect as fast as they like and then say nothing. So a new connection is always let in, and
// when no place is left the connection that has had its place longest is closed. An honest client needs its
// place for a few round trips. It loses the place only if as many others as there are places come within that
// time, and one address cannot make so many, because each address has a bound of its own.
package places

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

// Places has the places of one peer. All methods are safe for concurrent use. Init makes it ready.
//
// A handshake is pending until it has passed, has failed or was told to end, whichever
// comes first, and counted until whatever runs for it has ended.
type Places struct {
	most, mostOfOne int
	errClosed       error

	mu      sync.Mutex                  // guards the fields below, and those of every Place
	pending list.List                   // of *Place, the oldest first
	byAddr  map[netip.Prefix]*list.List // the same of each address
	leaving int                         // how many are counted and not pending
	closed  bool
}

// Init makes the places ready: for so many connections at once, in all and of one address, of which
// negative numbers are no bounds. ErrClosed is what Enter returns after Close.
func (ps *Places) Init(most, mostOfOne int, errClosed error) {
	ps.most, ps.mostOfOne, ps.errClosed = most, mostOfOne, errClosed
}

// Place is the place of one connection, from when it was accepted until Done.
type Place struct {
	Conn net.Conn // as it was accepted
	// Ctx ends when the handshake has to end. Its cause says why.
	Ctx    context.Context
	all    *Places
	cancel context.CancelCauseFunc
	since  time.Time
	// patience is how long the handshake may take; a negative value is no bound.
	patience time.Duration
	addr     netip.Prefix // see Network; zero if the connection has no IP address

	place, ofAddr *list.Element // in pending and in byAddr; nil if it is in neither
	passed        bool
}

// hurryFrom and hurryTo say how patience shrinks: it is whole while one in hurryFrom of
// the places is in use, and one part in hurryTo of it is left when all are.
const (
	hurryFrom = 2
	hurryTo   = 16
)

// MinLeaving is the least number of handshakes that were told to end and still may be
// counted before nobody else is let in.
const MinLeaving = 1 << 10

var (
	errMadeRoom = errors.New("its handshake was the one that had taken longest, and had to make room " +
		"for others")
	errTooSlow = errors.New("its handshake took too long for the number of others")
)

// Enter gives a connection a place. It returns the handshakes that have to end for that; the caller calls
// [Displaced.End] of each. An error says why the connection is not let in.
func (ps *Places) Enter(conn net.Conn, patience time.Duration) (h *Place, gone []Displaced, err error) {
	h = &Place{all: ps, Conn: conn, since: time.Now(), patience: patience,
		addr: Network(conn.RemoteAddr())}
	h.Ctx, h.cancel = context.WithCancelCause(context.Background())
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.closed {
		return nil, nil, ps.errClosed
	}
	if ps.most >= 0 && ps.leaving >= max(2*ps.most, MinLeaving) {
		return nil, nil, fmt.Errorf("%d handshakes were told to end and go on: hooks of PostAccept that "+
			"wait for something else than their connection", ps.leaving)
	}
	if patience == 0 { // no part of the handshake waits for the other side
		h.passed = true
		ps.leaving++
		return h, nil, nil
	}
	gone = ps.makeRoomLocked(h)
	h.place = ps.pending.PushBack(h)
	if h.addr.IsValid() {
		if ps.byAddr == nil {
			ps.byAddr = make(map[netip.Prefix]*list.List)
		}
		if ps.byAddr[h.addr] == nil {
			ps.byAddr[h.addr] = list.New()
		}
		h.ofAddr = ps.byAddr[h.addr].PushBack(h)
	}
	return h, gone, nil
}

// Displaced is a handshake that has to end, and why.
type Displaced struct {
	*Place
	why error
}

// makeRoomLocked takes places away until there is one for h.
func (ps *Places) makeRoomLocked(h *Place) (gone []Displaced) {
	for first := ps.pending.Front(); first != nil; first = ps.pending.Front() {
		old := first.Value.(*Place)
		if !ps.lateLocked(old, h.since) {
			break
		}
		gone = append(gone, ps.displaceLocked(old, errTooSlow))
	}
	if same := ps.byAddr[h.addr]; same != nil && !within(same.Len()+1, ps.mostOfOne) {
		gone = append(gone, ps.displaceLocked(same.Front().Value.(*Place), errMadeRoom))
	}
	if !within(ps.pending.Len()+1, ps.most) {
		gone = append(gone, ps.displaceLocked(ps.pending.Front().Value.(*Place), errMadeRoom))
	}
	return gone
}

func (ps *Places) displaceLocked(h *Place, why error) Displaced {
	ps.leaveLocked(h)
	return Displaced{h, why}
}

// lateLocked reports whether h has taken longer than there is patience for now.
func (ps *Places) lateLocked(h *Place, now time.Time) bool {
	return h.patience > 0 && now.Sub(h.since) > hurried(h.patience, ps.pending.Len(), ps.most)
}

// hurried returns how much of patience is left when n of the places are in use.
func hurried(patience time.Duration, n, places int) time.Duration {
	from := places / hurryFrom
	if places <= 0 || n <= from {
		return patience
	}
	least := patience / hurryTo
	return least + time.Duration(float64(patience-least)*float64(max(places-n, 0))/float64(places-from))
}

// leaveLocked makes h not pending any more.
func (ps *Places) leaveLocked(h *Place) {
	ps.pending.Remove(h.place)
	h.place = nil
	if h.ofAddr != nil {
		same := ps.byAddr[h.addr]
		same.Remove(h.ofAddr)
		h.ofAddr = nil
		if same.Len() == 0 {
			delete(ps.byAddr, h.addr)
		}
	}
	ps.leaving++
}

// End tells the handshake to end, and does not wait.
func (d Displaced) End() {
	d.cancel(d.why)
	go d.Conn.Close() // ends reads and writes that do not look at Ctx
}

// Pass reports whether the connection may become a session. Afterwards it is not told
// to end any more.
func (h *Place) Pass() bool {
	h.all.mu.Lock()
	defer h.all.mu.Unlock()
	if h.place != nil {
		h.passed = true
		h.all.leaveLocked(h)
	}
	return h.passed
}

// Done says that the handshake is over, and gives back its place.
func (h *Place) Done() {
	h.Pass()
	h.cancel(nil)
	h.all.Count(-1)
}

// Count counts goroutines that go on after their handshake was told to end: n more.
func (ps *Places) Count(n int) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.leaving += n
}

// Crowded reports whether more than half of the places, or of those of an address, are
// in use.
func (ps *Places) Crowded(h *Place) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if same := ps.byAddr[h.addr]; same != nil && !within(2*same.Len(), ps.mostOfOne) {
		return true
	}
	return !within(2*(ps.pending.Len()+ps.leaving), ps.most)
}

// Len is the number of handshakes of which something still runs.
func (ps *Places) Len() int {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.pending.Len() + ps.leaving
}

// Close ends all handshakes, and makes Enter refuse all connections from now on.
func (ps *Places) Close() {
	ps.mu.Lock()
	ps.closed = true
	var gone []Displaced
	for first := ps.pending.Front(); first != nil; first = ps.pending.Front() {
		gone = append(gone, ps.displaceLocked(first.Value.(*Place), ps.errClosed))
	}
	ps.mu.Unlock()
	for _, d := range gone {
		d.End()
	}
}

// Pending returns how many connections have places.
func (ps *Places) Pending() int {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.pending.Len()
}

// within reports whether n is not over the bound, of which negative values are none.
func within(n, bound int) bool { return bound < 0 || n <= bound }

// Network is what counts as one address: an IPv4 address, or the 64 bits of an IPv6
// address that a single subscriber is given. What is no IP address does not count.
func Network(a net.Addr) netip.Prefix {
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
