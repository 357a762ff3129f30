package tp

import "errors"

// Quick handlers run on the goroutine that reads their session; what makes that safe is in
// internal/role.

// ReplaceReader is called by the watch when it has ended the reader's turn.
func (cn *conn) ReplaceReader() {
	if h := cn.quickRoute; h != nil {
		h.pace.HeldUp()
	}
	cn.inBudget.Force(callCost)
	cn.peer.workers.Adopt(&cn.queue)
	if c := cn.quickCall; c != nil {
		c.enter()
	}
	go cn.read(true)
}

// errReplaced ends a reader whose session has another.
var errReplaced = errors.New("the reader was replaced")

// enter begins an odd turn, in the route's handler of the call or, without one, a write. It
// reports false if the reader cannot be watched.
func (r *reader) enter(h *Handler, c *call) bool {
	if !r.turn.Watched() {
		return false
	}
	r.l.quickRoute, r.l.quickCall = h, c
	r.turn.Enter()
	return true
}

// leave ends an odd turn. It reports false if the reader was replaced.
func (r *reader) leave() bool {
	if !r.turn.Leave() {
		r.l.inBudget.Give(callCost)
		r.l.peer.workers.Ended(&r.l.queue)
		return false
	}
	return true
}
