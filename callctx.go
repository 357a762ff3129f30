package tp

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

// A call's time and its end travel with it: what is left of the caller's deadline is
// in the pull's header, and a packet of its own says that the caller has given up.
// The other side's handler sees both in its context, which is made when it asks.

// ErrSessionEnded is what context.Cause finds in the context of a handler whose
// session's connection has ended.
var ErrSessionEnded = errors.New("tp: the session's connection has ended")

// errHandlerReturned is the cause of the end of a context whose call is over.
var errHandlerReturned = errors.New("tp: the call is over")

// ownCtx is a context with what ends it.
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

// orNone is the context that a program has given, or one that has ended because there is none.
func orNone(ctx context.Context) context.Context {
	if ctx == nil {
		return nilContext{}
	}
	return ctx
}

// nilContext stands for a nil context: whatever is done with it fails, and says why.
type nilContext struct{}

var errNoContext = errors.New("the context is nil; expected one such as context.Background()")

var ended = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func (nilContext) Deadline() (deadline time.Time, ok bool) { return time.Time{}, false }

func (nilContext) Done() <-chan struct{} { return ended }

func (nilContext) Err() error { return errNoContext }

func (nilContext) Value(interface{}) interface{} { return nil }

// ctxXerror is why a call fails whose context is done.
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

// timeoutOf is what the header says about a deadline: milliseconds, rounded up, and
// at least one.
func timeoutOf(left time.Duration) int64 {
	return max(int64(math.Ceil(float64(left)/float64(time.Millisecond))), 1)
}

// processStart is what times of arrival are counted from, as a time.Time is large.
var processStart = time.Now()

// deadlineOf is what a header says about the time that a pull may take.
func deadlineOf(timeout int64, arrived time.Duration) time.Time {
	if timeout <= 0 {
		return time.Time{}
	}
	return processStart.Add(arrived + time.Duration(min(timeout, maxTimeout))*time.Millisecond)
}

// maxTimeout is the longest, in milliseconds: a hundred years.
const maxTimeout = 100 * 365 * 24 * 60 * 60 * 1000
