package tp

import (
	"fmt"

	"github.com/henrylee2cn/teleport/packet"
)

// While the other side does not read, what it sends must not pile up here. A session whose
// output is full begins no more handlers of pulls: those wait, see internal/workers, and when
// enough of them do the reader rests, so that the other side's own writes come to a stop.
// It does not rest while this side waits for replies of the other: those may be what the
// handlers wait for that make the output full, on both sides at once.

const (
	// A session whose output is full may have pulls of restBytes waiting before its reader
	// rests, and of maxPullBytes before they are refused.
	restBytes    = 64 << 10
	maxPullBytes = 8 << 20
)

// unread reports whether the output is full, as the other side does not read, and pulls of
// too many bytes wait for it.
func (cn *conn) unread() bool {
	return cn.queue.PullBytes() >= maxPullBytes && cn.sock.OutputFull()
}

// restWhileFull holds the reader while it is of no use to read on.
func (cn *conn) restWhileFull() {
	for cn.rests() {
		if cn.wake == nil {
			cn.wake = make(chan struct{}, 1)
		}
		cn.resting.Store(true)
		if cn.rests() { // who wakes it looks at resting after that has changed which rests looks at
			<-cn.wake
		}
		cn.resting.Store(false)
	}
}

func (cn *conn) rests() bool {
	return cn.queue.PullBytes() >= restBytes && cn.sock.OutputBusy() && !cn.ended.Load() && !cn.pulls.awaited()
}

// wakeReader lets the reader look again whether to rest.
func (cn *conn) wakeReader() {
	if cn.resting.Load() {
		select {
		case cn.wake <- struct{}{}:
		default:
		}
	}
}

// OutputBusy and QueueChanged are called by the pool of workers, see [workers.Owner].
func (cn *conn) OutputBusy() bool { return cn.sock.OutputBusy() }
func (cn *conn) QueueChanged()    { cn.wakeReader() }

// OutputHasRoom is called by the socket, see [socket.Roomer].
func (cn *conn) OutputHasRoom() {
	if cn.queue.PullBytes() > 0 {
		cn.peer.workers.Resume(&cn.queue)
	}
	cn.wakeReader()
}

// Reclaim is called by the connection's budgets, see [packet.Owner].
func (cn *conn) Reclaim(b *packet.Budget, held int64) {
	what := "a packet that has not come as a whole"
	if b == &cn.outBudget {
		what = "packets that it does not read"
	}
	go cn.fail(&evicted{held, what})
}

// evicted is the end of a session whose memory others needed.
type evicted struct {
	held int64
	what string // had taken the memory
}

func (e *evicted) Error() string {
	return fmt.Sprintf("others needed the %d bytes of memory that %s had taken, for longest of all", e.held, e.what)
}
