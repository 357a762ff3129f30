package tp

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"runtime"
	"strings"
	"time"

	"github.com/henrylee2cn/teleport/internal/rarely"
	"github.com/henrylee2cn/teleport/internal/stream"
	"github.com/henrylee2cn/teleport/internal/uri"
	"github.com/henrylee2cn/teleport/internal/workers"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// heardCancel tells the handlers of the pull with the id that the other side has cancelled it. Ids are the
// other side's, so that several calls may have one.
func (cn *conn) heardCancel(id []byte) {
	for _, c := range cn.calls.Find(maphash.Bytes(idSeed, id)) {
		c.callerGone(id, context.Canceled)
	}
}

// input returns the call of the packet whose header was read: c if PreReadHeader hooks have seen it already.
func (r *reader) input(c *call, uri string) *call {
	if c == nil {
		c = newReadCtx(r.conn)
	}
	v := &r.view
	c.keepId(v.Id)
	c.typ, c.uri = v.Type, uri
	c.owed, r.owed = r.owed, 0
	c.setInput(v, int64(r.length), uri)
	if v.Timeout > 0 {
		c.arrived = time.Since(processStart)
	}
	c.start = r.conn.peer.packetLog.start()
	return c
}

// call routes a pull or a push, reads its body and has its handler run: here if the route is quick, and
// otherwise by a worker.
func (r *reader) call(c *call, table *routeTable) error {
	cn := r.conn
	h := table.handlers[string(r.view.Uri)]
	if h != nil {
		c = r.input(c, h.path) // which is the same text
	} else if canonical, err := canonicalURI(string(r.view.Uri)); err == nil {
		c = r.input(c, canonical)
	} else {
		c = r.input(c, string(r.view.Uri))
		return r.reject(c, newXerror(StatusBadRequest, err.Error(), err))
	}
	if err := packet.CheckGzip(c.inHdr.Gzip); err != nil {
		return r.reject(c, newXerror(StatusBadRequest, err.Error(), err))
	}
	if len(table.postReadHeader) > 0 {
		if err := table.postReadHeader.run(c); err != nil {
			logf(LevelDebug, "hook failed", "%s %s from %s: %v", slog.String("kind", c.kind()),
				uriAttr(c.inHdr.Uri), slog.String("remote", c.Ip()), errAttr(err),
				slog.String("session", cn.sess.Id()))
			return r.reject(c, err.xerror())
		}
		c.fixInput()
	}
	if h == nil || c.uri != h.path || !h.takes(c.typ) {
		canonical, err := canonicalURI(c.uri) // hooks may have put another one in
		if err != nil {
			return r.reject(c, newXerror(StatusBadRequest, err.Error(), err))
		}
		c.uri, c.inHdr.Uri = canonical, canonical
		path, _ := uri.Split(canonical)
		if h = table.find(path, c.typ == packet.TypeOpen); h == nil {
			return r.reject(c, r.notFound(path, table))
		}
	}
	c.handler = h
	switch {
	case h.stream:
	case h.chain.order != nil:
		c.lane, c.keyed = h.chain.order.line(c, h.pull)
	case !h.pull:
		c.lane = &cn.sess.lanes.Pushes
	}
	quick := !h.stream && h.pace.Quick() && r.length <= quickBody && !cn.sock.OutputFull()
	c.free = quick && h.small && r.small()
	if cost := callCost + headerCost(&r.view); !c.free && !c.charge(cost) && !r.awaitMemory(c, cost) {
		return r.noMemory(c)
	}
	if err := c.readBody(cn.sock, int64(r.length), h.unknown); err != nil {
		if socket.Fatal(err) {
			c.lost(err)
			return err
		}
		if errors.Is(err, packet.ErrBudget) {
			return r.noMemory(c)
		}
		return r.reject(c, bodyXerror(err))
	}
	if len(h.chain.preReadBody)+len(h.chain.postReadBody) > 0 || c.inHdr.Load != 0 {
		c.received = time.Since(processStart)
	}
	// The call is counted before the state is looked at, while Shutdown sets the state before it looks at
	// the count: one of the two sees the other.
	cn.handlers.Add(1)
	if cn.peer.draining() && c.typ != packet.TypePush {
		cn.goAway(false) // if Shutdown has not come to it yet: a refusal comes after it
		r.refuse(c, newXerror(StatusServiceUnavailable, "shutting down, the pull was not run", nil))
		cn.handlerDone()
		return nil
	}
	c.in.BodyCodec, _ = packet.RawBody(c.raw.B).Codec()
	if quick && c.takesTurn() && r.enter(h, c) {
		c.timed = h.pace.Timed(true)
		return r.runOnReader(c)
	}
	if c.free { // the reader cannot be watched now: a worker runs the call, which counts then
		c.free = false
		c.held += callCost
		cn.inBudget.Force(callCost)
	}
	if h.stream {
		return r.openStream(c)
	}
	// All of a line are timed: as they go by one worker it counts that the reader runs them soon.
	c.timed = c.lane != nil || h.pace.Timed(false)
	c.enter()
	if c.typ == packet.TypePull && cn.unread() {
		if c.inLane {
			cn.peer.workers.Leave(c.lane)
		}
		r.refuse(c, newXerror(StatusOverloaded, "the replies are not read, the pull was not run", nil))
		cn.handlerDone()
		return nil
	}
	if c.typ == packet.TypePush && c.raw.Oversized() && cn.peer.workers.WouldWait((*job)(c)) {
		c.raw.Trim()
	}
	lane := c.lane
	switch cn.peer.workers.Run((*job)(c)) {
	case workers.Overloaded:
		r.refuse(c, newXerror(StatusOverloaded, "too many handlers are running, the pull was not run", nil))
		cn.handlerDone()
	case workers.Overflown:
		c.drop()
		return r.overflow(1)
	}
	switch {
	case lane == nil:
	case quick:
		return r.takeOver(lane)
	case lane.Waiting() >= manyInLine:
		cn.yield(lane, false)
	}
	return nil
}

