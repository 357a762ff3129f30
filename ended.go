package tp

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/henrylee2cn/teleport/internal/errno"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// plain says why a connection has ended in the words of somebody who reads the log, not in those of the
// socket, the system or the protocol.
func plain(cause error, sock *socket.Socket) error {
	text := ""
	var write *socket.WriteError
	isWrite := errors.As(cause, &write)
	switch {
	case cause == io.EOF:
		text = "the other side has closed the connection"
	case cause == ErrPeerClosed:
		text = "this peer was closed"
	case errors.Is(cause, socket.ErrOutputFull):
		text = fmt.Sprintf("the other side has not read for %v: there was no room for more output",
			sock.WriteTimeout())
	case isWrite && errors.Is(cause, os.ErrDeadlineExceeded):
		text = fmt.Sprintf("the other side has not read for %v", sock.WriteTimeout())
	case errors.Is(cause, os.ErrDeadlineExceeded) && !strings.Contains(cause.Error(), "not complete"):
		text = fmt.Sprintf("the other side has said nothing for %v, the read timeout", sock.ReadTimeout())
	case errors.Is(cause, packet.ErrHeader): // which says what it looks like
		return cause
	case errors.Is(cause, io.ErrUnexpectedEOF):
		text = "the other side has closed the connection in the middle of a packet"
	case errors.Is(cause, errno.Reset):
		text = "the other side, or the network, has reset the connection"
	case errors.Is(cause, errno.Pipe):
		text = "the other side has closed the connection, and does not read"
	case errors.Is(cause, errno.TimedOut):
		text = "the other side, or the network, does not answer any more"
	default:
		return cause
	}
	return &plainError{text, cause}
}

type plainError struct {
	text  string
	cause error
}

func (e *plainError) Error() string { return e.text }
func (e *plainError) Unwrap() error { return e.cause }

// ErrPeerClosed is what errors.Is finds when a peer that is closed, or shutting
// down, is asked for a new connection.
var ErrPeerClosed = errors.New("tp: the peer is closed")

var (
	// errClosedHere is the cause when this side has closed the session.
	errClosedHere = errors.New("closed by this side")
	// errGoesAway is why nothing more is sent to a side that shuts down.
	errGoesAway          = errors.New("the other side is shutting down")
	errClosedInHandshake = errors.New("closed during the handshake")
)

// ErrDuplicate is for hooks that recognise a push which has come before: a PostReadHeader hook whose
// error wraps it has the push dropped, as any error does, and the log says so at the level of debugging
// only.
var ErrDuplicate = errors.New("tp: the push has come before")

// ErrStreamOver is what errors.Is finds in the error of sending on a stream that has ended well. It is the
// context.Cause of a stream's context when the stream is over.
var ErrStreamOver = errors.New("tp: the stream is over")

// ErrStreamClosed is what errors.Is finds in the errors of a stream's methods after [Stream.Close], and of
// Send after [Stream.CloseSend].
var ErrStreamClosed = errors.New("tp: the stream was closed by this side")

// cutOff is the end of a connection whose other side was too slow for the pushes of a group.
type cutOff struct {
	waiting int
	bytes   int64
	more    int64 // bytes of a push for which there was no room
	atOnce  bool  // the push was not to wait
}

func (e *cutOff) Error() string {
	switch {
	case e.atOnce:
		return fmt.Sprintf("cut off by tp.Disconnect: %d pushes of groups, %d bytes, wait, and the other "+
			"side has taken none of them for that time", e.waiting, e.bytes)
	case e.more == 0:
		return fmt.Sprintf("the other side was too slow: %d pushes of groups, %d bytes, have waited without "+
			"a move, and others needed the memory", e.waiting, e.bytes)
	}
	return fmt.Sprintf("the other side was too slow: %d pushes of groups, %d bytes, have waited, and there "+
		"was no room for another one of %d bytes", e.waiting, e.bytes, e.more)
}
