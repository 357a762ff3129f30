package tp

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"time"

	"github.com/henrylee2cn/teleport/packet"
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

// Context is the call's.
func (c *call) Context() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.valuesLocked()
	if v.ctx != nil {
		return v.ctx
	}
	if c.exchange == nil || c.over {
		own := newOwnCtx(time.Time{})
		own.cancelWith(errHandlerReturned)
		v.ctx = own
		return own
	}
	if c.typ != packet.TypePull && c.typ != packet.TypePush { // nothing has come yet
		return context.Background()
	}
	own := newOwnCtx(c.deadlineLocked())
	v.ctx, v.own = own, own
	switch {
	case v.gone != nil:
		own.cancelWith(v.gone)
	case !c.enterLocked():
		own.cancelWith(ErrSessionEnded)
	}
	return own
}

// leave is the end of a call: its context ends, and who asks for it later finds it
// ended.
func (c *call) leave() {
	c.giveBack()
	c.mu.Lock()
	charged := c.closeLocked()
	own := c.leaveLocked()
	c.mu.Unlock()
	c.conn.inBudget.Give(charged)
	if own != nil {
		own.cancelWith(errHandlerReturned)
	}
}

// leaveLocked returns the context that the caller is to end, nil if there is none.
func (c *call) leaveLocked() *ownCtx {
	c.over = true
	if c.entered {
		c.entered = false
		c.conn.calls.Remove(&c.entry)
	}
	if c.values == nil {
		return nil
	}
	return c.values.own
}

// enter takes the call in among those that are told of their ends.
func (c *call) enter() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over && !c.enterLocked() {
		c.valuesLocked().gone = ErrSessionEnded
	}
}

// enterLocked reports false if the connection has ended.
func (c *call) enterLocked() bool {
	if !c.entered {
		c.entered = c.conn.calls.Add(&c.entry, maphash.String(idSeed, c.id), c)
	}
	return c.entered
}

// idSeed makes it hard to choose ids that meet in one place of a table of calls.
var idSeed = maphash.MakeSeed()

// end tells the call that nobody waits for it any more, if it is the pull with the id, or whatever it is
// where that is nil.
func (c *call) callerGone(id []byte, cause error) {
	c.mu.Lock()
	var own *ownCtx
	if !c.over && (id == nil || c.typ == packet.TypePull && c.id == string(id)) {
		v := c.valuesLocked()
		if v.gone == nil {
			v.gone = cause
		}
		own = v.own
	}
	c.mu.Unlock()
	if own != nil {
		own.cancelWith(cause)
	}
}

// heardCancel is told that the other side does not wait for the pull with the id any more.
func (cn *conn) heardCancel(id []byte) {
	for _, c := range cn.calls.Find(maphash.Bytes(idSeed, id)) {
		c.callerGone(id, context.Canceled)
	}
}

// endCalls ends the contexts of all calls.
func (cn *conn) endCalls() {
	for _, c := range cn.calls.Close() {
		c.callerGone(nil, ErrSessionEnded)
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
func (nilContext) Done() <-chan struct{}                   { return ended }
func (nilContext) Err() error                              { return errNoContext }
func (nilContext) Value(interface{}) interface{}           { return nil }

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

// deadlineLocked is the caller's, as this side knows it; zero if there is none.
func (c *call) deadlineLocked() time.Time {
	if c.arrived == 0 { // a hook has put in a timeout
		c.arrived = time.Since(processStart)
	}
	return deadlineOf(c.inHdr.Timeout, c.arrived)
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

// cancelPull tells the other side that nobody waits for the pull any more.
func (cn *conn) cancelPull(id uint64) {
	cn.sendControl(&packet.Header{Id: string(appendPullId(nil, id)), Type: packet.TypeCancel})
}