const (
	// manyInLine is how many calls may wait in a line before the reader lets others run after each one:
	// on one processor it would go on as long as there is something to read.
	manyInLine = 64
	// Where others compute it may take long until the reader runs again: after yieldTime it goes on, and does
	// not let others run for a part of the time that it has waited.
	yieldTime, yieldPart, longestYield = 50 * time.Microsecond, 8, 40 * time.Millisecond
)

// takesTurn reports whether the call may run at once, as far as it is about its line.
func (c *call) takesTurn() bool {
	if c.lane == nil {
		return true
	}
	c.inLane = c.lane.TryEnter()
	return c.inLane
}

// takeOver has the reader run the calls that wait in the line, if the worker that runs one of them is done
// with it soon, until one comes that is not quick. Without that a line in which calls wait once would hardly
// ever be empty again, and all of them would go by workers.
func (r *reader) takeOver(lane *workers.Lane) error {
	cn := r.conn
	pool := &cn.peer.workers
	if lane.Waiting() == 0 || !r.turn.Watched() || !lane.Ask() {
		return nil
	}
	cn.yield(lane, true)
	for c := pool.TakeOver(lane, &cn.queue); c != nil; c = pool.Next(lane, &cn.queue) {
		if err := r.runWaited((*call)(c.(*job)), lane); err != nil {
			return err
		}
	}
	return nil
}

// runWaited runs a call that has waited in the line and that the pool counts, on the reading goroutine.
func (r *reader) runWaited(c *call, lane *workers.Lane) error {
	cn := r.conn
	goesOn := false
	defer func() {
		if !goesOn { // the reader was replaced, or the handler has called runtime.Goexit
			cn.peer.workers.Ended(&cn.queue, lane)
		}
	}()
	cn.quickRoute, cn.quickCall, cn.quickLane, cn.counted = c.handler, nil, nil, true
	r.counted = true
	r.turn.Enter()
	err := r.runOnReader(c)
	r.counted = false
	goesOn = err == nil
	return err
}

