package credit

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Keys of the metadata of a packet that speaks of credit. All values are decimal numbers. What is no bound is
// None.
const (
	KeyWindow  = "push_window" // bytes; if it is None there is no KeyAmount
	KeyAmount  = "pushes"      // how many bytes may have been sent since the connection began
	KeyPlaces  = "pulls"       // how many pulls may be unanswered
	KeyStreams = "streams"     // how many streams may be open; a side that knows no streams says nothing
	KeyParts   = "parts"       // whether large packets may come in parts; a side that knows them says "yes"
	None       = "none"
	Yes        = "yes"
)

// First is the amount that may be sent before the receiver has said anything.
const First = 64 << 10

// Conn sends what a Flow has to say. Its methods do not wait, and are called by many goroutines.
type Conn interface {
	// AskForCredit sends a packet that asks for credit, with the metadata. A peer that does not know credit
	// answers it with a reply that says so, and then Flow.Refused is called.
	AskForCredit(meta map[string]string)
	// SendCredit sends a packet that grants credit, with the metadata.
	SendCredit(meta map[string]string)
	// CreditWindow returns how many bytes the other side may have in what this side has not handled; a
	// negative number is no bound, and one that is less than First is taken for that.
	CreditWindow() int64
	// CreditPlaces returns how many of the other side's pulls may be unanswered, and how many of its streams
	// may be open; negative numbers are no bounds.
	CreditPlaces() (pulls, streams int)
	// OtherTakesParts is called when the other side has said that it takes large packets in parts.
	OtherTakesParts()
	// CreditEnd returns why nothing can be sent any more; nil if something can. It must return an error
	// before Flow.End is called.
	CreditEnd() error
}

// Flow is the credit of one connection, in both directions. It says to the other side what has to be said:
//
//   - A sender that has sent half of First, or to which half of FirstPlaces pulls are not answered, asks for
//     credit, and goes on. So a connection on which little is sent never speaks of credit. From then on the
//     sender has to keep to what it is granted.
//   - A receiver that is asked answers with what it takes, and the first grant. It does so once.
//   - The question says what the side that asks takes itself, so that one question does for both.
//   - A side that does not know credit refuses. Then nothing bounds the sender.
//
// All methods are safe for concurrent use. Init makes a Flow ready. It takes little memory until something is
// sent.
type Flow struct {
	// Pulls are the places of the pulls that this side makes.
	Pulls Places

	conn  Conn
	out   atomic.Pointer[outgoing]
	in    atomic.Pointer[incoming]
	asked atomic.Bool // AskForCredit was called
	heard atomic.Pointer[word]
}

// word is what the other side has said of itself.
type word struct {
	once sync.Once     // for the fields below
	said chan struct{} // closed when the other side has spoken, or nothing can come any more
	// streams reports whether the other side knows streams, and err why nothing can come any more.
	streams bool
	err     error
}

// outgoing is what this side sends.
type outgoing struct {
	Sender

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

// Init makes the Flow ready. Taken counts the pulls that are complete.
func (f *Flow) Init(conn Conn, taken *atomic.Uint64) {
	f.conn = conn
	f.Pulls.Init(taken)
}

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
	f.tried(o, ok)
	return cost, ok
}

// TryTakeAll is [Sender.TryTakeAll].
func (f *Flow) TryTakeAll(amount uint64) (cost uint64, ok bool) {
	o := f.sender()
	cost, ok = o.TryTakeAll(amount)
	f.tried(o, ok)
	return cost, ok
}

// tried is called when a take has been tried: it asks for credit in time, and notes since when there is none.
func (f *Flow) tried(o *outgoing, ok bool) {
	if !o.Known() && (!ok || o.Sent() > First/2) {
		f.Ask()
	}
	if !ok {
		f.Stalled()
	}
}

