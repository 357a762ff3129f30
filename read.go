package tp

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"time"

	"github.com/henrylee2cn/teleport/internal/role"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// reader is the goroutine that reads a connection's packets and hands them on. A connection has one reader at
// a time. A reader that a handler or a write holds up is replaced by another, see internal/role.
type reader struct {
	conn    *conn
	turn    role.Turn
	dirty   bool // replies of quick handlers are queued, and not flushed
	began   bool // a packet has been read
	counted bool // the call that runs here is one that the pool of workers counts
	// pending is set when the header of a packet has been read by the handshake, and its body has not.
	pending bool
	length  uint32            // of the body of the packet that is being read
	view    packet.HeaderView // of that packet
	owed    uint64            // credit for a push
}

// read reads packets until the connection ends, or this reader is replaced by
// another. The first one is started by the peer, after the handshake.
func (cn *conn) read(replaces bool) { newReader(cn, replaces).read() }

func newReader(cn *conn, replaces bool) *reader {
	return &reader{conn: cn, turn: cn.role.Begin(), dirty: replaces}
}

func (r *reader) read() {
	cn := r.conn
	var err error
	defer func() {
		p := recover()
		if p != nil { // a defect here must not end the process
			cn.peer.log.panicked(LevelCritical, "reading", "", p)
			err = fmt.Errorf("reading panicked")
		}
		inHandler := r.turn.Away() // a handler has called runtime.Goexit
		if err == errReplaced {
			return
		}
		if inHandler && !r.leave() {
			cn.flush() // the other reader may have flushed before there was a reply
			return
		}
		r.turn.Unwatch()
		if inHandler {
			go cn.read(true)
			return
		}
		cn.sock.EndReading()
		if errors.Is(err, socket.ErrClosed) {
			err = errClosedHere
		}
		if cn.part() {
			return
		}
		// the other side waits for a TLS handshake, and sees what comes instead
		if errors.Is(err, packet.ErrTLS) {
			cn.sendControl(&packet.Header{Type: packet.TypeGoAway})
		}
		cn.farewell(err)
		_ = cn.fail(err)
	}()
	for {
		err = errReaderGone // should a hook call runtime.Goexit
		c, e := r.await()
		if e == nil {
			e = r.next(c)
		}
		if err = e; err != nil {
			return
		}
	}
}

// part notes that nothing is read any more, and reports whether this side has closed the connection and waits
// for that.
func (cn *conn) part() bool {
	cn.sess.mu.Lock()
	defer cn.sess.mu.Unlock()
	cn.readAll = true
	parted := cn.parting.Load()
	if parted == nil {
		return false
	}
	close(*parted)
	return true
}

var errReaderGone = errors.New("a hook has ended the reading goroutine")

// quietTime is after how long without a packet a connection gets a new reader: the stack of the old one has
// grown with its work, and most connections do nothing most of the time.
const quietTime = time.Second

// await waits until the next packet, or a part of it, has come. It returns the call that PreReadHeader hooks
// have seen, nil without such hooks.
func (r *reader) await() (c *call, err error) {
	cn := r.conn
	buffered := r.pending || cn.sock.Buffered()
	if !buffered {
		if err := r.rest(); err != nil {
			return nil, err
		}
	}
	cn.restWhileFull()
	if hooks := cn.peer.chain.preReadHeader; len(hooks) > 0 {
		c = newReadCtx(cn)
		if err := hooks.run(c); err != nil {
			return nil, err
		}
		return c, nil // without Await, after which the hooks would be run again
	}
	if buffered {
		return nil, nil
	}
	quiet := quietTime
	if !r.began {
		quiet = 0
	}
	if err = cn.sock.Await(quiet); err == socket.ErrQuiet {
		go cn.read(false)
		err = errReplaced
	}
	return nil, err
}

// readHeader reads the header of the next packet.
func (r *reader) readHeader() error {
	length, err := r.conn.sock.ReadHeaderView(&r.view)
	r.length = uint32(length) // as it is on the wire
	return err
}

