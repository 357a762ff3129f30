package tp

import (
	"sync"
	"time"
)

// workers runs the calls of routes that are not quick, each on a goroutine of
// its own. A goroutine is used again: its stack has grown to what calls need. The
// zero value is ready to use.
type workers struct {
	mu sync.Mutex // guards the fields below
	// idle is a stack: the one that was used last is the next.
	idle     []*worker
	spare    int  // the fewest that were idle since the last sweep
	sweeping bool // a goroutine runs sweep
	closed   bool
}

type worker struct{ next chan *packetCtx } // with room for one; nil ends it

const (
	maxIdleWorkers = 1 << 10
	sweepWorkers   = time.Second
)

// run handles c and returns at once.
func (w *workers) run(c *packetCtx) {
	w.mu.Lock()
	last := len(w.idle) - 1
	if last < 0 {
		w.mu.Unlock()
		go w.work(c)
		return
	}
	k := w.idle[last]
	w.idle = w.idle[:last]
	w.spare = min(w.spare, last)
	w.mu.Unlock()
	k.next <- c
}

// work is a worker's goroutine. It ends when it is not needed, or when a handler
// ends it.
func (w *workers) work(c *packetCtx) {
	var k *worker
	for c != nil {
		c.handle()
		if k == nil {
			k = &worker{make(chan *packetCtx, 1)}
		}
		if !w.rest(k) {
			return
		}
		c = <-k.next
	}
}

// rest reports false if the worker is one too many.
func (w *workers) rest(k *worker) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || len(w.idle) >= maxIdleWorkers {
		return false
	}
	w.idle = append(w.idle, k)
	if !w.sweeping {
		w.sweeping = true
		w.spare = 0
		time.AfterFunc(sweepWorkers, w.sweep)
	}
	return true
}

// sweep ends the workers that were idle all the time since the last sweep.
func (w *workers) sweep() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.endLocked(w.spare)
	if w.sweeping = w.spare > 0; w.sweeping {
		time.AfterFunc(sweepWorkers, w.sweep)
	}
}

func (w *workers) endLocked(n int) {
	for _, k := range w.idle[:n] {
		k.next <- nil
	}
	w.idle = append(w.idle[:0:0], w.idle[n:]...)
	w.spare = len(w.idle)
}

// close ends the workers that are idle, and the others when they are.
func (w *workers) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.endLocked(len(w.idle))
}
