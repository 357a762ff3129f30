package tp

import (
	"crypto/rand"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/henrylee2cn/teleport/packet"
)

// Position is how far a member has come in the pushes of a group with a [History]. The zero value is that
// of somebody who was never there. Seq without its Epoch means nothing: the two stay together.
type Position struct {
	Epoch string // names one history of one group; another one has another epoch
	Seq   uint64 // number of the last push of it; the first has 1
}

// String returns the position as text, which [ParsePosition] reads: empty for the zero value, and
// otherwise the number, a dot and the epoch.
func (p Position) String() string {
	if p == (Position{}) {
		return ""
	}
	return strconv.FormatUint(p.Seq, 10) + "." + p.Epoch
}

// ParsePosition reads what Position.String has returned.
func ParsePosition(text string) (Position, error) {
	if text == "" {
		return Position{}, nil
	}
	seq, epoch, ok := strings.Cut(text, ".")
	n, err := strconv.ParseUint(seq, 10, 64)
	if !ok || err != nil || epoch == "" {
		return Position{}, fmt.Errorf("tp: %q is no position: a number, a dot and an epoch were expected",
			text)
	}
	return Position{epoch, n}, nil
}

// MarshalText makes the text of String, for JSON and other codecs that know it.
func (p Position) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is ParsePosition.
func (p *Position) UnmarshalText(text []byte) (err error) {
	*p, err = ParsePosition(string(text))
	return err
}

// The metadata that a push of a group with a history carries, and MetaAfresh, which a push to [JoinedURI]
// has when the member could not catch up.
const (
	MetaGroup  = "tp-group"  // the group's name
	MetaAt     = "tp-at"     // the push's position
	MetaAfresh = "tp-afresh" // "1"
)

// JoinedURI is where [Group.JoinAt] pushes the position of a member who does not go on from the one
// given, before any other push of the group.
const JoinedURI = "/tp-joined"

// Recovery says how a member has joined, see [Group.JoinAt].
type Recovery struct {
	// Position is where the member will be when it has handled the Pushes that were sent again.
	Position Position
	// Pushes is how many pushes that the member had missed were sent again.
	Pushes int
	// Afresh says that the member cannot catch up and must start afresh.
	Afresh bool
}

// A GroupOption sets up a group, see [Peer.Group].
type GroupOption func(g *groupOptions)

type groupOptions struct{ open func(name string) *agedLog }

// History keeps the last pushes of the group, size of them at most and each for age, so that a member
// that was away can catch up with [Group.JoinAt]. They are kept in memory, 16 MiB of them at most; see
// [HistoryIn] for other places. The group, and with it the history, exists for age after its last member
// has left or the last push. A size of less than 1, or an age that is not greater than 0, panics.
func History(size int, age time.Duration) GroupOption {
	if size < 1 || age <= 0 {
		panic(fmt.Sprintf("tp: History(%d, %v): a size from 1 and an age greater than 0 were expected.", size,
			age))
	}
	return HistoryIn(memory{}, size, age)
}

// HistoryIn is [History] in a store of the program's.
func HistoryIn(store HistoryStore, size int, age time.Duration) GroupOption {
	if store == nil || size < 1 || age <= 0 {
		panic(fmt.Sprintf("tp: HistoryIn(%T, %d, %v): a store that is not nil, a size from 1 and an age "+
			"greater than 0 were expected.", store, size, age))
	}
	return func(g *groupOptions) {
		g.open = func(name string) *agedLog { return &agedLog{store.Open(name, size, age), age} }
	}
}

// agedLog is a log with the time for which its pushes are kept.
type agedLog struct {
	HistoryLog
	age time.Duration
}

// A HistoryStore keeps the last pushes of groups. Its methods, and those of its logs, are called by one
// goroutine at a time for each group, without any lock; other pushes to the group wait meanwhile. They
// must not push to the group.
type HistoryStore interface {
	// Open returns the log of the group with the name, which keeps so many pushes, each for the age. It
	// is called once for each group that a peer makes.
	Open(group string, size int, age time.Duration) HistoryLog
}

