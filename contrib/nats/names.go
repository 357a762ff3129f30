package nats

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	tp "github.com/henrylee2cn/teleport"
)

// Who has a name. A hub subscribes, in a queue, to the subjects of the ids and identities of its sessions,
// so that one hub gets what goes to a name. When several have a session with the same name, as a client
// has connected again to another server and its old connection has not ended yet, the session that was
// added last has it: its hub claims the name, and the others give up their subscriptions for as long as that
// lasts. A hub that is back after the broker was away claims all its names again.

// The kinds of names, as they stand in subjects.
const (
	ofSession  = 's'
	ofIdentity = 'i'
)

type nameKey struct {
	kind byte
	name string
}

// stamp says when a name was given to a session; the hub decides where two are the same.
type stamp struct {
	at  int64 // nanoseconds since the epoch
	hub string
}

func (s stamp) after(o stamp) bool { return s.at > o.at || s.at == o.at && s.hub > o.hub }

// place is a name that sessions of this hub have. The hub's mu guards it.
type place struct {
	key      nameKey
	bound    []bound // the newest is the last
	away     stamp   // of another hub that has a newer session with the name; zero for none
	sub      *nats.Subscription
	settling bool // a goroutine makes or ends the subscription
}

type bound struct {
	sess *tp.Session
	at   int64
}

// has reports whether the name is this hub's.
func (p *place) has() bool { return len(p.bound) > 0 && p.away.hub == "" }

// Add has the hub know a session of its peer: by its id, and by identities, names that the program gives it.
// When Add returns other servers reach the session; while the broker is away that is when it is back. The
// hub forgets the session when it has ended.
//
// If several sessions have an identity, the one that has got it last is the one that is meant, and when that
// has ended the one before. What is to go to all devices of a user goes to a [Group] of them. Last is by the
// clocks of the servers, which should agree within the time that a client takes to connect again.
//
// Add again takes the place of what was said of the session before; a program calls it after
// Session.ChangeId. The error says that the session has ended, is nil or is of another peer, that its id or
// an identity has more than 128 KiB, or that the hub is closed. [Automatic] calls Add for each
// session that the peer accepts.
func (h *Hub) Add(sess *tp.Session, identity ...string) error {
	switch {
	case sess == nil:
		return errors.New("nats: Add: the session is nil")
	case sess.Peer() != h.peer:
		return fmt.Errorf("nats: Add: session %q is of another peer, a hub knows sessions of its own peer",
			sess.Id())
	}
	keys := []nameKey{{ofSession, sess.Id()}}
	for _, name := range identity {
		if k := (nameKey{ofIdentity, name}); name != "" && !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	for _, k := range keys {
		if len(k.name) > maxName {
			return fmt.Errorf("nats: Add: a name of session %.64q has %d bytes: expected %d at most",
				sess.Id(), len(k.name), maxName)
		}
	}
	if err := h.all.Join(sess); err != nil {
		return fmt.Errorf("nats: Add: %w", err)
	}
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		h.all.Leave(sess)
		return fmt.Errorf("nats: Add: %w", ErrClosed)
	}
	at := time.Now().UnixNano()
	old := h.sessions[sess]
	h.sessions[sess] = keys
	var changed []*place
	for _, k := range old {
		if !slices.Contains(keys, k) {
			changed = append(changed, h.takeLocked(sess, k))
		}
	}
	var list claims
	for _, k := range keys {
		p := h.places[k]
		if p == nil {
			p = &place{key: k}
			h.places[k] = p
		}
		if !slices.Contains(old, k) {
			p.bound = append(p.bound, bound{sess, at})
			p.away = stamp{}
		}
		changed = append(changed, p)
		list.add(p)
	}
	h.mu.Unlock()
	for _, p := range changed {
		h.settle(p)
	}
	if h.nc != nil {
		h.tellClaims(list)
		h.flush()
	}
	// The session may have ended before it was known.
	if err := sess.Err(); err != nil {
		h.forget(sess)
		return fmt.Errorf("nats: Add: session %q has ended: %w", sess.Id(), err)
	}
	return nil
}