// next reads one packet and hands it on; c is what await has returned. An error ends the reader.
func (r *reader) next(c *call) error {
	cn := r.conn
	var err error
	if r.pending {
		r.pending = false
	} else if err = r.readHeader(); err != nil {
		return err
	}
	r.began = true
	if cn.sock.Owes() {
		r.dirty = true
	}
	if cn.parting.Load() != nil {
		cn.sock.SkipBody()
		return nil
	}
	switch r.view.Type {
	case packet.TypeReply:
		cn.calledRead.Store(cn.calledRead.Load() + 1)
		return r.reply(c)
	case packet.TypePull, packet.TypeOpen:
		cn.calledRead.Store(cn.calledRead.Load() + 1)
		return r.call(c, cn.peer.PullRouter.routes.table.Load())
	case packet.TypeValue, packet.TypeAnswer:
		return r.value()
	case packet.TypePush:
		cn.pushesRead++
		if r.owed, err = cn.flow.Received(uint64(r.view.Length + int64(r.length) + pushCost)); err != nil {
			return fmt.Errorf("the other side has pushed beyond its credit: %w", err)
		}
		return r.call(c, cn.peer.PushRouter.routes.table.Load())
	case packet.TypePart: // of a packet that has not come as a whole
		runtime.Gosched() // those who were handed something before go first
		return nil
	case packet.TypeCancel:
		cn.sock.SkipBody()
		cn.heardCancel(r.view.Id)
		return nil
	case packet.TypePing:
		cn.sock.SkipBody()
		if len(r.view.Id) > 0 {
			r.dirty = true
			_ = cn.answer(string(r.view.Id), r.view.Codec) // if there is no room the session ends
		}
		return nil
	case packet.TypeCredit:
		if !cn.peer.noCredit {
			cn.sock.SkipBody()
			return cn.heardCredit(r.view.Id, r.view.Meta)
		}
	case packet.TypeGoAway:
		cn.sock.SkipBody()
		cn.heardFarewell(r.view.StatusCode, r.view.Meta)
		cn.heardGoAway(r.view.StatusCode == StatusOK)
		return nil
	}
	// A packet of an unknown type is answered with a reply, and a reply is never answered: two peers
	// cannot keep each other busy.
	cn.sock.SkipBody()
	c = r.input(c, string(r.view.Uri))
	logf(LevelDebug, "packet of unknown type dropped", "session %s: packet of unknown type %d dropped",
		slog.String("session", cn.sess.Id()), slog.Int("type", int(c.typ)), slog.String("remote", c.Ip()))
	if c.id != "" {
		r.refuse(c, newXerror(StatusUnsupportedType, fmt.Sprintf("unsupported type %d", c.typ), nil))
	}
	return nil
}

// value hands a value to its stream. One of a stream that is over is dropped.
func (r *reader) value() error {
	st := r.conn.streams.Find(r.view.Id, r.view.Type == packet.TypeAnswer)
	if st == nil {
		r.conn.sock.SkipBody()
		return nil
	}
	return st.Receive(r.conn.sock, &r.view, int64(r.length))
}

// rest is called before the reader may have to wait: it flushes the replies of quick handlers.
func (r *reader) rest() error {
	if r.dirty {
		r.dirty = false
		if !r.enter(nil, nil) {
			go r.conn.flush()
			return nil
		}
		r.conn.flush()
		if !r.leave() {
			return errReplaced
		}
	}
	r.turn.Unwatch()
	return nil
}

// reply hands a reply to the pull that waits for it; c is what await has returned.
func (r *reader) reply(c *call) error {
	cn, v := r.conn, &r.view
	id, ok := parsePullId(v.Id)
	var late socket.Body // a body that was not received together with its header,
	var read bool        // and whether there is one
	var err error
	if !cn.sock.BodyBuffered() {
		cn.handlers.Add(1) // so that Shutdown waits for the body too
		defer cn.handlerDone()
		if ok && cn.pulls.Has(id) { // the pull stays in the table, so that its caller may give up meanwhile
			// as they last until the next read
			v.Id, v.Uri, v.Status = bytes.Clone(v.Id), bytes.Clone(v.Uri), bytes.Clone(v.Status)
			read = true
			if late, err = cn.sock.ReadBody(nil); socket.Fatal(err) {
				return fmt.Errorf("in the middle of a reply: %w", err)
			}
		}
	}
	var pd *pending
	if ok {
		pd = cn.takePull(id)
	}
	if pd == nil {
		late.Release()
		return r.strayReply()
	}
	pd.received(v, int64(r.length))
	if o := pd.seen; o != nil {
		if c != nil {
			o.addPublic(c)
		}
		if err := cn.peer.chain.postReadHeader.run(o); err != nil {
			cn.sock.SkipBody()
			late.Release()
			pd.complete(err.xerror())
			return nil
		}
		o.in.fix("", packet.TypeReply)
		o.in.number(pd.entry.Number())
	}
	if pd.body = late; !read {
		pd.body, err = cn.sock.ReadBody(pd.bodyMem[:0])
	}
	switch {
	case err == nil:
		pd.receivedBody()
		pd.complete(nil)
	case socket.Fatal(err):
		pd.complete(newXerror(StatusConnClosed, "connection closed in the middle of the reply: "+
			err.Error(), err))
		return err
	default:
		pd.complete(replyXerror(err))
	}
	return nil
}

