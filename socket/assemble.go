package socket

import (
	"fmt"
	"strconv"
	"time"

	"github.com/henrylee2cn/teleport/packet"
)

const (
	// maxArriving is how many packets may arrive in parts at a time: more than a socket sends.
	maxArriving = 4 * maxTransfers
	// stallFactor is for how many times as long as a whole packet may take, a packet in parts may stand still
	// while others come.
	stallFactor = 4
	// maxPart is how large a part may be, and stepOfPart how many bytes count as progress.
	maxPart    = 4 << 20
	stepOfPart = 64 << 10
)

// assembly puts packets together of which parts have come. Only the goroutine that reads uses it.
type assembly struct {
	packets map[uint64]*arriving
	came    uint64    // bytes of parts
	waitsAt uint64    // came when the budget was told last that the reader waits
	checkAt time.Time // when to look next for packets that do not go on
	whole   *arriving // the packet whose header was read last; nil for one that came in one piece
}

// arriving is a packet of which parts have come.
type arriving struct {
	head    []byte // its two lengths, and the header between them, which takes less than when it is decoded
	cost    int64  // taken from the budget, beside what the body has
	body    Body
	length  int64 // of the body
	got     int64 // bytes of the body that have come
	refused error // why the body is not kept
	moved   time.Time
	mark    int64 // got at moved
}

// badPart returns an error that ends the connection.
func badPart(format string, args ...any) error { return &frameError{fmt.Errorf(format, args...)} }

// arrivingCost is how many bytes a packet takes that arrives in parts, beside its header and its body.
const arrivingCost = 512

// release gives up what has come.
func (r *reader) release(a *arriving) {
	a.body.Release()
	r.budget.Give(a.cost)
	a.cost = 0
}

// parting reports whether packets arrive in parts.
func (r *reader) parting() bool { return r.parts != nil && len(r.parts.packets) > 0 }

// dropWhole gives up what was not taken of the packet that was read last.
func (r *reader) dropWhole() {
	if r.parts == nil || r.parts.whole == nil {
		return
	}
	r.release(r.parts.whole)
	r.parts.whole = nil
}

// dropParts gives up all packets.
func (r *reader) dropParts() {
	if r.parts == nil {
		return
	}
	r.dropWhole()
	for _, a := range r.parts.packets {
		r.release(a)
	}
	if r.parting() {
		r.budget.Waits(false)
	}
	r.parts.packets = nil
}

// checkParts returns an error if the other side does not go on with a packet for much longer than a packet
// may take.
func (r *reader) checkParts() error {
	if r.frame == 0 || !r.parting() {
		return nil
	}
	now := time.Now()
	if now.Before(r.parts.checkAt) {
		return nil
	}
	r.parts.checkAt = now.Add(min(time.Second, r.frame/4))
	for _, a := range r.parts.packets {
		if now.Sub(a.moved) > stallFactor*r.frame {
			return badPart("of a packet in parts %d of %d bytes have come, and no more for %v",
				a.got, a.length, stallFactor*r.frame)
		}
	}
	return nil
}

