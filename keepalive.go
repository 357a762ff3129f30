package tp

import (
	"fmt"
	"time"

	"github.com/henrylee2cn/teleport/internal/keepalive"
	"github.com/henrylee2cn/teleport/internal/sockopt"
	"github.com/henrylee2cn/teleport/packet"
)

// A link on which replies are waited for is watched as internal/keepalive says, every
// PeerConfig.KeepAlive.

// pingId is no pull's.
const pingId = "ping"

// Signs returns the signs of life of now.
func (l *link) Signs() keepalive.Signs {
	s := keepalive.Signs{Reads: l.sock.Reads(), Writes: l.sock.Writes(), Waits: l.sock.Backlog() > 0}
	if tcp := l.sock.TCP(); tcp != nil {
		kernel := sockopt.SentOf(tcp)
		s.Acked, s.Unacked = kernel.Acked, kernel.Unacked
	}
	return s
}

// Lingers reports whether the link has ended and its socket is still to be closed, see halfclose.go.
func (l *link) Lingers() bool { return l.lingers.Load() }

// Ask asks whether the other side is there.
func (l *link) Ask(answer bool) {
	h := &packet.Header{Type: packet.TypePing}
	if answer {
		h.Id = pingId
	}
	l.press(h)
}

// GiveUp ends the link, from which nothing has come for so long.
func (l *link) GiveUp(after time.Duration) {
	go l.shut(fmt.Errorf("nothing has come for %v, and no answer to the question whether the other side is there", after))
}
