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
func (l *link) unread() bool {
	return l.queue.PullBytes() >= maxPullBytes && l.sock.OutputFull()
}

// restWhileFull holds the reader while it is of no use to read on.
func (l *link) restWhileFull() {
	for l.rests() {
		if l.wake == nil {
			l.wake = make(chan struct{}, 1)
		}
		l.resting.Store(true)
		if l.rests() { // who wakes it looks at resting after that has changed which rests looks at
			<-l.wake
		}
		l.resting.Store(false)
	}
}

func (l *link) rests() bool {
	return l.queue.PullBytes() >= restBytes && l.sock.OutputBusy() && !l.ended.Load() && !l.pulls.awaited()
}

// wakeReader lets the reader look again whether to rest.
func (l *link) wakeReader() {
	if l.resting.Load() {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// OutputBusy and QueueChanged are called by the pool of workers, see [workers.Owner].
func (l *link) OutputBusy() bool { return l.sock.OutputBusy() }
func (l *link) QueueChanged()    { l.wakeReader() }

// OutputHasRoom is called by the socket, see [socket.Roomer].
func (l *link) OutputHasRoom() {
	if l.queue.PullBytes() > 0 {
		l.peer.workers.Resume(&l.queue)
	}
	l.wakeReader()
}

// Reclaim is called by the link's budgets, see [packet.Owner].
func (l *link) Reclaim(b *packet.Budget, held int64) {
	what := "a packet that has not come as a whole"
	if b == &l.outBudget {
		what = "packets that it does not read"
	}
	go l.shut(&evicted{held, what})
}

// evicted is the end of a session whose memory others needed.
type evicted struct {
	held int64
	what string // had taken the memory
}

func (e *evicted) Error() string {
	return fmt.Sprintf("others needed the %d bytes of memory that %s had taken, for longest of all", e.held, e.what)
}
