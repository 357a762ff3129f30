// Package stream holds the values of streams between the goroutine that reads a connection and the program,
// and keeps to the credit of both directions.
//
// A stream has a sending and a receiving half, which know nothing of each other. The receiver of values
// grants the sender how many bytes it may send; see package credit. A receiver that is not read so stops its
// own sender, and nobody else: the goroutine that reads the connection never waits for a stream.
package stream

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"

	"github.com/henrylee2cn/teleport/internal/credit"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

const (
	// Window is how many bytes of values may be sent before the receiver has granted any, and MaxWindow how
	// many may be unread when the window has grown.
	Window    = 256 << 10
	MaxWindow = 4 << 20
	// maxGrown is by how many bytes the windows of a connection's streams may have grown in all. What they
	// let the other sides send must fit into the connection's part of the budget, or streams would end for
	// want of memory whose sides keep to their credit.
	maxGrown = 8 << 20
)

// Keys of the metadata of a packet about a stream's credit: which side's values it is about. The value is how
// many bytes of them may have been sent since the stream began, in decimal digits, or one of the words below.
const (
	keyOpener   = "opener"
	keyAnswerer = "answerer"
	wordOver    = "over"  // from the receiver: it takes no more
	wordWaits   = "waits" // from the sender: it waits for credit
)

// Wire sends what a stream has to say. Its methods do not wait, and are called by many goroutines.
type Wire interface {
	// SendStreamCredit sends a packet about the credit of the stream with the id.
	SendStreamCredit(id string, meta map[string]string)
	// OtherPackets counts the packets of calls that have come by the connection, besides those of streams.
	OtherPackets() uint32
}

// ErrTakesNoMore is the error of sending to a side that has said that it takes no more values.
var ErrTakesNoMore = errors.New("the other side takes no more values of the stream")

// Stream is one stream, as the side that has opened it, or the other, sees it. Init makes it ready.
type Stream struct {
	// Out is the credit for what this side sends. In has what the other side has sent.
	Out credit.Sender
	In  In
	// Lane keeps what this side sends in order.
	Lane socket.Lane

	wire    Wire
	id      string
	answers bool   // the other side has opened it
	set     *Set   // in which it is
	window  uint64 // the largest that In has had; the mutex of set guards it

	mu     sync.Mutex // guards the fields below
	away   bool       // this side is shutting down
	onAway func()     // called then; nil for nothing
}

// Init makes the stream ready. Answers says that the other side has opened it. Memory for what is received is
// taken from the budget.
func (s *Stream) Init(wire Wire, id string, answers bool, budget *packet.Budget) {
	s.wire, s.id, s.answers = wire, id, answers
	s.Out.InitOpen(Window)
	s.In.init(s, budget)
}

// Id returns the stream's id.
func (s *Stream) Id() string { return s.id }

// OnAway has f called when this side is shutting down: at once if it is already. It is called once for a
// stream.
func (s *Stream) OnAway(f func()) {
	s.mu.Lock()
	s.onAway = f
	away := s.away
	s.mu.Unlock()
	if away {
		f()
	}
}

func (s *Stream) goAway() {
	s.mu.Lock()
	was, f := s.away, s.onAway
	s.away = true
	s.mu.Unlock()
	if !was && f != nil {
		f()
	}
}

// keys returns the keys of what this side sends and of what it receives.
func (s *Stream) keys() (sends, receives string) {
	if s.answers {
		return keyAnswerer, keyOpener
	}
	return keyOpener, keyAnswerer
}

// Waits tells the other side that this side waits for credit.
func (s *Stream) Waits() {
	sends, _ := s.keys()
	s.wire.SendStreamCredit(s.id, map[string]string{sends: wordWaits})
}

// Stop tells the other side that this side takes no more values, and lets go of those that were received.
func (s *Stream) Stop(err error) {
	s.In.Drop(err)
	_, receives := s.keys()
	s.wire.SendStreamCredit(s.id, map[string]string{receives: wordOver})
}

// grant tells the other side how much it may have sent.
func (s *Stream) grant(amount uint64) {
	_, receives := s.keys()
	s.wire.SendStreamCredit(s.id, map[string]string{receives: strconv.FormatUint(amount, 10)})
}

// heard takes in what the other side has said of what this side sends.
func (s *Stream) heard(said string) error {
	if said == wordOver {
		s.Out.End(ErrTakesNoMore)
		return nil
	}
	amount, err := strconv.ParseUint(said, 10, 63)
	if err != nil {
		return fmt.Errorf("%w: stream %.40q is granted %.40q, expected a decimal number",
			credit.ErrGrant, s.id, said)
	}
	return s.Out.Grant(amount)
}