// Remove has the hub forget the session, which stays connected, and stays in its groups.
func (h *Hub) Remove(sess *tp.Session) {
	h.all.Leave(sess)
	h.forget(sess)
}

// forget takes the names from a session that has ended.
func (h *Hub) forget(sess *tp.Session) {
	h.mu.Lock()
	var changed, older []*place
	for _, k := range h.sessions[sess] {
		p := h.places[k]
		newest := p.bound[len(p.bound)-1].sess == sess
		changed = append(changed, h.takeLocked(sess, k))
		if newest && p.has() {
			older = append(older, p)
		}
	}
	delete(h.sessions, sess)
	h.mu.Unlock()
	for _, p := range changed {
		h.settle(p)
	}
	if len(older) > 0 { // sessions elsewhere may be newer than those that are left here
		h.claim(func(p *place) bool { return slices.Contains(older, p) })
	}
}

// takeLocked takes a name from a session.
func (h *Hub) takeLocked(sess *tp.Session, k nameKey) *place {
	p := h.places[k]
	p.bound = slices.DeleteFunc(p.bound, func(b bound) bool { return b.sess == sess })
	return p
}

// settle gives the name a subscription, or takes it, as it should be, and tells the others when this hub has
// the name no more. Where another goroutine is about that it waits.
func (h *Hub) settle(p *place) {
	released := false
	h.mu.Lock()
	for {
		for p.settling {
			h.settled.Wait()
		}
		if p.has() == (p.sub != nil) || h.nc == nil || h.closed {
			break
		}
		sub, has := p.sub, p.has()
		p.settling = true
		h.mu.Unlock()
		if has {
			// An error says that the connection is closed.
			sub, _ = h.nc.ChanQueueSubscribe(h.subj.name(p.key), "hubs", h.requests)
		} else {
			h.drain(sub)
			sub = nil
		}
		h.mu.Lock()
		p.settling, p.sub = false, sub
		h.settled.Broadcast()
		if h.closed && sub != nil {
			p.sub = nil
			h.mu.Unlock()
			_ = sub.Unsubscribe()
			return
		}
		if has && sub == nil {
			break
		}
		released = released || !has
	}
	if len(p.bound) == 0 && p.sub == nil && h.places[p.key] == p {
		delete(h.places, p.key)
	}
	released = released && len(p.bound) == 0
	h.mu.Unlock()
	if released {
		h.tell(&message{kind: kindRelease, more: appendClaim(nil, p.key, 0)})
	}
}

// drain ends the subscription of a name; what is on its way is answered: the name is not here. A subscription
// that drains while its connection is made again is told to the broker anew, and the client forgets it then
// without a word: the broker would go on to send messages to the name here, where nobody takes them. So
// without a connection it ends at once, and endDrains ends those that had begun to drain before.
func (h *Hub) drain(sub *nats.Subscription) {
	if !h.nc.IsConnected() {
		_ = sub.Unsubscribe() // an error says that the connection is closed
		return
	}
	h.mu.Lock()
	h.drains = append(h.drains, sub)
	h.mu.Unlock()
	_ = sub.Drain()
}

