// Package limit is a plugin that refuses calls which are too many, before their bodies are decoded, with
// [tp.StatusOverloaded] and how long to wait (see [tp.Retryable]).
//
//	peer := tp.NewPeer(cfg,
//		limit.New(limit.Rate(limit.ByAddress, 1000, 2000), limit.Concurrent(limit.BySession, 64)),
//		limit.New(limit.Adaptive(), limit.Named("overload")),
//	)
//
// [Rate], [Concurrent] and [Connections] need numbers. [Adaptive] needs none: it finds out how many calls may
// run at a time by how long they take, lets a few more wait for a moment, and refuses the others, so that a
// service which is offered more than it can do still does as much as it can.
//
// A plugin on a peer sees all calls that come, on a group or a registration those that are routed there; each
// has its own counts. Where a peer's calls are refused by several plugins, put the cheapest first.
package limit

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/packet"
)

// Key says which calls a limit counts together. An empty text is for calls that the limit does not concern.
// It is called by many goroutines.
type Key func(ctx tp.ReadCtx) string

// ByAll counts all calls together.
func ByAll(tp.ReadCtx) string { return "all" }

// BySession counts the calls of each session.
func BySession(ctx tp.ReadCtx) string { return ctx.Session().Id() }

// ByAddress counts the calls from each IP address, whatever the port; for connections of other kinds, of Unix
// sockets for example, it is BySession.
func ByAddress(ctx tp.ReadCtx) string {
	if host := hostOf(ctx.Ip()); host != "" {
		return host
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

func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return ""
	}
	return host
}

// Limit is the plugin. Make it with [New]. All methods are safe for concurrent use.
type Limit struct {
	name        string
	rates       []*rates
	concurrent  []*concurrent
	adaptive    *adaptive
	connections *connections

	mu   sync.Mutex       // guards runs
	runs map[any]*running // the calls that run and count somewhere, by their contexts
}

// Option is an option of [New].
type Option func(*Limit)

// New returns the plugin. It panics if there is nothing to limit.
func New(options ...Option) *Limit {
	l := &Limit{name: "limit", runs: make(map[any]*running)}
	for _, o := range options {
		o(l)
	}
	if len(l.rates)+len(l.concurrent) == 0 && l.adaptive == nil && l.connections == nil {
		panic("limit: New has nothing to limit: expected Rate, Concurrent, Connections or Adaptive.")
	}
	return l
}

// Named gives the plugin another name than "limit", so that there can be several of them in a chain.
func Named(name string) Option { return func(l *Limit) { l.name = name } }

// Name returns the plugin's name.
func (l *Limit) Name() string { return l.name }

// Rate lets each key have so many calls a second, and burst at once after a time without any. Pulls, pushes
// and streams count alike. A push beyond that is dropped.
func Rate(by Key, perSecond float64, burst int) Option {
	if !(perSecond > 0) || burst < 1 {
		panic(fmt.Sprintf("limit: Rate: %v calls a second with a burst of %d: expected positive numbers.",
			perSecond, burst))
	}
	return func(l *Limit) {
		// Whoever has been away for so long has its burst again: nothing needs to be known of it.
		idle := time.Duration(float64(burst)/perSecond*float64(time.Second)) + time.Second
		l.rates = append(l.rates, newRates(by, rate.Limit(perSecond), burst, idle))
	}
}

// Concurrent lets each key have so many calls at a time: from when the body is about to be decoded until the
// call is over.
func Concurrent(by Key, n int) Option {
	if n < 1 {
		panic(fmt.Sprintf("limit: Concurrent: %d is less than 1.", n))
	}
	return func(l *Limit) {
		l.concurrent = append(l.concurrent, &concurrent{by: by, most: n, running: make(map[string]int)})
	}
}

// Connections lets each IP address have so many connections at a time; it is for a peer. One beyond that is
// refused in the handshake.
func Connections(n int) Option {
	if n < 1 {
		panic(fmt.Sprintf("limit: Connections: %d is less than 1.", n))
	}
	return func(l *Limit) { l.connections = &connections{most: n, open: make(map[string][]*tp.Session)} }
}

// maxKeys is how many keys a Rate remembers. Beyond that those that are new share one limiter: the memory
// that strangers can take must have a bound.
const maxKeys = 1 << 16

// rates is one Rate: a limiter for each key, as long as the key is used.
type rates struct {
	by    Key
	limit rate.Limit
	burst int
	idle  time.Duration

	mu     sync.Mutex // guards the fields below
	keys   map[string]*keyRate
	others *rate.Limiter
	swept  time.Time
}

type keyRate struct {
	limiter *rate.Limiter
	used    time.Time
}

func newRates(by Key, limit rate.Limit, burst int, idle time.Duration) *rates {
	return &rates{by: by, limit: limit, burst: burst, idle: idle, keys: make(map[string]*keyRate),
		others: rate.NewLimiter(limit, burst)}
}

