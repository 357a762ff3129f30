package nats

import (
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	tp "github.com/henrylee2cn/teleport"
)

// waiting is who waits for answers of other hubs.
type waiting struct {
	last atomic.Uint64

	mu  sync.Mutex // guards the map
	all map[uint64]*waiter
}

// waiter is one of them. Its functions are called without a lock, by several goroutines.
type waiter struct {
	number uint64
	reply  func(msg *message, err error) // msg is nil where nobody listens on the subject
	fail   func(tp.Xerror)
	waits  bool         // for as long as its caller does, also where nothing is heard
	state  atomic.Int32 // one of those below
	heard  atomic.Int64 // when something came last, or it began, in nanoseconds since the epoch
}

const (
	isQueued int32 = iota
	isTaken        // it is published, or about to be
	isWithdrawn
)

// take reports whether the message is to be published.
func (w *waiter) take() bool { return w.state.CompareAndSwap(isQueued, isTaken) }

// withdraw reports whether the message was not published, and will not be.
func (w *waiter) withdraw() bool { return w.state.CompareAndSwap(isQueued, isWithdrawn) }

func (w *waiting) init() { w.all = make(map[uint64]*waiter) }

func (w *waiting) add(one *waiter) {
	one.number = w.last.Add(1)
	one.heard.Store(time.Now().UnixNano())
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all[one.number] = one
}

func (w *waiting) remove(one *waiter) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.all, one.number)
}

// reply takes in what has come on a subject of replies.
func (w *waiting) reply(m *nats.Msg) {
	number, err := strconv.ParseUint(m.Subject[strings.LastIndexByte(m.Subject, '.')+1:], 10, 64)
	if err != nil {
		return
	}
	w.mu.Lock()
	one := w.all[number]
	w.mu.Unlock()
	if one == nil {
		return
	}
	if len(m.Data) == 0 && m.Header.Get("Status") == "503" {
		one.reply(nil, nil)
		return
	}
	msg, err := parse(m.Data)
	if err == nil && msg.kind == kindRuns {
		one.heard.Store(time.Now().UnixNano())
		return
	}
	one.reply(&msg, err)
}

// fail ends all that wait, with why where the message was published.
func (w *waiting) fail(why func() tp.Xerror) {
	for _, one := range w.those(func(*waiter) bool { return true }) {
		if one.withdraw() {
			one.fail(away(nil))
		} else {
			one.fail(why())
		}
	}
}

// expire ends those of which nobody has been heard for so long: the server that had the session has gone, or
// its reply was lost.
func (w *waiting) expire(after time.Duration) {
	before := time.Now().Add(-after).UnixNano()
	for _, one := range w.those(func(one *waiter) bool { return !one.waits && one.heard.Load() < before }) {
		one.fail(unknown(tp.StatusConnClosed, nats.ErrTimeout,
			"nothing was heard for %v of the server that has the session, the outcome is unknown", after))
	}
}

func (w *waiting) those(is func(*waiter) bool) (list []*waiter) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, one := range w.all {
		if is(one) {
			list = append(list, one)
		}
	}
	return list
}
