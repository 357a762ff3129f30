// Package heartbeat is a plugin that asks silent sessions whether their other sides are still there, ends the
// connections of those that are not, and measures how long an answer takes.
//
//	peer := tp.NewPeer(cfg, heartbeat.New(heartbeat.Every(2*time.Second), heartbeat.Misses(3)))
//
// Without it a side that has gone silent is noticed when something waits for it, see
// [tp.PeerConfig].KeepAlive. With it a connection on which nothing has come for one interval is asked, and
// again each interval; when nothing has come for one interval more than Misses the connection is ended, as if
// it had broken: pulls end with [tp.StatusConnClosed], and a session with [tp.Redial] gets another
// connection. Anything that comes counts, so a busy connection is asked for nothing but the time that an
// answer takes, and that rarely.
//
// The other side needs no plugin: every peer answers a ping. With the plugin there too, the side that has
// accepted the connection says how often to ask, if it has [Lead].
//
// One goroutine looks after all sessions of the peers that a plugin is added to. A session takes 250 bytes.
package heartbeat

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/option"
	"github.com/henrylee2cn/teleport/internal/weakset"
	"github.com/henrylee2cn/teleport/socket"
)

const (
	defaultInterval = 15 * time.Second
	defaultMisses   = 3
	// looks is how often a session is looked at in an interval.
	looks = 8
	// measureEvery is after how many intervals a busy connection is asked, to measure.
	measureEvery = 10
	// Leads outside of these bounds are not followed.
	minInterval, maxInterval = 100 * time.Millisecond, time.Hour
	maxMisses                = 1000
)

// uri is the route of what the accepting side says.
const uri = "/tp-heartbeat"

// Stats is what is known of a session's other side.
type Stats struct {
	// Last is how long the last answer took, Smoothed the moving average of all, with a weight of an eighth
	// for each new one (as SRTT in RFC 6298), and Min the least. They are 0 before the first answer.
	Last, Smoothed, Min time.Duration
	// Silent is for how long nothing has come, as it was known when the session was looked at last.
	Silent time.Duration
	// Interval and Misses are those that hold for the session.
	Interval time.Duration
	Misses   int
}

// Heartbeat is the plugin. Make it with [New]. All methods are safe for concurrent use.
type Heartbeat struct {
	interval time.Duration
	misses   int
	lead     bool
	follow   bool
	peers    weakset.Set[tp.Peer] // those that take what the other side says

	mu    sync.Mutex // guards the fields below
	slots [slots][]*beat
	next  int // the slot that the next session gets
	count int
	stop  chan struct{} // closed when there are no sessions; nil while no goroutine runs
}

// slots is into how many parts the sessions are divided: so many are looked at one after the other, and not
// all at once.
const slots = 32

// Option is an option of [New].
type Option func(*Heartbeat)

// Every changes the interval, which is 15 seconds: 100 milliseconds at least, and an hour at most. It panics
// otherwise.
func Every(interval time.Duration) Option {
	if interval < minInterval || interval > maxInterval {
		panic(fmt.Sprintf("heartbeat: Every: %v is not between %v and %v.", interval, minInterval,
			maxInterval))
	}
	return func(h *Heartbeat) { h.interval = interval }
}

// Misses changes how many intervals may pass without an answer, which is 3: 1 at least, and 1,000 at most. It
// panics otherwise.
func Misses(n int) Option {
	if n < 1 || n > maxMisses {
		panic(fmt.Sprintf("heartbeat: Misses: %d is not between 1 and %d.", n, maxMisses))
	}
	return func(h *Heartbeat) { h.misses = n }
}

// Lead has the other sides of accepted connections ask as often as this side does, if they have the plugin
// and not [Own]. They are told by a push of /tp-heartbeat when something has come from them, which a side
// without the plugin drops, with a line in its log, or gives to its handler of unknown pushes.
func Lead() Option { return func(h *Heartbeat) { h.lead = true } }

// Own keeps to this side's own interval, whatever the other side says.
func Own() Option { return func(h *Heartbeat) { h.follow = false } }

