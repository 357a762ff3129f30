package tp

import (
	"io"
	"time"
)

// A side that ends its output and reads on, as a client in a pipe of commands does, is
// answered: to this side its connection has ended, as nothing can be asked there any more
// and nobody may be there, but what was read of it is handled, and the replies go out before
// the socket is closed. Whether there is somebody shows when something is written. As in
// net/http the contexts of the handlers end at once.
//
// A link that lingers so is counted as running until its socket is closed, and its session
// as one of PeerConfig.MaxSessions.

// lingerLocked is called at the end of the link, before others see it: it reports whether
// the socket is to be closed later, by finish. The session's mu is held.
func (l *link) lingerLocked(cause error) bool {
	if cause != io.EOF || l.gone.Load() || l.running.Load() == 0 && !l.sock.Unsent() {
		return false
	}
	l.running.Add(1) // until finish is over
	l.lingers.Store(true)
	l.peer.keeper.Expect()
	return true
}

// finishIfIdle finishes a link that lingers, once, when nothing of it runs any more but that.
func (l *link) finishIfIdle(running int64) {
	if running == 1 && l.lingers.Load() && !l.finishing.Swap(true) {
		go l.finish(max(l.sock.WriteTimeout(), lingerTime))
	}
}

// abandon closes the socket of a link that lingers, at once.
func (l *link) abandon() {
	if l.lingers.Load() && !l.finishing.Swap(true) {
		go l.finish(0)
	}
}

// finish closes the socket when all is sent, or the time is over.
func (l *link) finish(wait time.Duration) {
	if wait > 0 {
		_ = l.sock.CloseWrite(wait)
	}
	_ = l.sock.Close()
	l.peer.workers.DropPulls(&l.queue)
	l.peer.hub.leave(l.sess)
	l.handlerDone()
}
