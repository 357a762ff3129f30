package workers

import "time"

// The goroutines of a Pool.

type worker struct{ next chan Job } // with room for one; nil ends it

const (
	maxIdle    = 1 << 10
	sweepEvery = time.Second
)

// launchLocked runs c.
func (w *Pool) launchLocked(c Job) { w.give(w.takeIdleLocked(c), c) }

// startLocked is launchLocked that unlocks w, as soon as it can.
func (w *Pool) startLocked(c Job) {
	k := w.takeIdleLocked(c)
	w.mu.Unlock()
	w.give(k, c)
}

// takeIdleLocked counts that c runs, and returns an idle worker for it; nil if there is none.
func (w *Pool) takeIdleLocked(c Job) *worker {
	w.runsLocked(c)
	last := len(w.idle) - 1
	if last < 0 {
		return nil
	}
	k := w.idle[last]
	w.idle = w.idle[:last]
	w.spare = min(w.spare, last)
	return k
}

// give has the worker run c, or a new one if it is nil. It does not need mu, and does not wait.
func (w *Pool) give(k *worker, c Job) {
	if k == nil {
		go w.work(c)
		return
	}
	k.next <- c
}

// work is a worker's goroutine. It ends when it is not needed, or when a handler
// ends it.
func (w *Pool) work(c Job) {
	var k *worker
	own := c.Queue()
	var lane *Lane
	defer func() {
		if c != nil { // a handler has called runtime.Goexit
			w.Ended(own, lane)
		}
	}()
	for c != nil {
		own = c.Queue()
		lane, _ = c.Lane()
		if w.hold(c) {
			lane = nil // it stays the call's
		} else {
			c.Run()
		}
		if k == nil {
			k = &worker{make(chan Job, 1)}
		}
		var more bool
		if c, more = w.rest(k, own, lane); c == nil && more {
			c = <-k.next
		}
	}
}

// rest counts that a call of the connection has ended. It returns the worker's next call, or whether the
// worker may wait for one.
func (w *Pool) rest(k *worker, own *Queue, l *Lane) (c Job, wait bool) {
	defer own.owner.QueueChanged()
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.nextLocked(own, l); c != nil {
		w.runsLocked(c)
		return c, true
	}
	if w.closed || len(w.idle) >= maxIdle {
		return nil, false
	}
	w.idle = append(w.idle, k)
	if !w.sweeping {
		w.sweeping = true
		w.spare = 0
		time.AfterFunc(sweepEvery, w.sweep)
	}
	return nil, true
}

// sweep ends the workers that were idle all the time since the last sweep.
func (w *Pool) sweep() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.endLocked(w.spare)
	if w.sweeping = w.spare > 0; w.sweeping {
		time.AfterFunc(sweepEvery, w.sweep)
	}
}

func (w *Pool) endLocked(n int) {
	for _, k := range w.idle[:n] {
		k.next <- nil
	}
	w.idle = append(w.idle[:0:0], w.idle[n:]...)
	w.spare = len(w.idle)
}

// Close ends the workers that are idle, and the others when they are.
func (w *Pool) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.endLocked(len(w.idle))
}

// Idle returns how many goroutines wait for a call.
func (w *Pool) Idle() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.idle)
}