// HistoryLog has the last pushes of one group.
type HistoryLog interface {
	// Append keeps the push, whose At is not set, and returns its position: a number greater than that of
	// the last one, and the epoch that all pushes of the log have. It may take out of Meta what was put in
	// for it alone; members do not get that. An error fails the push, which nobody gets.
	Append(push StoredPush) (Position, error)
	// Since returns the pushes after the position, the oldest first, with their positions. It reports
	// false if they are not all there any more, or the position is of another epoch, or is none that
	// there was.
	Since(at Position) (list []StoredPush, ok bool, err error)
	// Last returns the position of the last push; before the first one its Seq is 0.
	Last() (Position, error)
}

// StoredPush is a push that is kept. Its memory must not be changed.
type StoredPush struct {
	At          Position
	Uri         string
	Meta        map[string]string
	HeaderCodec string
	Gzip        int32
	Body        packet.RawBody
}

// cost is what the push takes in memory, more or less.
func (s *StoredPush) cost() int {
	n := 256 + len(s.Uri) + len(s.Body)
	for k, v := range s.Meta {
		n += 64 + len(k) + len(v)
	}
	return n
}

// packet makes the packet that members get.
func (s *StoredPush) packet(group string) *packet.Packet {
	meta := make(map[string]string, len(s.Meta)+2)
	for k, v := range s.Meta {
		meta[k] = v
	}
	meta[MetaGroup], meta[MetaAt] = group, s.At.String()
	return &packet.Packet{HeaderCodec: s.HeaderCodec, Body: s.Body,
		Header: &packet.Header{Type: packet.TypePush, Uri: s.Uri, Gzip: s.Gzip, Meta: meta}}
}

// maxHistoryBytes bounds what one history keeps in memory.
const maxHistoryBytes = 16 << 20

// memory is the store that keeps histories in memory.
type memory struct{}

func (memory) Open(_ string, size int, age time.Duration) HistoryLog {
	return &memoryLog{epoch: rand.Text()[:13], size: size, age: age}
}

type memoryLog struct {
	epoch string
	size  int
	age   time.Duration

	mu    sync.Mutex // guards the fields below
	seq   uint64
	items []kept
	bytes int
	timer *time.Timer // drops the oldest; nil while there are none
}

type kept struct {
	StoredPush
	since time.Time
}

func (l *memoryLog) Append(push StoredPush) (Position, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seq++
	push.At = Position{l.epoch, l.seq}
	l.items = append(l.items, kept{push, time.Now()})
	l.bytes += push.cost()
	l.pruneLocked()
	return push.At, nil
}

// pruneLocked drops what is too much, or too old. The last push is never too large.
func (l *memoryLog) pruneLocked() {
	n := max(0, len(l.items)-l.size)
	for bytes := l.bytes; n < len(l.items); n++ {
		old := time.Since(l.items[n].since) >= l.age
		if !old && (bytes <= maxHistoryBytes || n == len(l.items)-1) {
			break
		}
		bytes -= l.items[n].cost()
	}
	for i := range n {
		l.bytes -= l.items[i].cost()
		l.items[i] = kept{}
	}
	if l.items = l.items[n:]; len(l.items) == 0 {
		l.items = nil
		return
	}
	if l.timer == nil {
		l.timer = time.AfterFunc(l.age-time.Since(l.items[0].since), func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.timer = nil
			l.pruneLocked()
		})
	}
}

func (l *memoryLog) Since(at Position) ([]StoredPush, bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pruneLocked()
	first := l.seq + 1 - uint64(len(l.items))
	if at.Epoch != l.epoch || at.Seq > l.seq || at.Seq+1 < first {
		return nil, false, nil
	}
	var list []StoredPush
	for _, k := range l.items[at.Seq+1-first:] {
		list = append(list, k.StoredPush)
	}
	return list, true, nil
}

func (l *memoryLog) Last() (Position, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Position{l.epoch, l.seq}, nil
}