// Take is [Sender.Take].
func (f *Flow) Take(ctx context.Context, amount uint64, waits func()) (cost uint64, err error) {
	o := f.sender()
	if !o.Known() {
		f.Ask()
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

// Ask asks for credit, once. It does not wait.
func (f *Flow) Ask() {
	if !f.asked.Load() && !f.asked.Swap(true) {
		f.sender() // which takes in the answer
		f.conn.AskForCredit(f.self())
	}
}

// self is what this side says of itself.
func (f *Flow) self() map[string]string {
	bound := func(n int) string {
		if n < 0 {
			return None
		}
		return strconv.Itoa(n)
	}
	pulls, streams := f.conn.CreditPlaces()
	return map[string]string{KeyPlaces: bound(pulls), KeyStreams: bound(streams), KeyParts: Yes}
}

// TryPull takes a place for a pull if one is free, and returns the pull's number.
func (f *Flow) TryPull() (number uint64, ok bool) {
	number, ok, scarce := f.Pulls.Try()
	if scarce {
		f.Ask()
	}
	return number, ok
}

// word returns what the other side has said, or will say.
func (f *Flow) word() *word {
	if w := f.heard.Load(); w != nil {
		return w
	}
	w := &word{said: make(chan struct{})}
	if !f.heard.CompareAndSwap(nil, w) {
		return f.heard.Load()
	}
	if err := f.conn.CreditEnd(); err != nil { // End may have come too early for this
		w.say(false, err)
	}
	return w
}

func (w *word) say(streams bool, err error) {
	w.once.Do(func() {
		w.streams, w.err = streams, err
		close(w.said)
	})
}

// KnowsStreams asks the other side, unless it has spoken, and waits, no longer than ctx lasts, until it has
// said whether it knows streams. It calls waits when the wait is seen by Waits.
func (f *Flow) KnowsStreams(ctx context.Context, waits func()) (bool, error) {
	w := f.word()
	f.Ask()
	select {
	case <-w.said:
		return w.streams, w.err
	default:
	}
	waits()
	select {
	case <-w.said:
		return w.streams, w.err
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// hear takes in what the other side has said of itself.
func (f *Flow) hear(meta map[string]string) error {
	most := uint64(Unbounded)
	if said, ok := meta[KeyPlaces]; ok && said != None {
		n, err := number(KeyPlaces, said)
		if err != nil {
			return err
		}
		most = n
	}
	said, streams := meta[KeyStreams]
	if streams && said != None {
		if _, err := number(KeyStreams, said); err != nil {
			return err
		}
	}
	if meta[KeyParts] == Yes {
		f.conn.OtherTakesParts()
	}
	f.Pulls.Open(most)
	f.word().say(streams, nil)
	return nil
}

// Bound reports whether the other side keeps to what it is granted.
func (f *Flow) Bound() bool {
	in := f.in.Load()
	return in != nil && in.bound.Load()
}

// Pushed reports whether anything was sent for which credit may come.
func (f *Flow) Pushed() bool {
	s := f.out.Load()
	return s != nil && s.Sent() > 0
}

// Waits reports whether anything waits for the other side's credit, or for its answer to the question.
func (f *Flow) Waits() bool {
	if s := f.out.Load(); s != nil && s.Waiting() > 0 || f.Pulls.Waiting() > 0 {
		return true
	}
	w := f.heard.Load()
	if w == nil {
		return false
	}
	select {
	case <-w.said:
		return false
	default:
		return f.asked.Load()
	}
}

// Refused is called when the other side has said that it does not know credit.
func (f *Flow) Refused() {
	f.Pulls.Open(Unbounded)
	f.word().say(false, nil)
	if s := f.out.Load(); s != nil && !s.Known() {
		_ = s.Open(Unbounded, Unbounded)
	}
}

// Asked is called when the other side asks for credit, with the question's metadata. From then on the other
// side keeps to what it is granted. Only the first time counts, and Asked reports whether this is it. After
// an error, which names what makes no sense, the connection is to be ended.
func (f *Flow) Asked(meta map[string]string) (first bool, err error) {
	in := f.receiver()
	if in.bound.Swap(true) {
		return false, nil
	}
	if err := f.hear(meta); err != nil {
		return false, err
	}
	grant, _ := in.Grant()
	answer := f.self()
	for k, v := range in.says(grant) {
		answer[k] = v
	}
	f.conn.SendCredit(answer)
	return true, nil
}

// says returns the metadata that grants the amount. Each grant has the window with it, because several
// goroutines send grants, and any of them may be the first to arrive.
func (in *incoming) says(grant uint64) map[string]string {
	meta := map[string]string{KeyWindow: None}
	if in.Window() != Unbounded {
		meta[KeyWindow] = strconv.FormatUint(in.Window(), 10)
		meta[KeyAmount] = strconv.FormatUint(grant, 10)
	}
	return meta
}

// Granted is called with the metadata of a packet that grants credit. After an error, which names what makes
// no sense, the connection is to be ended.
func (f *Flow) Granted(meta map[string]string) error {
	if !f.asked.Load() {
		return fmt.Errorf("%w: this side has not asked for it", ErrGrant)
	}
	if _, first := meta[KeyPlaces]; first {
		if err := f.hear(meta); err != nil {
			return err
		}
	}
	s := f.sender()
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
		f.conn.SendCredit(in.says(grant))
	}
}

// Taken returns how much of what has come was handled so far.
func (f *Flow) Taken() uint64 {
	if in := f.in.Load(); in != nil {
		return in.Taken()
	}
	return 0
}

// Interrupt ends all waits for credit of now with the error.
func (f *Flow) Interrupt(err error) {
	f.Pulls.Interrupt(err)
	if s := f.out.Load(); s != nil {
		s.Interrupt(err)
	}
}

// End ends all waits, and all that follow, with the error.
func (f *Flow) End(err error) {
	f.Pulls.End(err)
	if w := f.heard.Load(); w != nil {
		w.say(false, err)
	}
	if o := f.out.Load(); o != nil {
		o.End(err)
	}
}

// number parses a number of bytes.
func number(key, text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%w: %s is %.40q, expected a decimal number", ErrGrant, key, text)
	}
	return n, nil
}