// of returns the key's limiter.
func (r *rates) of(key string, now time.Time) *rate.Limiter {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.swept) > r.idle {
		r.swept = now
		maps.DeleteFunc(r.keys, func(_ string, k *keyRate) bool { return now.Sub(k.used) > r.idle })
	}
	k := r.keys[key]
	if k == nil {
		if len(r.keys) >= maxKeys {
			return r.others
		}
		k = &keyRate{limiter: rate.NewLimiter(r.limit, r.burst)}
		r.keys[key] = k
	}
	k.used = now
	return k.limiter
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

// connections is one Connections.
type connections struct {
	most int

	mu    sync.Mutex // guards the fields below
	open  map[string][]*tp.Session
	swept time.Time
}

// sweepEvery is how often those are looked for whose handshake has failed: nobody says so.
const sweepEvery = 10 * time.Second

// liveLocked returns how many connections from the address there are.
func (c *connections) liveLocked(host string) int {
	live := slices.DeleteFunc(c.open[host], func(s *tp.Session) bool { return s.Err() != nil })
	if len(live) == 0 {
		delete(c.open, host)
		return 0
	}
	c.open[host] = live
	return len(live)
}

// take counts a connection, and reports false if there are as many as may be.
func (c *connections) take(host string, sess *tp.Session, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.swept) > sweepEvery {
		c.swept = now
		for host := range c.open {
			c.liveLocked(host)
		}
	}
	if c.liveLocked(host) >= c.most {
		return false
	}
	c.open[host] = append(c.open[host], sess)
	return true
}

// gone is called when a connection from the address has ended.
func (c *connections) gone(host string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.liveLocked(host)
}

// running is what a call has taken.
type running struct {
	keys  []string  // of concurrent, as far as there are
	began time.Time // if it counts for the adaptive limit
}

func overloaded(text string, after time.Duration) error {
	return tp.WithRetryAfter(tp.NewXerror(tp.StatusOverloaded, text), max(after, time.Millisecond))
}

// retryAfter is how long a caller is asked to wait where nothing is known.
const retryAfter = 100 * time.Millisecond

// PreReadBody refuses the call, or counts it.
func (l *Limit) PreReadBody(ctx tp.ReadCtx) error {
	call, ok := ctx.(tp.RoutedCtx)
	if !ok { // a reply
		return nil
	}
	for _, r := range l.rates {
		key := r.by(ctx)
		if key == "" {
			continue
		}
		now := time.Now()
		limiter := r.of(key, now)
		if reserved := limiter.ReserveN(now, 1); reserved.DelayFrom(now) > 0 {
			after := reserved.DelayFrom(now)
			reserved.CancelAt(now)
			return overloaded("too many calls a second, the call was not run", after)
		}
	}
	if len(l.concurrent) == 0 && l.adaptive == nil {
		return nil
	}
	run := &running{}
	for i, c := range l.concurrent {
		key := c.by(ctx)
		if key != "" && !c.take(key) {
			l.giveBack(run)
			return overloaded(fmt.Sprintf("%d calls are running already, the call was not run", c.most),
				retryAfter)
		}
		if run.keys == nil {
			run.keys = make([]string, len(l.concurrent))
		}
		run.keys[i] = key
	}
	if l.adaptive != nil && ctx.Input().Header.Type != packet.TypeOpen { // a stream lasts as long as it lasts
		if err := l.adaptive.take(call); err != nil {
			l.giveBack(run)
			return err
		}
		run.began = time.Now()
	}
	l.mu.Lock()
	l.runs[ctx] = run
	l.mu.Unlock()
	return nil
}

// giveBack gives back what a call has taken of concurrent limits.
func (l *Limit) giveBack(run *running) {
	for i, key := range run.keys {
		if key != "" {
			l.concurrent[i].give(key)
		}
	}
}

// PostCall gives back what the call has taken.
func (l *Limit) PostCall(ctx tp.CallCtx) error {
	if len(l.concurrent) == 0 && l.adaptive == nil {
		return nil
	}
	l.mu.Lock()
	run := l.runs[ctx]
	delete(l.runs, ctx)
	l.mu.Unlock()
	if run == nil {
		return nil
	}
	l.giveBack(run)
	if !run.began.IsZero() {
		l.adaptive.give(time.Since(run.began), time.Now())
	}
	return nil
}

// PostAccept refuses a connection beyond the limit of its address.
func (l *Limit) PostAccept(fore tp.ForeSession) error {
	c, host := l.connections, hostOf(fore.RemoteIp())
	if c != nil && host != "" && !c.take(host, fore.Session(), time.Now()) {
		return overloaded(fmt.Sprintf("there are %d connections from this address already", c.most),
			time.Second)
	}
	return nil
}

// PostDisconnect counts a connection less.
func (l *Limit) PostDisconnect(sess *tp.Session, _ error) error {
	if c, host := l.connections, hostOf(sess.RemoteIp()); c != nil && host != "" {
		c.gone(host)
	}
	return nil
}