// endDrains forgets the subscriptions that have ended. With all it ends the others too.
func (h *Hub) endDrains(all bool) {
	h.mu.Lock()
	list := h.drains
	h.drains = nil
	h.mu.Unlock()
	list = slices.DeleteFunc(list, func(sub *nats.Subscription) bool { return !sub.IsValid() })
	if all {
		for _, sub := range list {
			_ = sub.Unsubscribe()
		}
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drains = append(h.drains, list...)
}

// here returns the session of this hub that has the name; nil if there is none.
func (h *Hub) here(k nameKey) *tp.Session {
	for {
		var sess *tp.Session
		h.mu.Lock()
		if p := h.places[k]; p != nil && p.has() {
			sess = p.bound[len(p.bound)-1].sess
		}
		h.mu.Unlock()
		switch {
		case sess == nil:
			return nil
		case sess.Err() == nil && k.kind == ofSession && sess.Id() != k.name: // it has another id now
			return nil
		case sess.Err() == nil:
			return sess
		}
		h.forget(sess) // the event of its end is still to come
	}
}

func appendClaim(b []byte, k nameKey, at int64) []byte {
	b = append(b, k.kind)
	b = binary.AppendUvarint(b, uint64(len(k.name)))
	b = append(b, k.name...)
	return binary.AppendVarint(b, at)
}

// nextClaim reads what appendClaim has written; ok is false at the end.
func nextClaim(b []byte) (k nameKey, at int64, rest []byte, ok bool) {
	if len(b) == 0 {
		return k, 0, nil, false
	}
	length, n := binary.Uvarint(b[1:])
	if n <= 0 || length > uint64(len(b)-1-n) {
		return k, 0, nil, false
	}
	k = nameKey{b[0], string(b[1+n : 1+n+int(length)])}
	rest = b[1+n+int(length):]
	at, n = binary.Varint(rest)
	if n <= 0 {
		return k, 0, nil, false
	}
	return k, at, rest[n:], true
}

// maxClaims is after how many bytes of claims another message begins.
const maxClaims = 32 << 10

// claims are the claims of names, as they go in messages.
type claims [][]byte

// add adds the claim of a name that sessions here have.
func (c *claims) add(p *place) {
	if n := len(*c); n == 0 || len((*c)[n-1]) > maxClaims {
		*c = append(*c, nil)
	}
	last := &(*c)[len(*c)-1]
	*last = appendClaim(*last, p.key, p.bound[len(p.bound)-1].at)
}

// claimAll claims all names of this hub, also those that other hubs had: who has a newer session claims it
// again.
func (h *Hub) claimAll() {
	h.claim(func(p *place) bool { return true })
}

// claim claims the names for which is returns true, of those that sessions here have.
func (h *Hub) claim(is func(*place) bool) {
	h.mu.Lock()
	var changed []*place
	var list claims
	for _, p := range h.places {
		if len(p.bound) == 0 || !is(p) {
			continue
		}
		p.away = stamp{}
		changed = append(changed, p)
		list.add(p)
	}
	h.mu.Unlock()
	for _, p := range changed {
		h.settle(p)
	}
	h.tellClaims(list)
}

func (h *Hub) tellClaims(list claims) {
	for _, part := range list {
		h.tell(&message{kind: kindClaim, more: part})
	}
}

// claimed is told of the claims of another hub. Names that it has for longer than this one are this one's: it
// says so.
func (h *Hub) claimed(hub string, list []byte) {
	var changed []*place
	var mine claims
	h.mu.Lock()
	for {
		k, at, rest, ok := nextClaim(list)
		if !ok {
			break
		}
		list = rest
		p := h.places[k]
		if p == nil || len(p.bound) == 0 {
			continue
		}
		theirs, ours := stamp{at, hub}, stamp{p.bound[len(p.bound)-1].at, h.id}
		switch {
		case !theirs.after(ours):
			mine.add(p)
			if p.away.hub == hub { // it had a newer session
				p.away = stamp{}
				changed = append(changed, p)
			}
		case p.away.hub == "" || p.away.hub == hub || theirs.after(p.away):
			p.away = theirs
			changed = append(changed, p)
		}
	}
	h.mu.Unlock()
	for _, p := range changed {
		h.settle(p)
	}
	h.tellClaims(mine)
}

// released is told that another hub has a name no more.
func (h *Hub) released(hub string, more []byte) {
	k, _, _, ok := nextClaim(more)
	if !ok {
		return
	}
	h.mu.Lock()
	p := h.places[k]
	again := p != nil && p.away.hub == hub
	h.mu.Unlock()
	if again {
		h.claim(func(other *place) bool { return other == p })
	}
}