// New returns the plugin. It belongs on a peer. It panics if an option is nil.
func New(options ...Option) *Heartbeat {
	h := &Heartbeat{interval: defaultInterval, misses: defaultMisses, follow: true}
	option.Apply("heartbeat: New", h, options)
	return h
}

// Name returns "heartbeat".
func (h *Heartbeat) Name() string { return "heartbeat" }

// beat is one session that is looked after.
type beat struct {
	sess *tp.Session
	slot int
	lead atomic.Bool // the other side is to be told of the interval
	dial bool        // this side has dialled, and follows what the other says

	// Only the goroutine that looks uses these.
	open  bool        // the handshake is over
	told  bool        // the other side was told
	reads uint32      // of the session's connection, when it was looked at last
	conn  socket.View // the connection

	seen, asked         atomic.Int64 // when something had come last, and when a ping was sent: see sinceStart
	interval            atomic.Int64 // time.Duration
	misses              atomic.Int32
	last, smoothed, min atomic.Int64 // durations, of answers
}

var start = time.Now()

// sinceStart returns the time in nanoseconds from when the process began.
func sinceStart() int64 { return int64(time.Since(start)) }

type beatKey struct{}

// Of returns what is known of the session, and false if the plugin does not look after it.
func Of(sess *tp.Session) (Stats, bool) {
	v, ok := sess.Public().Load(beatKey{})
	if !ok {
		return Stats{}, false
	}
	b := v.(*beat)
	return Stats{
		Last: time.Duration(b.last.Load()), Smoothed: time.Duration(b.smoothed.Load()),
		Min: time.Duration(b.min.Load()), Silent: time.Duration(sinceStart() - b.seen.Load()),
		Interval: time.Duration(b.interval.Load()), Misses: int(b.misses.Load()),
	}, true
}

// PostAccept begins to look after an accepted session.
func (h *Heartbeat) PostAccept(fore tp.ForeSession) error {
	h.add(&beat{sess: fore.Session()}, h.lead)
	return nil
}

// PostDial has this side take what the other side says of the interval.
func (h *Heartbeat) PostDial(fore tp.ForeSession) error {
	if h.follow {
		if p := fore.Peer(); h.peers.Add(p) {
			tp.HandlePush(p.PushRouter, uri, h.heardLead)
		}
	}
	return nil
}

// PostConnect begins to look after a session that was dialled.
func (h *Heartbeat) PostConnect(sess *tp.Session) error {
	if _, known := sess.Public().Load(beatKey{}); !known { // a session that redials stays
		h.add(&beat{sess: sess, dial: true}, false)
	}
	return nil
}

func (h *Heartbeat) add(b *beat, lead bool) {
	b.lead.Store(lead)
	b.seen.Store(sinceStart())
	b.asked.Store(sinceStart())
	b.interval.Store(int64(h.interval))
	b.misses.Store(int32(h.misses))
	b.sess.Public().Store(beatKey{}, b)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.slots[h.next] = append(h.slots[h.next], b)
	b.slot = h.next
	h.next = (h.next + 1) % slots
	if h.count++; h.stop == nil {
		h.stop = make(chan struct{})
		go h.run(h.stop)
	}
}

// PostDisconnect ends looking after a session that is over.
func (h *Heartbeat) PostDisconnect(sess *tp.Session, _ error) error {
	if v, ok := sess.Public().Load(beatKey{}); ok && sess.Err() != nil {
		h.drop(v.(*beat))
	}
	return nil
}

// drop takes the session out.
func (h *Heartbeat) drop(b *beat) {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.Index(h.slots[b.slot], b)
	if i < 0 {
		return
	}
	h.slots[b.slot] = slices.Concat(h.slots[b.slot][:i], h.slots[b.slot][i+1:]) // look may have the old one
	if h.count--; h.count == 0 {
		close(h.stop)
		h.stop = nil
	}
}

// interval is what a side says that leads.
type interval struct {
	Every  int64 `json:"every"` // milliseconds
	Misses int32 `json:"misses"`
}