// yield lets others run for a moment, or until the line is offered to the reader that has asked for it. It
// does not if nothing has moved in the line the last time.
func (cn *conn) yield(lane *workers.Lane, asked bool) {
	before := lane.Turns()
	if cn.stuck == lane && cn.stuckAt == before {
		return
	}
	start := time.Since(processStart)
	if start < cn.noYields {
		return
	}
	for {
		runtime.Gosched()
		now := time.Since(processStart)
		if now-start > yieldTime {
			cn.noYields = now + min(now-start, longestYield)/yieldPart
			break
		}
		if !asked {
			break
		}
		if lane.Offered() {
			return
		}
	}
	if lane.Turns() == before {
		cn.stuck, cn.stuckAt = lane, before
	}
}

// lost ends a call whose body does not come, because the connection has ended.
func (c *call) lost(err error) {
	x := newXerror(StatusConnClosed, "the connection has ended within the call's body", err)
	c.failed = x
	c.outHdr.StatusCode, c.outHdr.Status = x.Code(), x.Text()
	c.release()
}

// notFound is the error of a packet with a path that nothing serves. Hooks may have changed the path; the
// text names the URI that was received.
func (r *reader) notFound(path string, table *routeTable) Xerror {
	p := r.conn.peer
	others := p.PushRouter.routes
	kind := "pulls"
	switch r.view.Type {
	case packet.TypePush:
		kind, others = "pushes", p.PullRouter.routes
	case packet.TypeOpen:
		kind = "streams"
	}
	text := fmt.Sprintf("not found: nothing here takes %s to %q", kind,
		quote(uri.WithoutQuery(string(r.view.Uri))))
	h := table.handlers[path]
	if h == nil {
		h = others.table.Load().handlers[path]
	}
	switch {
	case h == nil && path == JoinedURI:
		text += ": the other side has groups with a history, see plugin/follow"
	case h == nil:
	case h.stream:
		text += ", it is a route for streams"
	case h.pull:
		text += ", it is a route for pulls"
	default:
		text += ", it is a route for pushes"
	}
	return newXerror(StatusNotFound, text, nil)
}

// openStream runs the handler of a stream, which has a goroutine of its own: streams are open for long, and
// are not bounded as other handlers are. The call is counted already.
func (r *reader) openStream(c *call) error {
	cn := r.conn
	st := new(stream.Stream)
	st.Init(cn, strings.Clone(c.id), true, &cn.inBudget) // c.id is in memory that is used again
	var x Xerror
	switch most := cn.peer.cfg.MaxSessionStreams; cn.streams.Add(st, most) {
	case stream.Added:
		c.mu.Lock()
		c.valuesLocked().stream = st
		c.mu.Unlock()
		c.enter()
		cn.peer.keeper.Expect()
		go c.serveStream(st)
		return nil
	case stream.Full:
		x = newXerror(StatusOverloaded, fmt.Sprintf("%d streams are open, the stream was not run", most), nil)
	case stream.Taken:
		x = newXerror(StatusBadRequest, fmt.Sprintf("there is a stream with the id %.40q already", c.id), nil)
	default:
		x = newXerror(StatusConnClosed, "", nil)
	}
	r.refuse(c, x)
	cn.handlerDone()
	return nil
}

// serveStream runs the handler of the stream.
func (c *call) serveStream(st *stream.Stream) {
	defer func() {
		c.conn.streams.Remove(st)
		st.In.Drop(newXerror(StatusCanceled, "the stream is over", ErrStreamOver))
	}()
	c.handle()
}

// small reports whether the packet that is being read takes too little memory to be counted. That holds on
// the reading goroutine only, where there is one such packet per session.
func (r *reader) small() bool {
	v := &r.view
	return r.length <= smallPacket && v.Length <= smallPacket && v.Gzip == 0 && len(v.Meta) == 0
}

// headerCost is how many bytes a header takes in memory.
func headerCost(v *packet.HeaderView) int64 {
	const pair = 100 // of a map of strings, beside the texts
	return v.Length + pair*int64(len(v.Meta))
}

