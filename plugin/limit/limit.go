// Package limit is a plugin that refuses calls which are too many, before their bodies are decoded, with
// [tp.StatusOverloaded] and how long to wait (see [tp.Retryable]). A push beyond a limit is dropped.
//
//	peer := tp.NewPeer(cfg,
//		limit.NewConnections(100),
//		limit.New(limit.Concurrent(limit.BySession, 64), limit.Rate(limit.ByAddress, 1000, 2000)),
//		limit.New(limit.Adaptive(), limit.Named("overload")),
//	)
//
// [Rate], [Concurrent] and [NewConnections] need numbers. [Adaptive] needs none: it finds out how many calls
// may run at a time by how long they take, lets a few more wait for a moment, and refuses the others, so
// that a service which is offered more than it can do still does as much as it can.
//
// A plugin on a peer sees all calls that come and have a route, on a group or a registration those that are
// routed there. A plugin that is given to several counts their calls together. Calls that no route takes are
// refused without it, and the routes of plugins, whose paths begin with /tp-, are left alone. A call that
// one limit of a plugin refuses is not counted by the plugin's other limits; it is counted by other plugins
// that have let it pass.
package limit

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"sync"
	"time"

	"golang.org/x/time/rate"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/option"
	"github.com/henrylee2cn/teleport/internal/ownroute"
	"github.com/henrylee2cn/teleport/internal/places"
	"github.com/henrylee2cn/teleport/packet"
)

// Key says which calls a limit counts together. An empty text is for calls that the limit does not concern:
// where nobody is to be let off, a key by who calls falls back to another,
//
//	func(ctx tp.ReadCtx) string {
//		if name := auth.Name(ctx); name != "" {
//			return "name " + name
//		}
//		return "address " + limit.ByAddress(ctx)
//	}
//
// A Key is called by many goroutines, before the body is decoded, and must not wait. If it panics the call is
// refused.
type Key func(ctx tp.ReadCtx) string

// ByAll counts all calls together.
func ByAll(tp.ReadCtx) string { return "all" }

// BySession counts the calls of each session.
func BySession(ctx tp.ReadCtx) string { return ctx.Session().Id() }

// ByAddress counts the calls from each IPv4 address, and from each IPv6 network of 64 bits, as a single
// subscriber has; for connections of other kinds, of Unix sockets for example, it is BySession.
func ByAddress(ctx tp.ReadCtx) string {
	if network := places.Network(ctx.Session().Socket().RemoteAddr()); network.IsValid() {
		return network.String()
	}
	return BySession(ctx)
}

// ByRoute counts the calls of each route: the path of a registration, or an unknown handler's with "*".
func ByRoute(ctx tp.ReadCtx) string {
	if call, ok := ctx.(tp.RoutedCtx); ok {
		return call.Route()
	}
	return ""
}

// Limit is the plugin. Make it with [New]. All methods are safe for concurrent use.
type Limit struct {
	name       string
	rates      []*rates
	concurrent []*concurrent
	adaptive   *adaptive

	mu   sync.Mutex       // guards runs
	runs map[any]*running // the calls that run and count somewhere, by their contexts
}

// Option is an option of [New].
type Option func(*Limit)

// New returns the plugin. It panics if there is nothing to limit, or an option is nil.
func New(options ...Option) *Limit {
	l := &Limit{name: "limit", runs: make(map[any]*running)}
	option.Apply("limit: New", l, options)
	if len(l.rates)+len(l.concurrent) == 0 && l.adaptive == nil {
		panic("limit: New has nothing to limit: expected Rate, Concurrent or Adaptive.")
	}
	return l
}

// Named gives the plugin another name than "limit", so that there can be several of them in a chain: on a
// peer, its groups and their registrations.
func Named(name string) Option { return func(l *Limit) { l.name = name } }

// Name returns the plugin's name.
func (l *Limit) Name() string { return l.name }

// Rate lets each key have so many calls a second, and burst at once after a time without any. Pulls, pushes
// and streams count alike. It panics if a number is not positive. No more than 65,536 keys are told apart
// that have called lately; what comes with others then shares one rate, so that strangers cannot take any
// memory they like.
func Rate(by Key, perSecond float64, burst int) Option {
	if !(perSecond > 0) || burst < 1 {
		panic(fmt.Sprintf("limit: Rate: %v calls a second with a burst of %d: expected positive numbers.",
			perSecond, burst))
	}
	checkKey("Rate", by)
	return func(l *Limit) {
		l.rates = append(l.rates, &rates{by: by, limit: rate.Limit(perSecond), burst: burst,
			keys: make(map[string]*rate.Limiter), others: rate.NewLimiter(rate.Limit(perSecond), burst)})
	}
}

// Concurrent lets each key have so many calls at a time: from when the body is about to be decoded until the
// reply is about to be encoded, and of a push until its handler has returned. A stream counts from its
// beginning to its end. It panics if n is less than 1.
func Concurrent(by Key, n int) Option {
	if n < 1 {
		panic(fmt.Sprintf("limit: Concurrent: %d is less than 1.", n))
	}
	checkKey("Concurrent", by)
	return func(l *Limit) {
		l.concurrent = append(l.concurrent, &concurrent{by: by, most: n, running: make(map[string]int)})
	}
}

func checkKey(option string, by Key) {
	if by == nil {
		panic(fmt.Sprintf("limit: %s: the key is nil: expected ByAll, BySession, ByAddress, ByRoute or a "+
			"function.", option))
	}
}

// maxKeyLength is how long keys may be that are kept as they are; of longer ones a hash is.
const maxKeyLength = 128

// keyOf returns the call's key.
func keyOf(by Key, ctx tp.ReadCtx) string {
	key := by(ctx)
	if len(key) > maxKeyLength {
		sum := sha256.Sum256([]byte(key))
		return string(sum[:])
	}
	return key
}