// readPart reads the body of a part, whose header was read into v. If the part completes a packet, v becomes
// that packet's header, and readPart returns the length of its body. Otherwise v stays as it is.
func (s *Socket) readPart(v *packet.HeaderView) (int64, error) {
	r := &s.r
	r.refused = nil
	if r.body > maxPart {
		return 0, badPart("a part of %d bytes, expected %d at most", r.body, maxPart)
	}
	if len(v.Id) == 0 {
		return 0, s.heardCame()
	}
	number, err := strconv.ParseUint(string(v.Id), 10, 64)
	if err != nil {
		return 0, badPart("a part has the id %.40q, expected a decimal number", v.Id)
	}
	if r.parts == nil {
		r.parts = new(assembly)
	}
	if r.parts.packets == nil {
		r.parts.packets = make(map[uint64]*arriving)
	}
	p := r.parts
	a := p.packets[number]
	if r.body == 0 {
		if a != nil { // the other side does not go on
			r.release(a)
			r.doneWith(number)
		}
		return 0, nil
	}
	if a == nil {
		if len(p.packets) == maxArriving {
			return 0, badPart("%d packets come in parts, which is as many as may", maxArriving)
		}
		if a, err = r.firstPart(); err != nil {
			return 0, s.readFailure(err)
		}
		p.packets[number] = a
	}
	if a.got+r.body > a.length {
		return 0, badPart("parts of a packet have %d bytes of its body, which has %d",
			a.got+r.body, a.length)
	}
	a.got += r.body
	p.came += uint64(r.body)
	if a.got-a.mark >= stepOfPart || a.got == a.length {
		a.mark, a.moved = a.got, time.Now()
	}
	if p.came-p.waitsAt >= drainStep {
		p.waitsAt = p.came
		r.budget.Waits(true)
	}
	if a.refused == nil {
		if err := r.readInto(&a.body, a.length); err != nil {
			if Fatal(err) {
				return 0, s.readFailure(err)
			}
			a.refused = err
			a.body.Release()
		}
	}
	if a.refused != nil {
		if err := r.skip(); err != nil {
			return 0, s.readFailure(err)
		}
	}
	s.w.say(p.came)
	r.owes = true
	if a.got < a.length {
		return 0, nil
	}
	r.doneWith(number)
	if err := v.Decode(a.head[packet.LengthSize : len(a.head)-packet.LengthSize]); err != nil {
		r.release(a)
		return 0, &frameError{err}
	}
	p.whole, r.refused = a, a.refused
	return a.length, nil
}

// doneWith takes out a packet: all of it has come, or no more will.
func (r *reader) doneWith(number uint64) {
	p := r.parts
	if delete(p.packets, number); len(p.packets) == 0 {
		p.packets = nil // a map keeps the memory that it once had
		r.budget.Waits(false)
	}
}

// firstPart reads the header of the packet that the part begins.
func (r *reader) firstPart() (*arriving, error) {
	tooShort := func() error {
		return badPart("the first part of a packet has %d bytes, expected its whole header",
			r.body)
	}
	if r.body < packet.LengthSize {
		return nil, tooShort()
	}
	b, err := r.peek(packet.LengthSize, false)
	if err != nil {
		return nil, err
	}
	hlen, err := r.limits.HeaderLength(b)
	if err != nil {
		return nil, &frameError{err}
	}
	head := packet.LengthSize + hlen + packet.LengthSize
	if r.body < head {
		return nil, tooShort()
	}
	if b, err = r.peek(int(head), false); err != nil {
		return nil, err
	}
	a := &arriving{head: append([]byte(nil), b...), cost: head + arrivingCost, moved: time.Now()}
	if !r.budget.Take(a.cost) {
		return nil, badPart("a packet in parts with a header of %d bytes: %w", hlen, packet.ErrBudget)
	}
	a.length, a.refused = r.limits.BodyLength(b[head-packet.LengthSize:])
	a.body.budget = r.budget
	r.discard(len(b))
	r.body -= head
	r.parts.came += uint64(head)
	var v packet.HeaderView
	if err := v.Decode(a.head[packet.LengthSize : len(a.head)-packet.LengthSize]); err != nil {
		r.release(a)
		return nil, &frameError{err}
	}
	if v.Type == packet.TypePart || a.length == 0 {
		r.release(a)
		return nil, badPart("a packet of type %d with a body of %d bytes comes in parts", v.Type,
			a.length)
	}
	if len(r.parts.packets) == 0 {
		r.parts.waitsAt = r.parts.came
		r.budget.Waits(true)
	}
	return a, nil
}

// heardCame takes in how many bytes of parts the other side says have come.
func (s *Socket) heardCame() error {
	r := &s.r
	const most = 20
	if r.body > most {
		return badPart("a part without an id has %d bytes, expected a decimal number", r.body)
	}
	b, err := r.peek(int(r.body), false)
	if err != nil {
		return s.readFailure(err)
	}
	total, err := strconv.ParseUint(string(b), 10, 63)
	if err != nil {
		return badPart("a part without an id has the body %.40q, expected a decimal number", b)
	}
	r.discard(len(b))
	r.body = 0
	if err := s.w.came(total); err != nil {
		return &frameError{err}
	}
	return nil
}
