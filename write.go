package tp

import (
	"errors"

	"github.com/henrylee2cn/teleport/socket"
)

// errSocketClosed is what the socket says when this side has closed it.
var errSocketClosed = socket.ErrClosed

// push encodes and sends the output, which has no answer.
func (s *Session) push(x *exchange) error {
	frame, err := s.sock.EncodeInTurn(x.frameMem[:0], &x.out)
	if err != nil {
		return s.wrote(err)
	}
	return s.wrote(s.sock.PostFrame(frame))
}

// flush sends what quick handlers have left queued.
func (s *Session) flush() { _ = s.wrote(s.sock.Flush()) }

// wrote ends the session if a write has failed. An error of encoding leaves it
// as it was.
func (s *Session) wrote(err error) error {
	switch {
	case err == nil || !isWriteError(err):
	case errors.Is(err, errSocketClosed):
		// A socket that takes no more output because it is being drained must not be
		// closed for it: what it has sent may not have been read yet.
	case socket.Gone(err):
		// The other side may have sent much before it went. The reader ends the
		// session when it has read that.
		s.endWithin(drainLinger, err)
	default:
		_ = s.shut(err)
	}
	return err
}

func isWriteError(err error) bool {
	var we *socket.WriteError
	return errors.As(err, &we)
}