// awaitMemory waits until there is memory for a push of a side that keeps to its credit: handlers that run
// will give some back. It waits as long as pushes of the connection are handled, and for memoryPatience
// after the last of them. It does not wait while this side waits for replies of the other, which handlers
// may need to come to an end.
func (r *reader) awaitMemory(c *call, n int64) bool {
	cn := r.conn
	if c.typ != packet.TypePush || !cn.flow.Bound() {
		return false
	}
	if r.dirty {
		r.dirty = false
		go cn.flush()
	}
	for !cn.flow.Pulls.Awaited() && !cn.ended.Load() {
		before := cn.flow.Taken()
		if waitUntil(memoryPatience, func() bool { return c.charge(n) }) {
			return true
		}
		if cn.flow.Taken() == before {
			break
		}
	}
	return false
}

// noMemory ends a packet for which the budget has no memory left. A pull is answered. A push must not be
// lost silently, so the session ends.
func (r *reader) noMemory(c *call) error {
	if c.typ == packet.TypePush {
		c.failed = newXerror(StatusOverloaded, "there is no memory for the push", packet.ErrBudget)
		c.release()
		return r.overflow(1)
	}
	return r.reject(c, newXerror(StatusOverloaded, "there is no memory for it, the pull was not run",
		packet.ErrBudget))
}

// overflow returns the error that ends a session whose pushes take more than may wait. The pushes that wait
// are dropped, and so many more are lost.
func (r *reader) overflow(lost int) error {
	dropped := uint64(lost + r.conn.peer.workers.DropPushes(&r.conn.queue))
	return &overflow{taken: r.conn.pushesRead - dropped, dropped: dropped}
}

// runOnReader runs a quick handler on the reading goroutine.
func (r *reader) runOnReader(c *call) error {
	c.onReader, r.dirty = true, true
	if waiting := c.handle(); waiting >= flushAt {
		r.conn.flush()
		r.dirty = false
	}
	if !r.leave() {
		r.conn.flush()
		return errReplaced
	}
	return nil
}

// flushAt is how many bytes of queued replies are flushed before the next packet is read.
const flushAt = 64 << 10

// reject ends a pull or a push that has no handler to run: the pull is answered, and the push is logged. The
// session goes on.
func (r *reader) reject(c *call, x Xerror) error {
	r.conn.sock.SkipBody()
	if c.typ == packet.TypePush {
		level := LevelWarn
		if errors.Is(x, ErrDuplicate) {
			level = LevelDebug
		}
		r.conn.peer.log.rarely(level, "push dropped", "push %s from %s dropped: %v",
			uriAttr(c.inHdr.Uri), slog.String("remote", c.Ip()), errAttr(x),
			slog.String("session", r.conn.sess.Id()))
		c.begins()
		c.failed = x
		c.release()
		return nil
	}
	r.refuse(c, x)
	return nil
}

// refuse answers a packet with an error. The reader never waits for the other side to read: where reply
// hooks are to be run a worker writes the reply, unless too many calls run already, and if the output has
// no room for the reply the session ends.
func (r *reader) refuse(c *call, x Xerror) {
	cn := r.conn
	c.raw.Release()
	c.refusal = x
	if x.Code() == StatusOverloaded {
		cn.refusedForALimit(c, x)
	}
	if chain := c.replyChain(); len(chain.preWriteReply)+len(chain.postWriteReply) > 0 &&
		x.Code() != StatusOverloaded && (c.held > 0 || c.charge(callCost)) {
		cn.handlers.Add(1)
		c.enter()
		if cn.peer.workers.Run((*job)(c)) == workers.Accepted {
			return
		}
		cn.handlerDone()
	}
	c.prepareReply()
	c.setReply(nil, x)
	r.dirty = true
	c.offered = true
	_ = c.writeReply() // which ends the session if there is no room
	c.logHandled(x)
	c.release()
}