// strayReply passes over a reply that no pull waits for. If the reply says that the other side does not want
// the connection, the connection ends with that.
func (r *reader) strayReply() error {
	cn, id := r.conn, r.view.Id
	if string(id) == refusedId && cn.pushesRead == 0 {
		return r.refusal()
	}
	cn.sock.SkipBody()
	switch string(id) {
	case creditId:
		cn.flow.Refused()
		return nil
	case measureId:
		cn.pings.Answered()
		return nil
	}
	if number, ok := parsePullId(id); ok && cn.flow.Pulls.Sent(number) {
		cn.flow.Pulls.Late()
	}
	logf(LevelDebug, "reply to no pull in flight dropped",
		"session %s: reply %s to no pull in flight dropped", slog.String("session", cn.sess.Id()),
		slog.String("id", string(id)), slog.String("remote", cn.remoteIp()))
	return nil
}

// addPublic adds the values that PreReadHeader hooks have stored in another context.
func (o *outgoing) addPublic(from *call) {
	if from.values != nil {
		public := o.Public()
		from.Public().Range(func(k, v interface{}) bool {
			public.Store(k, v)
			return true
		})
	}
}

// errReplaced ends a reader when the connection has another one.
var errReplaced = errors.New("the reader was replaced")

// While the other side does not read, its pulls must not pile up here. A connection whose output is full
// begins no more handlers of pulls: the pulls wait, see internal/workers, and when enough of them wait the
// reader rests, so that the other side's own writes come to a stop. The reader does not rest while this side
// waits for replies of the other: the handlers that fill the output may need those replies, on both sides at
// once.

const (
	// restBytes is how many bytes of pulls may wait, while the output is full, before the reader rests,
	// and maxPullBytes how many before pulls are refused.
	restBytes    = 64 << 10
	maxPullBytes = 8 << 20
)

// unread reports whether the output is full, because the other side does not read, and so many bytes of
// pulls wait that further pulls are refused.
func (cn *conn) unread() bool {
	return cn.queue.PullBytes() >= maxPullBytes && cn.sock.OutputFull()
}

// restWhileFull keeps the reader from reading on while rests is true.
func (cn *conn) restWhileFull() {
	for cn.rests() {
		if cn.wake == nil {
			cn.wake = make(chan struct{}, 1)
		}
		cn.resting.Store(true)
		if cn.rests() { // asked again: wakeReader looks at resting after the change that ends the rest
			<-cn.wake
		}
		cn.resting.Store(false)
	}
}

func (cn *conn) rests() bool {
	return cn.queue.PullBytes() >= restBytes && cn.sock.OutputBusy() && !cn.ended.Load() &&
		!cn.flow.Pulls.Awaited()
}

// wakeReader lets the reader look again whether to rest.
func (cn *conn) wakeReader() {
	if cn.resting.Load() {
		select {
		case cn.wake <- struct{}{}:
		default:
		}
	}
}

// heardRefusal returns the error that a reply with refusedId tells of, with the reply's body.
func (cn *conn) heardRefusal(h *packet.Header, raw packet.RawBody) *refusedConn {
	x := repliedStatus(h)
	x.notRun = true
	if x.code == StatusOK { // an error must not look like success
		x.code = StatusBadGateway
	}
	if len(raw) > 0 {
		x.details, x.gzip, x.limits = slices.Clone(raw), h.Gzip, &cn.peer.limits
	}
	return &refusedConn{x}
}

// refusal reads the rest of a reply with refusedId and returns the error that it tells of.
func (r *reader) refusal() error {
	v := &r.view
	h := &packet.Header{StatusCode: v.StatusCode, Status: string(v.Status), Gzip: v.Gzip, Meta: v.Meta}
	body, _ := r.conn.sock.ReadBody(nil) // without its details it is an error nevertheless
	defer body.Release()
	return r.conn.heardRefusal(h, body.B)
}
