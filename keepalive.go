package tp

import (
	"fmt"
	"time"

	"github.com/henrylee2cn/teleport/internal/keepalive"
	"github.com/henrylee2cn/teleport/internal/sockopt"
	"github.com/henrylee2cn/teleport/packet"
)

// A connection on which replies are waited for is watched as internal/keepalive says, every
// PeerConfig.KeepAlive.

// pingId is no pull's.
const pingId = "ping"

// Signs returns the signs of life of now.
func (cn *conn) Signs() keepalive.Signs {
	s := keepalive.Signs{Reads: cn.sock.Reads(), Writes: cn.sock.Writes(), Waits: cn.sock.Backlog() > 0}
	if tcp := cn.sock.TCP(); tcp != nil {
		kernel := sockopt.SentOf(tcp)
		s.Acked, s.Unacked = kernel.Acked, kernel.Unacked
	}
	return s
}

// Lingers reports whether the connection has ended and its socket is still to be closed, see halfclose.go.
func (cn *conn) Lingers() bool { return cn.lingers.Load() }

// Ask asks whether the other side is there.
func (cn *conn) Ask(answer bool) {
	h := &packet.Header{Type: packet.TypePing}
	if answer {
		h.Id = pingId
	}
	cn.sendControl(h)
}

// GiveUp ends the connection, from which nothing has come for so long.
func (cn *conn) GiveUp(after time.Duration) {
	go cn.fail(fmt.Errorf("nothing has come for %v, and no answer to the question whether the other side "+
		"is there", after))
}
