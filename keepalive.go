package tp

import (
	"fmt"
	"time"

	"github.com/henrylee2cn/teleport/internal/keepalive"
	"github.com/henrylee2cn/teleport/internal/sockopt"
	"github.com/henrylee2cn/teleport/packet"
)

// While a pull waits for its reply, internal/keepalive watches the connection, every PeerConfig.KeepAlive.
// The methods here are what it needs to know of a connection and to do with one.

// pingId is the id of a ping that asks for an answer. No pull has it.
const pingId = "ping"

// Signs returns how much has been read, written and acknowledged so far.
func (cn *conn) Signs() keepalive.Signs {
	s := keepalive.Signs{Reads: cn.sock.Reads(), Writes: cn.sock.Writes(), Waits: cn.sock.Backlog() > 0}
	if tcp := cn.sock.TCP(); tcp != nil {
		kernel := sockopt.SentOf(tcp)
		s.Acked, s.Unacked = kernel.Acked, kernel.Unacked
	}
	return s
}

// Lingers reports whether the connection has ended and its socket is still to be closed, see conn.linger.
func (cn *conn) Lingers() bool { return cn.lingers.Load() }

// Ask sends a ping. The other side answers it only if answer is true; otherwise the acknowledgement by TCP is
// enough.
func (cn *conn) Ask(answer bool) {
	h := &packet.Header{Type: packet.TypePing}
	if answer {
		h.Id = pingId
	}
	cn.sendControl(h)
}

// GiveUp ends the connection because nothing has come for the time given.
func (cn *conn) GiveUp(after time.Duration) {
	go cn.fail(fmt.Errorf("nothing has come for %v, and no answer to the question whether the other side "+
		"is there", after))
}