// maxKeys is how many keys a Rate tells apart.
const maxKeys = 1 << 16

// sweepEvery is how often keys are looked for of which nothing needs to be known, when there are many.
const sweepEvery = time.Second

// rates is one Rate: a limiter for each key that has not its whole burst.
type rates struct {
	by    Key
	limit rate.Limit
	burst int

	mu     sync.Mutex // guards the fields below
	keys   map[string]*rate.Limiter
	others *rate.Limiter // of the keys for which there is no room
	most   int           // keys at which they are swept
	swept  time.Time
}

// of returns the key's limiter.
func (r *rates) of(key string, now time.Time) *rate.Limiter {
	r.mu.Lock()
	defer r.mu.Unlock()
	if found := r.keys[key]; found != nil {
		return found
	}
	// One that has its whole burst again is as a new one.
	if len(r.keys) >= max(r.most, 64) && now.Sub(r.swept) > sweepEvery {
		r.swept = now
		maps.DeleteFunc(r.keys, func(_ string, l *rate.Limiter) bool {
			return l.TokensAt(now) >= float64(r.burst)
		})
		r.most = 2 * len(r.keys)
	}
	if len(r.keys) >= maxKeys {
		return r.others
	}
	made := rate.NewLimiter(r.limit, r.burst)
	r.keys[key] = made
	return made
}

// concurrent is one Concurrent.
type concurrent struct {
	by   Key
	most int

	mu      sync.Mutex // guards running
	running map[string]int
}

func (c *concurrent) take(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running[key] >= c.most {
		return false
	}
	c.running[key]++
	return true
}

func (c *concurrent) give(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running[key]--; c.running[key] <= 0 {
		delete(c.running, key)
	}
}

// running is what a call has taken.
type running struct {
	keys  []string  // of concurrent
	route string    // for the adaptive limit
	began time.Time // if it counts for that
}

func overloaded(text string, after time.Duration) error {
	return tp.WithRetryAfter(tp.NewXerror(tp.StatusOverloaded, text), max(after, time.Millisecond))
}

// retryAfter is how long a caller is asked to wait where nothing is known.
const retryAfter = 100 * time.Millisecond

// PreReadBody refuses the call, or counts it.
func (l *Limit) PreReadBody(ctx tp.ReadCtx) error {
	call, ok := ctx.(tp.RoutedCtx)
	if !ok || ownroute.Is(call.Route()) { // a reply, or a plugin's
		return nil
	}
	// The program's functions first: if one panics nothing is taken yet.
	var few [4]string
	keys := few[:0]
	for _, r := range l.rates {
		keys = append(keys, keyOf(r.by, ctx))
	}
	run := &running{}
	if len(l.concurrent) > 0 {
		run.keys = make([]string, len(l.concurrent))
		for i, c := range l.concurrent {
			run.keys[i] = keyOf(c.by, ctx)
		}
	}
	level := 0
	adaptive := l.adaptive != nil && ctx.Input().Header.Type != packet.TypeOpen // a stream lasts as it lasts
	if adaptive {
		level = l.adaptive.level(ctx)
	}
	var fewReserved [4]*rate.Reservation
	reserved := fewReserved[:0]
	now := time.Now()
	refuse := func(err error) error {
		for _, r := range reserved {
			r.CancelAt(now)
		}
		return err
	}
	for i, r := range l.rates {
		if keys[i] == "" {
			continue
		}
		taken := r.of(keys[i], now).ReserveN(now, 1)
		reserved = append(reserved, taken)
		if after := taken.DelayFrom(now); after > 0 {
			return refuse(overloaded("too many calls a second, the call was not run", after))
		}
	}
	for i, c := range l.concurrent {
		if run.keys[i] != "" && !c.take(run.keys[i]) {
			l.giveBack(run.keys[:i])
			return refuse(overloaded(fmt.Sprintf("no more than %d may run at a time, the call was not run",
				c.most), retryAfter))
		}
	}
	if adaptive {
		if err := l.adaptive.take(call, level); err != nil {
			l.giveBack(run.keys)
			return refuse(err)
		}
		run.route, run.began = call.Route(), time.Now()
	}
	if len(l.concurrent) > 0 || adaptive {
		l.mu.Lock()
		l.runs[ctx] = run
		l.mu.Unlock()
	}
	return nil
}

// giveBack gives back what a call has taken of concurrent limits.
func (l *Limit) giveBack(keys []string) {
	for i, key := range keys {
		if key != "" {
			l.concurrent[i].give(key)
		}
	}
}

// over gives back what the call has taken, if it has not done so before. What a call has cost says something
// about the load if it has succeeded: one whose body does not decode, for example, costs next to nothing.
func (l *Limit) over(ctx any, succeeded bool) {
	if len(l.concurrent) == 0 && l.adaptive == nil {
		return
	}
	l.mu.Lock()
	run := l.runs[ctx]
	delete(l.runs, ctx)
	l.mu.Unlock()
	if run == nil {
		return
	}
	l.giveBack(run.keys)
	if !run.began.IsZero() {
		now := time.Now()
		l.adaptive.give(run.route, now.Sub(run.began), succeeded, now)
	}
}

// PreWriteReply gives back what the call has taken: how fast the other side reads the reply is another
// matter.
func (l *Limit) PreWriteReply(ctx tp.WriteCtx) error {
	l.over(ctx, ctx.Output().Header.StatusCode == tp.StatusOK)
	return nil
}

// PostCall gives back what the call has taken, if it has no reply, or has not come so far.
func (l *Limit) PostCall(ctx tp.CallCtx) error {
	code, _ := ctx.Status()
	l.over(ctx, code == tp.StatusOK)
	return nil
}
