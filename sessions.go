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

// sessions is the table of a peer's live sessions by id, and of its connections. A session is in the table
// from before its hooks run until it closes, so that an id has one owner at any time.
type sessions struct {
	mu   sync.RWMutex // guards the fields below, and every session's id and counted
	byId map[string]*Session
	// conns has the connections that have not ended, and those whose handlers still run.
	conns  map[*conn]struct{}
	closed bool
	most   int    // how many sessions may be open at a time; a negative number is no bound
	opened int    // how many are: sessions with their handshake over and their socket not closed
	serial int    // the last number that was added to an address to make an id
	count  uint32 // how many connections have ever been in conns
}

// add takes s in under its own id if given, and otherwise under one made of its
// address: the address itself, or if that is empty or taken, with "#" and a
// number behind it.
func (t *sessions) add(s *Session, id string, given bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrPeerClosed
	}
	if !within(t.opened+1, t.most) {
		return errTooManySessions
	}
	if t.byId == nil {
		t.byId = make(map[string]*Session)
	}
	if given {
		if id == "" {
			return errors.New("tp: a session id is empty")
		}
		if t.byId[id] != nil {
			return fmt.Errorf("%w: %q", ErrIdTaken, id)
		}
	} else if base := id; base == "" || t.byId[id] != nil {
		for t.byId[id] != nil || id == base {
			t.serial++
			id = base + "#" + strconv.Itoa(t.serial)
		}
	}
	t.byId[id] = s
	s.id.Store(&id)
	t.attachLocked(&s.first)
	return nil
}

// attach takes in another connection of a session.
func (t *sessions) attach(cn *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.attachLocked(cn)
}

func (t *sessions) attachLocked(cn *conn) {
	if t.conns == nil {
		t.conns = make(map[*conn]struct{})
	}
	t.conns[cn] = struct{}{}
	t.count++
	cn.role.Init(cn, &cn.peer.watch, t.count)
}

// full reports whether no further session would be taken in.
func (t *sessions) full() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return !within(t.opened+1, t.most)
}

// open gives a session whose handshake is over one of the places.
func (t *sessions) open(s *Session) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byId[*s.id.Load()] != s {
		return errClosedInHandshake
	}
	if !within(t.opened+1, t.most) {
		return errTooManySessions
	}
	s.counted = true
	t.opened++
	return nil
}

// rename gives s another id. If the id belongs to another session, rename returns an error; with replace it
// takes the other session out of the table instead, and returns that session.
func (t *sessions) rename(s *Session, id string, replace bool) (*Session, error) {
	if id == "" {
		return nil, errors.New("tp: a session id is empty")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	old := *s.id.Load()
	if t.byId[old] != s {
		return nil, fmt.Errorf("tp: session %q is closed", old)
	}
	other := t.byId[id]
	if other == s {
		return nil, nil
	}
	if other != nil && !replace {
		return nil, fmt.Errorf("%w: %q", ErrIdTaken, id)
	}
	delete(t.byId, old)
	t.byId[id] = s
	s.id.Store(&id)
	return other, nil
}

// remove takes s, which is closed, out of the table, unless another session has its id by now.
func (t *sessions) remove(s *Session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if id := *s.id.Load(); t.byId[id] == s {
		delete(t.byId, id)
	}
}

// leave gives back the place of a session that is closed and has no socket any more.
func (t *sessions) leave(s *Session) {
	if s.isOpen() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.counted {
		s.counted = false
		t.opened--
	}
}

// detach takes a connection that has ended out of the table, unless handlers of it still run: then the last
// handler calls detach. No connection is missed, because the end of a connection sets conn.ended before it
// calls detach, and a handler lowers conn.handlers before it looks at conn.ended.
func (t *sessions) detach(cn *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if cn.handlers.Load() == 0 {
		delete(t.conns, cn)
		cn.inBudget.End()
		cn.outBudget.End()
	}
}

// busy counts the handlers and the pulls in flight.
func (t *sessions) busy() (handlers, pulls int) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for cn := range t.conns {
		handlers += int(cn.handlers.Load())
		if box := cn.outbox.Load(); box != nil && box.Waits() {
			handlers++ // in a manner of speaking
		}
		pulls += cn.pulls.Len()
	}
	return handlers, pulls
}

// live returns the connections that have not ended.
func (t *sessions) live() []*conn {
	t.mu.RLock()
	defer t.mu.RUnlock()
	list := make([]*conn, 0, len(t.conns))
	for cn := range t.conns {
		if !cn.ended.Load() {
			list = append(list, cn)
		}
	}
	return list
}

// lingering returns the connections that have ended and whose sockets are not closed.
func (t *sessions) lingering() (list []*conn) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for cn := range t.conns {
		if cn.lingers.Load() {
			list = append(list, cn)
		}
	}
	return list
}

func (t *sessions) get(id string) *Session {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byId[id]
}

// all returns the sessions that were live at one moment.
func (t *sessions) all() []*Session {
	t.mu.RLock()
	defer t.mu.RUnlock()
	list := make([]*Session, 0, len(t.byId))
	for _, s := range t.byId {
		list = append(list, s)
	}
	return list
}

// close makes add refuse all sessions from now on, and returns the sessions in the table.
func (t *sessions) close() []*Session {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	return t.all()
}

// waiting returns the connections on which pulls wait for replies, or anything for credit, or streams are
// open, and those that linger.
func (t *sessions) waiting() (list []keepalive.Conn) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for cn := range t.conns {
		if cn.lingers.Load() || !cn.ended.Load() &&
			(cn.pulls.Len() > 0 || cn.streams.Len() > 0 || cn.flow.Waits()) {
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