// refusedForALimit logs a call that was refused for a limit. There is one such line a second at most, with
// the number of those that were left out.
func (cn *conn) refusedForALimit(c *call, x Xerror) {
	const format = "%s %s from %s refused: %v"
	if !logEnabled(LevelWarn) {
		return
	}
	if left, ok := cn.peer.log.allow(lineKind{format: format}); ok {
		attrs := []slog.Attr{slog.String("kind", c.kind()), uriAttr(c.inHdr.Uri),
			slog.String("remote", c.Ip()), errAttr(x), slog.String("session", cn.sess.Id())}
		logLine(LevelWarn, "refused for a limit", lineOf(format, attrs)+rarely.More(left),
			withLeft(attrs, left))
	}
}

// ReplaceReader is called by the watch when it has ended the reader's turn, because a handler, or a write,
// holds the reader up. The goroutine that was the reader becomes a worker, and another one reads.
func (cn *conn) ReplaceReader() {
	if h := cn.quickRoute; h != nil {
		h.pace.HeldUp()
	}
	if !cn.counted {
		cn.inBudget.Force(callCost)
		cn.peer.workers.Adopt((*job)(cn.quickCall), &cn.queue, cn.quickLane)
	}
	if c := cn.quickCall; c != nil {
		c.enter()
	}
	go cn.read(true)
}

// enter says that the reader is about to do something that may block: to run the call's handler or, with a
// nil handler, to write. From then on the watch may replace it. It reports false if the reader cannot be
// watched.
func (r *reader) enter(h *Handler, c *call) bool {
	if !r.turn.Watched() {
		return false
	}
	cn := r.conn
	cn.quickRoute, cn.quickCall, cn.quickLane, cn.counted = h, c, nil, false
	if c != nil {
		cn.quickLane = c.lane
	}
	r.turn.Enter()
	return true
}

// leave ends what enter has begun. It reports false if the reader was replaced meanwhile.
func (r *reader) leave() bool {
	if r.turn.Leave() {
		return true
	}
	if !r.counted {
		r.conn.inBudget.Give(callCost)
		r.conn.peer.workers.Ended(&r.conn.queue, nil)
	}
	return false
}

// job is a call as the pool of workers sees it. It is a type of its own so that programs do not find these
// methods in their contexts.
type job call

func (j *job) call() *call { return (*call)(j) }

func (j *job) Run() { j.call().handle() }

func (j *job) Drop() { j.call().drop() }

func (j *job) Waits() { j.waited = true }

func (j *job) Cost() int64 { return j.held + j.raw.Cost() } // all that is taken for the call

func (j *job) Queue() *workers.Queue { return &j.conn.queue }

// Lane is for the pool of workers, see [workers.Job].
func (j *job) Lane() (l *workers.Lane, entered bool) {
	if j.refusal != nil {
		return nil, false
	}
	return j.lane, j.inLane
}

// HoldsUp is called when so many calls have waited for long for this one to end. The call may end meanwhile,
// or have ended: nothing of its exchange is looked at.
func (j *job) HoldsUp(waiting int) {
	c := j.call()
	kind, advice := "pull", "if it waits for one of those it waits for ever"
	if !c.handler.pull {
		kind, advice = "push", advice+": see tp.Unordered"
	}
	c.conn.peer.log.rarely(LevelWarn, "call holds up others", "the handler of the %s %s, called by %s, "+
		"has run for %v or longer, and calls of its line wait for it (tp.Ordered), %d of them: "+advice,
		slog.String("kind", kind), uriAttr(c.handler.path), slog.String("remote", c.Ip()),
		slog.Duration("for", workers.HeldUp), slog.Int("waiting", waiting),
		slog.String("session", c.conn.sess.Id()))
}

// quickBody is how long the body of a call may be that the reader runs itself: the reply may be as long, and
// is encoded there.
const quickBody = 32 << 10

// Quick is for the pool of workers, see [workers.Job].
func (j *job) Quick() bool { return j.handler.pace.Quick() && len(j.raw.B) <= quickBody }

func (j *job) Kind() workers.Kind {
	switch {
	case j.refusal != nil:
		return workers.Refusal
	case j.typ == packet.TypePull:
		return workers.Pull
	}
	return workers.Push
}