// heardLead takes in what the other side says.
func (h *Heartbeat) heardLead(ctx tp.PushCtx, said *interval) {
	every := time.Duration(said.Every) * time.Millisecond
	v, known := ctx.Session().Public().Load(beatKey{})
	if !known || !v.(*beat).dial || said.Every < 0 || said.Every > maxInterval.Milliseconds() ||
		every < minInterval || said.Misses < 1 || said.Misses > maxMisses {
		debugf("heartbeat: an interval of %d ms and %d misses is not followed", said.Every, said.Misses)
		return
	}
	b := v.(*beat)
	b.misses.Store(said.Misses)
	b.interval.Store(int64(every))
}

// run looks after the sessions until there are none.
func (h *Heartbeat) run(stop <-chan struct{}) {
	pace := h.interval / looks / slots
	tick := time.NewTicker(max(pace, time.Millisecond))
	defer tick.Stop()
	for slot, last := 0, time.Now(); ; {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		// Ticks are lost when the machine is busy, or sleeps.
		n := max(int(time.Since(last)/max(pace, time.Microsecond)), 1)
		last = last.Add(time.Duration(n) * pace)
		for range min(n, slots) {
			h.look(slot)
			slot = (slot + 1) % slots
		}
	}
}

// look looks at the sessions of a slot, and takes out those whose handshake has failed.
func (h *Heartbeat) look(slot int) {
	h.mu.Lock()
	list := h.slots[slot]
	h.mu.Unlock()
	for _, b := range list {
		if !b.look() {
			h.drop(b)
		}
	}
}

// look looks at one session, and reports false if that is over.
func (b *beat) look() bool {
	if b.sess.Err() != nil {
		return false
	}
	now := sinceStart()
	view := b.sess.Socket()
	every := b.interval.Load()
	if !b.open {
		if live, ok := b.sess.Peer().GetSession(b.sess.Id()); !ok || live != b.sess {
			return true
		}
		b.open = true
	}
	if reads := view.Reads(); reads != b.reads || view != b.conn {
		b.reads, b.conn = reads, view
		b.seen.Store(now)
		if b.lead.Load() && !b.told {
			b.told = true
			go b.tell(interval{every / int64(time.Millisecond), b.misses.Load()}) // hooks of others may wait
		}
		if now-b.asked.Load() >= measureEvery*every {
			b.ask(now)
		}
		return true
	}
	silent := now - b.seen.Load()
	// Both seen and this look may be late by the time between two looks.
	switch dead := every*(int64(b.misses.Load())+1) - 3*every/looks; {
	case silent >= dead:
		b.seen.Store(now) // another connection gets its own time
		b.sess.Disconnect(&Silent{For: time.Duration(silent)})
	case silent >= every && now-b.asked.Load() >= every:
		b.ask(now)
	}
	return true
}

// tell tells the other side of the interval.
func (b *beat) tell(every interval) {
	if x := b.sess.TryPush(uri, &every, tp.WithBodyCodec("json")); x != nil {
		debugf("heartbeat: session %s does not hear of the interval: %v", b.sess.Id(), x)
	}
}

// ask sends a ping.
func (b *beat) ask(now int64) {
	b.asked.Store(now)
	b.sess.GoPing(b.answered)
}

// answered is called by the goroutine that reads the session.
func (b *beat) answered(took time.Duration) {
	t := max(int64(took), 1)
	b.last.Store(t)
	if old := b.smoothed.Load(); old == 0 {
		b.smoothed.Store(t)
	} else {
		b.smoothed.Store(old + (t-old)/8)
	}
	if old := b.min.Load(); old == 0 || t < old {
		b.min.Store(t)
	}
}

// Silent is why a connection was ended on which nothing has come. errors.As finds it in what PostDisconnect
// hooks get, and in Session.Err.
type Silent struct{ For time.Duration }

func (s *Silent) Error() string {
	return fmt.Sprintf("nothing has come for %v, and no answer to a heartbeat", s.For.Round(time.Millisecond))
}
