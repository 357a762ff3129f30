package tp

import (
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/henrylee2cn/teleport/internal/keepalive"
)

// ErrIdTaken is what errors.Is finds when a session id belongs to another live
// session.
var ErrIdTaken = errors.New("tp: the session id is taken")

var errTooManySessions = errors.New("tp: there are as many sessions as PeerConfig.MaxSessions allows")

// table of sessions holds the live sessions of a peer by id. A session is in it from before
// its hooks run until it closes, so that an id has one owner at any time.
type sessions struct {
	mu   sync.RWMutex // guards the fields below, and of every session id and counted
	byId map[string]*Session
	// connections are those that have not ended, or whose handlers still run.
	conns  map[*conn]struct{}
	closed bool
	most   int    // sessions whose handshake is over; a negative number is no bound
	opened int    // those
	serial int    // for names
	count  uint32 // of all connections that were in it
}

// add takes s in under its own id if given, and otherwise under one made of its
// address: the address itself, or if that is empty or taken, with "#" and a
// number behind it.
func (h *sessions) add(s *Session, id string, given bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return ErrPeerClosed
	}
	if !within(h.opened+1, h.most) {
		return errTooManySessions
	}
	if h.byId == nil {
		h.byId = make(map[string]*Session)
	}
	if given {
		if id == "" {
			return errors.New("tp: a session id is empty")
		}
		if h.byId[id] != nil {
			return fmt.Errorf("%w: %q", ErrIdTaken, id)
		}
	} else if base := id; base == "" || h.byId[id] != nil {
		for h.byId[id] != nil || id == base {
			h.serial++
			id = base + "#" + strconv.Itoa(h.serial)
		}
	}
	h.byId[id] = s
	s.id.Store(&id)
	h.attachLocked(&s.first)
	return nil
}

// attach takes in another connection of a session.
func (h *sessions) attach(cn *conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.attachLocked(cn)
}

func (h *sessions) attachLocked(cn *conn) {
	if h.conns == nil {
		h.conns = make(map[*conn]struct{})
	}
	h.conns[cn] = struct{}{}
	h.count++
	cn.role.Init(cn, h.count)
}

// full reports whether no further session would be taken in.
func (h *sessions) full() bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return !within(h.opened+1, h.most)
}

// open gives a session whose handshake is over one of the places.
func (h *sessions) open(s *Session) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.byId[*s.id.Load()] != s {
		return errClosedInHandshake
	}
	if !within(h.opened+1, h.most) {
		return errTooManySessions
	}
	s.counted = true
	h.opened++
	return nil
}

// rename gives s another id. If that belongs to another session, it is an error,
// or with replace the other session is returned, out of the table of sessions.
func (h *sessions) rename(s *Session, id string, replace bool) (*Session, error) {
	if id == "" {
		return nil, errors.New("tp: a session id is empty")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	old := *s.id.Load()
	if h.byId[old] != s {
		return nil, fmt.Errorf("tp: session %q is closed", old)
	}
	other := h.byId[id]
	if other == s {
		return nil, nil
	}
	if other != nil && !replace {
		return nil, fmt.Errorf("%w: %q", ErrIdTaken, id)
	}
	delete(h.byId, old)
	h.byId[id] = s
	s.id.Store(&id)
	return other, nil
}

// remove takes s, which is closed, out, if it is still in.
func (h *sessions) remove(s *Session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if id := *s.id.Load(); h.byId[id] == s {
		delete(h.byId, id)
	}
}

// leave gives back the place of a session that is closed and has no socket any more.
func (h *sessions) leave(s *Session) {
	if s.isOpen() {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.counted {
		s.counted = false
		h.opened--
	}
}

// detach takes a connection out that has ended, unless handlers of it still run. The last
// of them looks at ended, set before this, after it has counted itself out: if it is
// not seen here it comes here itself.
func (h *sessions) detach(cn *conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if cn.handlers.Load() == 0 {
		delete(h.conns, cn)
		cn.inBudget.End()
		cn.outBudget.End()
	}
}

// busy counts the handlers and the pulls in flight.
func (h *sessions) busy() (handlers, pulls int) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for cn := range h.conns {
		handlers += int(cn.handlers.Load())
		pulls += cn.pulls.Len()
	}
	return handlers, pulls
}

// live returns the connections that have not ended.
func (h *sessions) live() []*conn {
	h.mu.RLock()
	defer h.mu.RUnlock()
	list := make([]*conn, 0, len(h.conns))
	for cn := range h.conns {
		if !cn.ended.Load() {
			list = append(list, cn)
		}
	}
	return list
}

// lingering returns the connections that have ended and whose sockets are not closed.
func (h *sessions) lingering() (list []*conn) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for cn := range h.conns {
		if cn.lingers.Load() {
			list = append(list, cn)
		}
	}
	return list
}

func (h *sessions) get(id string) *Session {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.byId[id]
}

// all returns the sessions that were live at one moment.
func (h *sessions) all() []*Session {
	h.mu.RLock()
	defer h.mu.RUnlock()
	list := make([]*Session, 0, len(h.byId))
	for _, s := range h.byId {
		list = append(list, s)
	}
	return list
}

// close refuses newcomers from now on and returns who is in.
func (h *sessions) close() []*Session {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	return h.all()
}

// waiting returns the connections on which replies are waited for, or which linger.
func (h *sessions) waiting() (list []keepalive.Link) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for cn := range h.conns {
		if cn.lingers.Load() || !cn.ended.Load() && cn.pulls.Len() > 0 {
			list = append(list, cn)
		}
	}
	return list
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
