package tp

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/teleport/internal/sockopt"
	"github.com/henrylee2cn/teleport/packet"
)

// The kernel answers for a process that is stopped, or that waits for itself for ever, so
// its keepalive does not notice those. While this side waits for replies on a connection by
// which nothing comes, it asks the other side itself, after PeerConfig.KeepAlive, with a
// packet that every peer answers, whatever its handlers do: its reader does. If nothing
// comes for as long again the connection is given up.
//
// It is also a sign of life when output that waits grows less: what is asked stands behind
// that. A link that lingers, see halfclose.go, is asked too, and need not answer: the
// kernel of a side that has gone refuses the packet.

// keeper looks at a peer's links from time to time, as long as any of them waits for a reply.
type keeper struct {
	on atomic.Bool

	mu    sync.Mutex // guards the fields below
	timer *time.Timer
	// silent are the links that wait, as they were last seen. Only the timer's goroutine
	// uses it.
	silent map[*link]*silence
}

// silence is how long there has been no sign of life from a link.
type silence struct {
	last  signs
	looks int
}

// signs are numbers that change with whatever the other side, or its kernel, does.
type signs struct {
	reads, writes uint32
	kernel        sockopt.Sent
	waits         bool // output, because the kernel takes no more
}

// signs returns those of now.
func (l *link) signs() signs {
	s := signs{reads: l.sock.Reads(), writes: l.sock.Writes(), waits: l.sock.Backlog() > 0}
	if tcp := l.sock.TCP(); tcp != nil {
		s.kernel = sockopt.SentOf(tcp)
	}
	return s
}

// life reports whether there was any since before. The kernel of a process that is stopped
// goes on taking, until it is full: so that counts only while output waits for it, or what
// it has not taken yet grows less.
func (s signs) life(before signs) bool {
	return s.reads != before.reads ||
		s.waits && (s.writes != before.writes || s.kernel.Acked != before.kernel.Acked) ||
		s.kernel.Unacked < before.kernel.Unacked
}

// looksOfPeriod is how often keeper looks in PeerConfig.KeepAlive.
const looksOfPeriod = 4

// expectReplies makes the keeper look. It is called for every pull.
func (p *Peer) expectReplies() {
	if k := &p.keeper; !k.on.Load() && p.cfg.KeepAlive > 0 && !k.on.Swap(true) {
		k.again(p)
	}
}

func (k *keeper) again(p *Peer) {
	every := max(p.cfg.KeepAlive/looksOfPeriod, time.Millisecond)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.timer == nil {
		k.timer = time.AfterFunc(every, p.look)
	} else {
		k.timer.Reset(every)
	}
}

// stop ends the looking, when the peer is closed.
func (k *keeper) stop() {
	k.on.Store(true)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.timer != nil {
		k.timer.Stop()
	}
}

// look is the timer's.
func (p *Peer) look() {
	k := &p.keeper
	waiting := p.hub.waiting()
	if p.over.Load() {
		return
	}
	if len(waiting) == 0 {
		k.silent = nil
		k.on.Store(false)
		if len(p.hub.waiting()) == 0 || k.on.Swap(true) { // a pull may have seen it on
			return
		}
	}
	before := k.silent
	k.silent = make(map[*link]*silence, len(waiting))
	for _, l := range waiting {
		s, now := before[l], l.signs()
		if s == nil || now.life(s.last) {
			s = &silence{}
		}
		s.last = now
		k.silent[l] = s
		p.ask(l, s)
	}
	k.again(p)
}

// ask does what is to be done about a link that has been silent for so long.
func (p *Peer) ask(l *link, s *silence) {
	switch s.looks++; {
	case l.lingers.Load():
		if s.looks%looksOfPeriod == 0 { // and the writes that fail end it
			l.press(&packet.Header{Type: packet.TypePing})
		}
	case s.looks == looksOfPeriod+1:
		l.press(&packet.Header{Id: pingId, Type: packet.TypePing})
	case s.looks > 2*looksOfPeriod:
		s.looks = 0
		go l.shut(fmt.Errorf("nothing has come for %v, and no answer to the question whether the other side is there", 2*p.cfg.KeepAlive))
	}
}

// pingId is no pull's.
const pingId = "ping"

// waiting returns the links on which replies are waited for, or which linger.
func (h *hub) waiting() (list []*link) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for l := range h.links {
		if l.lingers.Load() || !l.ended.Load() && l.pulls.Len() > 0 {
			list = append(list, l)
		}
	}
	return list
}
