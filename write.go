package tp

import (
	"errors"

	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// errSocketClosed is what the socket says when this side has closed it.
var errSocketClosed = socket.ErrClosed

// write encodes and sends a packet. An error of encoding leaves the session as
// it was; an error of the connection ends it.
func (s *Session) write(p *packet.Packet) error {
	frame, err := s.sock.Encode(p)
	if err != nil {
		return err
	}
	return s.writeFrame(frame)
}

func (s *Session) writeFrame(f socket.Frame) error {
	err := s.sock.WriteFrame(f)
	// A socket that takes no more output because it is being drained must not be
	// closed for it: what it has sent may not have been read yet.
	if err != nil && !errors.Is(err, errSocketClosed) {
		_ = s.shut(err)
	}
	return err
}

func isWriteError(err error) bool {
	var we *socket.WriteError
	return errors.As(err, &we)
}
