package tp

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/teleport/packet"
)

// A call's time and its end travel with it: what is left of the caller's deadline is
// in the pull's header, and a packet of its own says that the caller has given up.
// The other side's handler sees both in its context, which is made when it asks.

// contexts is what a link knows of the contexts of the calls that it has brought.
type contexts struct {
	n atomic.Int32 // len(asked) + len(early), to be read without mu

	mu sync.Mutex // guards the fields below
	// asked are the calls whose handler or hooks have asked for their context.
	asked map[ctxKey]*packetCtx
	// early are the ids of pulls whose callers gave up before that.
	early map[string]struct{}
	ended bool // the link
}

// ctxKey is a pull's id, or a push, or a pull whose id is another's too.
type ctxKey struct {
	id   string
	call *packetCtx
}

// maxEarly bounds the ids that are kept of one link, and maxEarlyId their lengths.
const (
	maxEarly   = defaultMaxSessionHandlers
	maxEarlyId = 64
)

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

func (c *ownCtx) end(cause error) {
	c.cancel(cause)
	if c.stop != nil {
		c.stop()
	}
}

// Context is the call's.
func (c *packetCtx) Context() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.valuesLocked()
	if v.ctx != nil {
		return v.ctx
	}
	if c.exchange == nil || c.over {
		own := newOwnCtx(time.Time{})
		own.end(errHandlerReturned)
		v.ctx = own
		return own
	}
	if c.typ != packet.TypePull && c.typ != packet.TypePush { // nothing has come yet
		return context.Background()
	}
	own := newOwnCtx(c.deadlineLocked())
	v.ctx, v.own = own, own
	l := &c.link.contexts
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		own.end(ErrSessionEnded)
		return own
	}
	if c.typ == packet.TypePull {
		v.key.id = strings.Clone(c.id)
	}
	if _, taken := l.asked[v.key]; taken || c.typ == packet.TypePush {
		v.key.call = c
	}
	if _, gone := l.early[v.key.id]; gone && c.typ == packet.TypePull {
		delete(l.early, v.key.id)
		own.end(context.Canceled)
	}
	if l.asked == nil {
		l.asked = make(map[ctxKey]*packetCtx)
	}
	l.asked[v.key] = c
	l.countLocked()
	return own
}

// leave is the end of a call: its context ends, and who asks for it later finds it
// ended.
func (c *packetCtx) leave() {
	c.mu.Lock()
	own := c.leaveLocked()
	c.mu.Unlock()
	if own != nil {
		own.end(errHandlerReturned)
	}
}

// leaveLocked returns the context that the caller is to end, nil if there is none.
func (c *packetCtx) leaveLocked() (own *ownCtx) {
	c.over = true // Context looks at it before it enters the call among those that have asked
	l := &c.link.contexts
	if l.n.Load() == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.values != nil && c.values.own != nil {
		own = c.values.own
		delete(l.asked, c.values.key)
	}
	if c.exchange != nil {
		delete(l.early, c.id)
	}
	l.countLocked()
	return own
}

func (l *contexts) countLocked() { l.n.Store(int32(len(l.asked) + len(l.early))) }

// gaveUp is told that the other side does not wait for the pull with the id any more.
func (l *contexts) gaveUp(id []byte, running *atomic.Int64) {
	l.mu.Lock()
	c := l.asked[ctxKey{id: string(id)}]
	if c == nil && running.Load() > 0 && len(id) <= maxEarlyId && !l.ended {
		if l.early == nil || len(l.early) >= maxEarly { // most of them are of pulls that are over
			l.early = make(map[string]struct{})
		}
		l.early[string(id)] = struct{}{}
		l.countLocked()
	}
	l.mu.Unlock()
	if c != nil {
		c.ownCtx().end(context.Canceled)
	}
}

func (c *packetCtx) ownCtx() *ownCtx {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.values.own
}

// begins forgets what was said about another pull with the id of one that comes.
func (l *contexts) begins(id []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.early, string(id))
	l.countLocked()
}

// idle forgets what was said about pulls that are over, or never came.
func (l *contexts) idle(running *atomic.Int64) {
	if l.n.Load() == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if running.Load() > 0 { // again
		return
	}
	l.early = nil
	l.countLocked()
}

// end ends all contexts.
func (l *contexts) end() {
	l.mu.Lock()
	l.ended = true
	asked := l.asked
	l.asked, l.early = nil, nil
	l.countLocked()
	l.mu.Unlock()
	for _, c := range asked {
		c.ownCtx().end(ErrSessionEnded)
	}
}

// ctxXerror is why a call fails whose context is done.
func ctxXerror(ctx context.Context, what string) *xerror {
	err := ctx.Err()
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
func (c *packetCtx) deadlineLocked() time.Time {
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
func (l *link) cancelPull(id uint64) {
	l.press(&packet.Header{Id: string(appendPullId(nil, id)), Type: packet.TypeCancel})
}
