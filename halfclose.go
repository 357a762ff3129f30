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
// A connection that lingers so is counted as running until its socket is closed, and its session
// as one of PeerConfig.MaxSessions.

// lingerLocked is called at the end of the connection, before others see it: it reports whether
// the socket is to be closed later, by finish. The session's mu is held.
func (cn *conn) lingerLocked(cause error) bool {
	if cause != io.EOF || cn.gone.Load() || cn.handlers.Load() == 0 && !cn.sock.Unsent() {
		return false
	}
	cn.handlers.Add(1) // until finish is over
	cn.lingers.Store(true)
	cn.peer.keeper.Expect()
	return true
}

// finishIfIdle finishes a connection that lingers, once, when nothing of it runs any more but that.
func (cn *conn) finishIfIdle(running int64) {
	if running == 1 && cn.lingers.Load() && !cn.finishing.Swap(true) {
		go cn.finish(max(cn.sock.WriteTimeout(), lingerTime))
	}
}

// abandon closes the socket of a connection that lingers, at once.
func (cn *conn) abandon() {
	if cn.lingers.Load() && !cn.finishing.Swap(true) {
		go cn.finish(0)
	}
}

// finish closes the socket when all is sent, or the time is over.
func (cn *conn) finish(wait time.Duration) {
	if wait > 0 {
		_ = cn.sock.CloseWrite(wait)
	}
	_ = cn.sock.Close()
	cn.peer.workers.DropPulls(&cn.queue)
	cn.peer.sessions.leave(cn.sess)
	cn.handlerDone()
}
