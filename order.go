package tp

import (
	"strconv"
	"sync/atomic"

	"github.com/henrylee2cn/teleport/internal/workers"
)

// The pushes of a session are handled one after another, in the order in which they have come, whatever
// their routes are; so a handler sees what the handler before it has done. The pulls of a session, and the
// pushes of different sessions, run at once. Unordered, Ordered and OrderedBy change that for a peer, a
// group, or a registration, to which they are given like plugins; the innermost counts, and of one list the
// last.

// Unordered returns a plugin by which pushes are handled at once, as pulls are, in whatever order they
// begin. Of several of Unordered, [Ordered] and [OrderedBy] the innermost counts, and of one list the
// last. A push handler that waits for another push of its session needs it: without it the other waits
// for the first, and the log says so after three seconds. Two sides whose push handlers answer every push
// with a push can block each other in the same way; [Session.TryPush] does not wait.
func Unordered() Plugin { return newOrder("unordered", order{kind: unordered}) }

// Ordered returns a plugin by which the pulls of each session are handled one after another, in the order
// in which they have come: those of the route, or of all routes of the group, or of the peer, that it is
// given to. Pushes of these routes are in the same line then. What waits does not count as a handler, see
// [PeerConfig].MaxSessionHandlers, of which as many pulls of a session may wait; more are refused with 429.
// Streams are not ordered. A handler must not wait for another call of its line.
func Ordered() Plugin { return newOrder("ordered", order{kind: ordered}) }

// OrderedBy returns a plugin by which pushes that have the same key are handled one after another, in the
// order in which they have come, over all sessions of the peer, and those of different keys at once. What
// has an empty key has no order. The function is called by the goroutine that reads the session, before
// the body is decoded: it must not wait, and takes the key from the URI, the metadata or the session. If
// it panics the push is handled without order. Such pushes leave the order of their session: they do not
// wait for pushes of other routes, nor those for them. OrderedBy is for pushes only: given to a peer it
// leaves pulls alone.
func OrderedBy(key func(ctx PushCtx) string) Plugin {
	if key == nil {
		panic("tp: OrderedBy: the function is nil.")
	}
	return newOrder("ordered by key", order{kind: orderedByKey, key: key})
}

type orderKind uint8

const (
	unordered orderKind = iota
	ordered
	orderedByKey
)

// order is what those functions return.
type order struct {
	name string
	kind orderKind
	key  func(ctx PushCtx) string
}

// orders counts them: names in a chain are different.
var orders atomic.Int64

func newOrder(name string, o order) Plugin {
	o.name = name + " " + strconv.FormatInt(orders.Add(1), 10)
	return &o
}

func (o *order) Name() string { return o.name }

// line implements ordering.
func (o *order) line(ctx PushCtx, pull bool) (lane *workers.Lane, byKey *workers.KeyLane) {
	switch {
	case o.kind == ordered:
		return ctx.Session().lanes.Of(o), nil
	case o.kind == orderedByKey && !pull:
		if key := o.keyOf(ctx); key != "" {
			lanes, ok := ctx.Peer().keyed.Load(o)
			if !ok {
				lanes, _ = ctx.Peer().keyed.LoadOrStore(o, new(workers.KeyLanes))
			}
			byKey = lanes.(*workers.KeyLanes).Take(key)
			return &byKey.Lane, byKey
		}
	}
	return nil, nil
}

func (o *order) keyOf(ctx PushCtx) (key string) {
	defer func() {
		if p := recover(); p != nil {
			ctx.Peer().log.panicked(LevelError, "the key of OrderedBy for", ctx.Path(), p)
		}
	}()
	return o.key(ctx)
}

func (o *order) isForPushes() bool { return o.kind == orderedByKey }
