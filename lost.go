package tp

import (
	"fmt"
)

// Push is one way: nothing says of a single push that it was handled. A side that ends a session because it
// cannot keep up with the pushes says in its last packet how many of them it has taken, so that the other
// knows how many are lost.

// PushesLost is why a session has ended whose other side did not keep up with the pushes: those that waited
// there would have taken more than the memory that was left, or, if one of the two sides is of a version in
// which Push does not wait for credit, more than its PeerConfig.MaxSessionInput. errors.As finds it in the
// cause that PostDisconnect hooks get, and in [Session.Err].
type PushesLost struct {
	// Sent is how many pushes this side has handed to the connection, and Taken how many of
	// those the other side has taken: in the order in which they were sent, without gaps but
	// for those that waited there. The difference was not handled.
	Sent, Taken uint64
}

func (e *PushesLost) Error() string {
	return fmt.Sprintf("the other side did not keep up with the pushes: of %d that were sent it has "+
		"handled %d, the others are lost", e.Sent, e.Taken)
}

// metaTaken is the key of the last packet's metadata under which the number of pushes taken is.
const metaTaken = "pushes_taken"

// overflow is why this side ends a session that has pushed more than may wait here.
type overflow struct{ taken, dropped uint64 }

func (e *overflow) Error() string {
	return fmt.Sprintf("too many pushes wait to be handled, %d of them are dropped", e.dropped)
}

// evicted is why this side ends a session whose memory other sessions needed.
type evicted struct {
	held int64
	what string // had taken the memory
}

func (e *evicted) Error() string {
	return fmt.Sprintf("others needed the %d bytes of memory that %s had taken, for longest of all", e.held,
		e.what)
}
