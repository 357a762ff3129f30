package packet

import (
	"bytes"
	"errors"
)

// ErrTLS is what errors.Is finds when TLS comes where a frame should: one side has it on and
// the other has not.
var ErrTLS = errors.New("it looks like TLS, which is on for the other side only")

// LooksLike says what the first bytes of a connection are that do not begin a frame, in
// words that an error may end with; "" if they look like nothing in particular. Four bytes
// are enough, and five for a frame.
func LooksLike(b []byte) string {
	switch {
	case len(b) >= 3 && 0x14 <= b[0] && b[0] <= 0x17 && b[1] == 3 && b[2] <= 4:
		return ErrTLS.Error()
	case bytes.HasPrefix(b, []byte("HTTP")):
		return "it looks like the answer of an HTTP server"
	case bytes.HasPrefix(b, []byte("SSH-")):
		return "it looks like SSH"
	case len(b) >= 5 && b[0] == 0 && b[1] == 0 && (b[4] == 'p' || b[4] == 'j'):
		return "it looks like a packet of this protocol without TLS, which is on for this side only"
	}
	for _, method := range []string{"GET ", "HEAD", "POST", "PUT ", "DELE", "CONN", "OPTI", "TRAC", "PATC",
		"PRI "} {
		if bytes.HasPrefix(b, []byte(method)) {
			return "it looks like an HTTP request"
		}
	}
	return ""
}
