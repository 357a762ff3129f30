package credit

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Keys of the metadata of a packet that speaks of credit. Both values are decimal numbers of bytes; a window
// that is no bound is None, and then there is no amount.
const (
	KeyWindow = "push_window"
	KeyAmount = "pushes" // how much may have been sent since the connection began
	None      = "none"
)

// First is the amount that may be sent before the receiver has said anything.
const First = 64 << 10

// Conn sends what a Flow has to say. Its methods do not wait, and are called by many goroutines.
type Conn interface {
	// AskForCredit sends a packet that asks for credit. A peer that does not know credit answers it with a
	// reply that says so, and then Flow.Refused is called.
	AskForCredit()
	// SendCredit sends a packet that grants credit, with the metadata.
	SendCredit(meta map[string]string)
	// CreditWindow returns how many bytes the other side may have in what this side has not handled; a
	// negative number is no bound, and one that is less than First is taken for that.
	CreditWindow() int64
	// CreditEnd returns why nothing can be sent any more; nil if something can. It must return an error
	// before Flow.End is called.
	CreditEnd() error
}

// Flow is the credit of one connection, in both directions. It says to the other side what has to be said:
//
//   - A sender that has sent half of First asks for credit, and goes on. So a connection on which little is
//     sent never speaks of credit. From then on the sender has to keep to what it is granted.
//   - A receiver that is asked answers with its window and the first grant. It does so once.
//   - A side that does not know credit refuses. Then nothing bounds the sender.
//
// All methods are safe for concurrent use. Init makes a Flow ready. It takes little memory until something is
// sent.
type Flow struct {
	conn Conn
	out  atomic.Pointer[outgoing]
	in   atomic.Pointer[incoming]
}

// outgoing is what this side sends.
type outgoing struct {
	Sender
	asked atomic.Bool // AskForCredit was called

	mu sync.Mutex // guards the fields below
	// stalled is when a take first found no credit, and granted what the limit was then.
	stalled time.Time
	granted uint64
}

// incoming is what the other side sends.
type incoming struct {
	Receiver
	bound atomic.Bool // the other side has asked for credit, and keeps to it
}

// Init makes the Flow ready.
func (f *Flow) Init(conn Conn) { f.conn = conn }

// Out returns the credit for what this side sends.
func (f *Flow) Out() *Sender { return &f.sender().Sender }

func (f *Flow) sender() *outgoing {
	if o := f.out.Load(); o != nil {
		return o
	}
	o := new(outgoing)
	o.Init(First)
	if !f.out.CompareAndSwap(nil, o) {
		return f.out.Load()
	}
	if err := f.conn.CreditEnd(); err != nil { // End may have come too early for this
		o.End(err)
	}
	return o
}

// TryTake is [Sender.TryTake].
func (f *Flow) TryTake(amount uint64) (cost uint64, ok bool) {
	o := f.sender()
	cost, ok = o.TryTake(amount)
	if !o.Known() && (!ok || o.Sent() > First/2) {
		f.ask(o)
	}
	if !ok {
		f.Stalled()
	}
	return cost, ok
}

// Take is [Sender.Take].
func (f *Flow) Take(ctx context.Context, amount uint64, waits func()) (cost uint64, err error) {
	o := f.sender()
	if !o.Known() {
		f.ask(o)
	}
	return o.Take(ctx, amount, waits)
}

// Stalled returns for how long there has been no grant since a take first found no credit, until now.
func (f *Flow) Stalled() time.Duration { return f.sender().stalls() }

func (o *outgoing) stalls() time.Duration {
	limit := o.limit.Load()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stalled.IsZero() || o.granted != limit {
		o.stalled, o.granted = time.Now(), limit
	}
	return time.Since(o.stalled)
}

// ask asks for credit, once.
func (f *Flow) ask(o *outgoing) {
	if !o.asked.Swap(true) {
		f.conn.AskForCredit()
	}
}

// Waits reports whether a take waits.
func (f *Flow) Waits() bool {
	s := f.out.Load()
	return s != nil && s.Waiting() > 0
}

// Refused is called when the other side has said that it does not know credit.
func (f *Flow) Refused() {
	if s := f.out.Load(); s != nil && !s.Known() {
		_ = s.Open(Unbounded, Unbounded)
	}
}

// Asked is called when the other side asks for credit. From then on it keeps to what it is granted. Only the
// first time counts, and Asked reports whether this is it.
func (f *Flow) Asked() bool {
	in := f.receiver()
	if in.bound.Swap(true) {
		return false
	}
	grant, _ := in.Grant()
	f.send(in, grant)
	return true
}

// send grants the amount. Each grant has the window with it, because several goroutines send grants, and any
// of them may be the first to arrive.
func (f *Flow) send(in *incoming, grant uint64) {
	meta := map[string]string{KeyWindow: None}
	if in.Window() != Unbounded {
		meta[KeyWindow] = strconv.FormatUint(in.Window(), 10)
		meta[KeyAmount] = strconv.FormatUint(grant, 10)
	}
	f.conn.SendCredit(meta)
}

// Granted is called with the metadata of a packet that grants credit. After an error, which names what makes
// no sense, the connection is to be ended.
func (f *Flow) Granted(meta map[string]string) error {
	s := f.out.Load()
	if s == nil {
		return fmt.Errorf("%w: this side has not asked for it", ErrGrant)
	}
	if meta[KeyWindow] == None {
		return s.Open(Unbounded, Unbounded)
	}
	window, err := number(KeyWindow, meta[KeyWindow])
	if err != nil {
		return err
	}
	amount, err := number(KeyAmount, meta[KeyAmount])
	if err != nil {
		return err
	}
	return s.Open(window, amount)
}

// Received counts a packet of the amount that has come. It returns what is to be given to Handled when the
// packet does not wait any more. The error wraps [ErrOverdrawn]. Received is called by one goroutine at a
// time.
func (f *Flow) Received(amount uint64) (cost uint64, err error) {
	in := f.receiver()
	if cost, err = in.Received(amount); !in.bound.Load() {
		err = nil
	}
	return cost, err
}

// receiver returns the Receiver. It is called by one goroutine at a time.
func (f *Flow) receiver() *incoming {
	in := f.in.Load()
	if in == nil {
		in = new(incoming)
		window := uint64(Unbounded)
		if most := f.conn.CreditWindow(); most >= 0 {
			window = uint64(most)
		}
		in.Init(window, First)
		f.in.Store(in)
	}
	return in
}

// Handled gives the other side credit back for a packet that has cost so much.
func (f *Flow) Handled(cost uint64) {
	if cost == 0 {
		return
	}
	in := f.in.Load()
	if grant, due := in.Handled(cost); due && in.bound.Load() {
		f.send(in, grant)
	}
}

// Interrupt ends all takes that wait now with the error.
func (f *Flow) Interrupt(err error) {
	if s := f.out.Load(); s != nil {
		s.Interrupt(err)
	}
}

// End ends all takes that wait, and all that follow, with the error.
func (f *Flow) End(err error) {
	if o := f.out.Load(); o != nil {
		o.End(err)
	}
}

// number parses a number of bytes.
func number(key, text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%w: %s is %.40q, expected a number of bytes", ErrGrant, key, text)
	}
	return n, nil
}
