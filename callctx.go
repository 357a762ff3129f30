package tp

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

// The header of a pull says how much is left of the time that its caller has, and a packet of type cancel
// says that the caller has given up. The handler sees both in its context, which is made when the handler
// asks for one.

// ErrSessionEnded is the context.Cause of the context of a handler whose session's connection has ended.
var ErrSessionEnded = errors.New("tp: the session's connection has ended")

// errHandlerReturned is the context.Cause of a handler's context after the call.
var errHandlerReturned = errors.New("tp: the call is over")

// ownCtx is the context of a handler, with the functions that end it.
type ownCtx struct {
	context.Context
	cancel context.CancelCauseFunc
	stop   context.CancelFunc
}

func newOwnCtx(deadline time.Time) *ownCtx {
	c := new(ownCtx)
	c.Context, c.cancel = context.WithCancelCause(context.Background())
	if !deadline.IsZero() {
		c.Context, c.stop = context.WithDeadline(c.Context, deadline)
	}
	return c
}

func (c *ownCtx) cancelWith(cause error) {
	c.cancel(cause)
	if c.stop != nil {
		c.stop()
	}
}

// orNone returns the context that a program has given. For nil it returns a context that has ended, so that
// the call fails with an error that says so.
func orNone(ctx context.Context) context.Context {
	if ctx == nil {
		return nilContext{}
	}
	return ctx
}

// nilContext stands for a nil context. It has ended with errNoContext.
type nilContext struct{}

var errNoContext = errors.New("the context is nil; expected one such as context.Background()")

var ended = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func (nilContext) Deadline() (deadline time.Time, ok bool) { return time.Time{}, false }

func (nilContext) Done() <-chan struct{} { return ended }

func (nilContext) Err() error { return errNoContext }

func (nilContext) Value(interface{}) interface{} { return nil }

// ctxXerror is the error of a call whose context is done. What says what that means for the call.
func ctxXerror(ctx context.Context, what string) *xerror {
	err := ctx.Err()
	if err == errNoContext {
		return newXerror(StatusBadRequest, what+": "+err.Error(), err)
	}
	code := StatusCanceled
	if errors.Is(err, context.DeadlineExceeded) {
		code = StatusDeadlineExceeded
	}
	if cause := context.Cause(ctx); cause != err {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	return newXerror(code, StatusText(code)+", "+what, err)
}

// timeoutOf returns the header's timeout when left is left of the time: in milliseconds, rounded up, and at
// least one, since zero is no bound.
func timeoutOf(left time.Duration) int64 {
	return max(int64(math.Ceil(float64(left)/float64(time.Millisecond))), 1)
}

// processStart is what times of arrival are counted from: a time.Duration takes a third of the memory of a
// time.Time.
var processStart = time.Now()

// deadlineOf returns when the time of a pull is over that arrived with the header's timeout; zero for no
// bound.
func deadlineOf(timeout int64, arrived time.Duration) time.Time {
	if timeout <= 0 {
		return time.Time{}
	}
	return processStart.Add(arrived + time.Duration(min(timeout, maxTimeout))*time.Millisecond)
}

// maxTimeout is the longest timeout in milliseconds: a hundred years. A longer one is taken for it.
const maxTimeout = 100 * 365 * 24 * 60 * 60 * 1000
