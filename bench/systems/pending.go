package systems

import (
	"strconv"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/henrylee2cn/teleport/bench/payload"
)

// pending holds the calls in flight on one connection, for the systems that have
// no client of their own: socketAlone and the floors. It allocates nothing once
// it has grown.
type pending struct {
	mu    sync.Mutex // guards the fields below
	slots []*pendingCall
	free  []int
	err   error // why the connection ended
}

// pendingCall is one caller's call in flight. A caller has one, and uses it again
// and again.
type pendingCall struct {
	out  *payload.Message
	done chan error // with room for one
}

func newPendingCall() *pendingCall { return &pendingCall{done: make(chan error, 1)} }

// add enters the call and returns its number, or why the connection has ended.
func (p *pending) add(c *pendingCall) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return 0, p.err
	}
	if n := len(p.free); n > 0 {
		slot := p.free[n-1]
		p.free = p.free[:n-1]
		p.slots[slot] = c
		return slot, nil
	}
	p.slots = append(p.slots, c)
	return len(p.slots) - 1, nil
}

// take removes and returns the call with the number, nil if there is none.
func (p *pending) take(slot int) *pendingCall {
	p.mu.Lock()
	defer p.mu.Unlock()
	if slot < 0 || slot >= len(p.slots) || p.slots[slot] == nil {
		return nil
	}
	c := p.slots[slot]
	p.slots[slot] = nil
	p.free = append(p.free, slot)
	return c
}

// fail ends all calls in flight and refuses others.
func (p *pending) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return
	}
	p.err = err
	for i, c := range p.slots {
		if c != nil {
			p.slots[i] = nil
			c.done <- err
		}
	}
}

// wireID and slotOf turn a call's number into its id on the wire and back. An id
// is digits and not "0", as the framework's own are.
func wireID(slot int) string { return strconv.Itoa(slot + 1) }

func slotOf(id string) int {
	n, err := strconv.Atoi(id)
	if err != nil {
		return -1
	}
	return n - 1
}

func appendMessage(dst []byte, m *payload.Message) ([]byte, error) {
	return proto.MarshalOptions{}.MarshalAppend(dst, m)
}
