package nats

import (
	"errors"
	"fmt"

	tp "github.com/henrylee2cn/teleport"
)

// Errors that errors.Is finds in what this package returns. All of those are a tp.Xerror too.
var (
	// ErrAway: there is no connection to the broker. Its status is tp.StatusServiceUnavailable. What is on
	// this server works as ever; what needs others does when the broker is back.
	ErrAway = errors.New("nats: the broker is away")
	// ErrNotConnected: no server has a session with the id or the identity. Its status is
	// tp.StatusNotFound, and tp.NotRun is true of it.
	ErrNotConnected = errors.New("nats: connected nowhere")
	// ErrClosed: the hub was closed.
	ErrClosed = errors.New("nats: the hub is closed")
	// ErrVersion: a server has a hub that speaks another version.
	ErrVersion = errors.New("nats: a hub of another version")
)

// failure is a tp.Xerror for which errors.Is finds another error too.
type failure struct {
	tp.Xerror
	is error
}

func (f *failure) Unwrap() []error { return []error{f.Xerror, f.is} }

// unrun is the failure of what was not begun.
func unrun(code int32, is error, format string, args ...interface{}) tp.Xerror {
	return &failure{tp.WithNotRun(tp.NewXerror(code, fmt.Sprintf(format, args...))), is}
}

// unknown is the failure of what may have happened, or have happened in part.
func unknown(code int32, is error, format string, args ...interface{}) tp.Xerror {
	return &failure{tp.NewXerror(code, fmt.Sprintf(format, args...)), is}
}

func away(err error) tp.Xerror {
	if err == nil {
		err = ErrAway
	}
	return unrun(tp.StatusServiceUnavailable, errors.Join(ErrAway, err),
		"nothing was sent: the broker cannot be reached, or takes nothing: %v", err)
}

func closed() tp.Xerror {
	return unrun(tp.StatusServiceUnavailable, ErrClosed, "nothing was sent: the hub is closed")
}

func tooLarge(size, most int) tp.Xerror {
	return tp.WithNotRun(tp.NewXerror(tp.StatusTooLarge, fmt.Sprintf(
		"nothing was sent: %d bytes are more than the broker takes in a message, %d (its max_payload)", size,
		most)))
}