// Receive takes in a value that has come: the header was read, and the body was not. An error that is not the
// socket's says that the other side has sent beyond its credit; then the connection is to be ended.
func (s *Stream) Receive(sock *socket.Socket, v *packet.HeaderView, length int64) error {
	if length == 0 {
		s.In.End(io.EOF)
		return nil
	}
	cost, err := s.In.credit.Received(uint64(v.Length + length))
	if err != nil {
		sock.SkipBody()
		return fmt.Errorf("stream %.40q: %w", s.id, err)
	}
	if length <= smallValue {
		if raw, ok := sock.TakeBody(); ok {
			s.In.putSmall(raw, v.Gzip, cost)
			return nil
		}
	}
	body, err := sock.ReadBody(nil)
	switch {
	case err == nil:
		s.In.put(piece{body: body, gzip: v.Gzip, cost: cost})
	case socket.Fatal(err):
		return err
	default:
		s.In.Fail(err)
	}
	return nil
}

// Set has the streams of one connection. The zero value is ready. All methods are safe for concurrent use.
type Set struct {
	mu     sync.Mutex // guards the fields below
	opened map[string]*Stream
	served map[string]*Stream
	ended  bool
	away   bool
	grown  uint64 // by how much the windows of those in it have grown
}

// Verdict says what became of a stream that was to be added.
type Verdict uint8

const (
	Added Verdict = iota
	Ended         // the connection has ended
	Taken         // there is one with the id
	Full          // there are as many as may be
)

// Add adds the stream: one that this side has opened, or one that the other side has, of which there may be
// most at a time; a negative number is no bound.
func (t *Set) Add(s *Stream, most int) Verdict {
	v, away := t.add(s, most)
	if v == Added && away {
		s.goAway()
	}
	return v
}

func (t *Set) add(s *Stream, most int) (v Verdict, away bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	of := t.sideLocked(!s.answers)
	switch {
	case t.ended:
		return Ended, false
	case (*of)[s.id] != nil:
		return Taken, false
	case s.answers && most >= 0 && len(*of) >= most:
		return Full, false
	}
	if *of == nil {
		*of = make(map[string]*Stream)
	}
	(*of)[s.id] = s
	s.set, s.window = t, Window
	return Added, t.away
}

// Remove takes the stream out.
func (t *Set) Remove(s *Stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	of := t.sideLocked(!s.answers)
	if (*of)[s.id] != s {
		return
	}
	t.grown -= s.window - Window
	if delete(*of, s.id); len(*of) == 0 {
		*of = nil // a map keeps the memory that it once had
	}
}

// grow reports whether the stream's window may be as large, and counts it.
func (t *Set) grow(s *Stream, window uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch more := window - s.window; {
	case window <= s.window: // it was as large before
		return true
	case (*t.sideLocked(!s.answers))[s.id] != s || t.grown+more > maxGrown:
		return false
	default:
		t.grown += more
		s.window = window
		return true
	}
}

// Find returns the stream with the id: one that this side has opened, or one that the other side has. It
// returns nil if there is none.
func (t *Set) Find(id []byte, opened bool) *Stream {
	t.mu.Lock()
	defer t.mu.Unlock()
	return (*t.sideLocked(opened))[string(id)]
}

// sideLocked returns the streams that this side has opened, or those that the other side has.
func (t *Set) sideLocked(opened bool) *map[string]*Stream {
	if opened {
		return &t.opened
	}
	return &t.served
}

// Len returns how many streams there are.
func (t *Set) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.opened) + len(t.served)
}

// GoAway tells all streams, and those that follow, that this side is shutting down.
func (t *Set) GoAway() {
	for _, s := range t.leave() {
		s.goAway()
	}
}

// leave returns the streams that are to be told that this side is shutting down; none but the first time.
func (t *Set) leave() (list []*Stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.away {
		return nil
	}
	t.away = true
	for _, s := range t.opened {
		list = append(list, s)
	}
	for _, s := range t.served {
		list = append(list, s)
	}
	return list
}

// End says that the connection has ended. No stream is added any more.
func (t *Set) End() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
}

// Heard takes in a packet about the credit of the stream with the id. It is called by the goroutine that
// reads. After an error, which says what makes no sense, the connection is to be ended. A packet about a
// stream that is over changes nothing.
func (t *Set) Heard(id []byte, meta map[string]string) error {
	for _, about := range []struct {
		key    string
		opened bool // this side has opened the stream if the packet is about what this side sends
	}{{keyOpener, true}, {keyAnswerer, false}} {
		said, ok := meta[about.key]
		if !ok {
			continue
		}
		if said == wordWaits { // the other side sends
			if s := t.Find(id, !about.opened); s != nil {
				s.In.grow()
			}
			continue
		}
		if s := t.Find(id, about.opened); s != nil {
			if err := s.heard(said); err != nil {
				return err
			}
		}
	}
	return nil
}
