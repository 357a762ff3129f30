package tp

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/henrylee2cn/teleport/packet"
)

// Push is one way: nothing says of a single push that it was handled. But a side that ends a
// session because it cannot keep up with the pushes says in its last packet how many of them
// it has taken, so that the other knows how many are lost.

// PushesLost is why a session has ended whose other side did not keep up with the pushes:
// those that waited there would have taken more than its PeerConfig.MaxSessionInput, or than
// the memory that was left. errors.As finds it in the cause that PostDisconnect hooks get,
// and in [Session.Err].
type PushesLost struct {
	// Sent is how many pushes this side has handed to the connection, and Taken how many of
	// those the other side has taken: in the order in which they were sent, without gaps but
	// for those that waited there. The difference was not handled.
	Sent, Taken uint64
}

func (e *PushesLost) Error() string {
	return fmt.Sprintf("the other side did not keep up with the pushes: of %d that were sent it has handled %d, the others are lost", e.Sent, e.Taken)
}

// metaTaken is the key of the last packet's metadata that says how many.
const metaTaken = "pushes_taken"

// overflow is the end of a session that has pushed more than may wait.
type overflow struct{ taken, dropped uint64 }

func (e *overflow) Error() string {
	return fmt.Sprintf("too many pushes wait to be handled, %d of them are dropped", e.dropped)
}

// farewell tells the other side how many of its pushes were taken, if it was they that have
// ended the reading, and lets it read that: to close a connection with unread input throws
// away what was sent by it.
func (cn *conn) farewell(cause error) {
	var o *overflow
	if !errors.As(cause, &o) {
		return
	}
	cn.sendControl(&packet.Header{
		Type: packet.TypeGoAway, StatusCode: StatusOverloaded, Meta: map[string]string{metaTaken: strconv.FormatUint(o.taken, 10)},
	})
	cn.linger()
}

// heardFarewell is told what the other side has said of itself when it went away.
func (cn *conn) heardFarewell(code int32, meta map[string]string) {
	taken, err := strconv.ParseUint(meta[metaTaken], 10, 64)
	if code == StatusOverloaded && err == nil {
		cn.taken.Store(&taken)
	}
}

// why is the cause of the connection's end: what the other side has said, where the connection has
// only ended after that.
func (cn *conn) why(cause error) error {
	if taken := cn.taken.Load(); taken != nil && cause != errClosedHere {
		_ = cn.sock.CloseWrite(0) // what is counted from now on is refused
		sent := cn.sock.Posted()
		return &PushesLost{Sent: max(sent, *taken), Taken: *taken}
	}
	return cause
}

// Err returns why the session has ended, and nil while it has not. Errors.As finds
// [PushesLost] there if this side has pushed more than the other could take; io.EOF is the
// usual end by the other side. A session that was closed by this side has an error that says
// so.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause
}
