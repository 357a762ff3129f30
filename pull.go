package tp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/goutil"

	"github.com/henrylee2cn/teleport/internal/waiter"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// PullCmd is one pull and what came of it. Once it is complete only PostWritePull
// hooks that still run may change it.
type PullCmd struct {
	// Xerror is nil if the pull succeeded. Otherwise its code is the status that
	// the other side answered with, or one below 200 if there was no answer.
	Xerror Xerror

	link        *link
	again       *resend // nil unless it may be sent more than once
	uri         string
	args, reply interface{}
	id          uint64
	done        chan *PullCmd // GoPull delivers on it; nil for Pull
	waits       bool          // somebody is parked until it is settled
	timeout     uint32        // a part of packed
	// flight is nil once the pull is complete and all that is left of it is in
	// packed, until somebody asks for more.
	flight atomic.Pointer[flight]
	packed packed
}

// flight is what a pull needs until it is complete. Nearly nobody looks at it
// afterwards, so it is used again.
type flight struct {
	// bare is true while nobody can see the packets. Then they are not made: what
	// there is to know of them is in the command's packed.
	bare bool
	ctx  packetCtx // of the packet sent and of the reply
	exchange
	settled waiter.Waiter // where Pull waits,
	ended   chan struct{} // or here, if it may give up
	timer   *time.Timer   // of DefaultPullTimeout; nil if there is none
	stop    func() bool   // ends the watch of the pull's context; nil if that never ends
	meta    *map[string]string
}

var flights = sync.Pool{New: func() any {
	f := new(flight)
	f.settled.Init()
	return f
}}

func newPullCmd(s *Session, uri string, args, reply interface{}) *PullCmd {
	return &PullCmd{link: s.link.Load(), uri: uri, args: args, reply: reply}
}

// board gives the command a flight by its link.
func (cmd *PullCmd) board(ctx context.Context) *flight {
	l := cmd.link
	f := flights.Get().(*flight)
	start := l.peer.startTime()
	if len(l.peer.chain.all) == 0 && start.IsZero() {
		f.bare = true
	} else {
		f.show(l)
		f.start = start
	}
	if cmd.waits && ctx.Done() != nil {
		f.ended = make(chan struct{}, 1)
	}
	cmd.flight.Store(f)
	return f
}

// show makes a bare flight one whose packets are seen.
func (f *flight) show(l *link) {
	f.bare = false
	f.ctx.link, f.ctx.exchange = l, &f.exchange
	f.in.Header = &f.inHdr
}

// Session returns the session that the pull was made on.
func (cmd *PullCmd) Session() *Session { return cmd.link.sess }

// Output returns the packet that was sent.
func (cmd *PullCmd) Output() *packet.Packet { return &cmd.unpacked().out }

// Input returns the reply; its header is empty if there was none.
func (cmd *PullCmd) Input() *packet.Packet { return &cmd.unpacked().in }

// Result returns what was given to Pull as reply, and Xerror.
func (cmd *PullCmd) Result() (interface{}, Xerror) { return cmd.reply, cmd.Xerror }

// Meta returns the metadata of the reply, nil if there is none.
func (cmd *PullCmd) Meta() map[string]string { return cmd.Input().Header.Meta }

// Public returns the values that the hooks of this pull and of its reply share.
func (cmd *PullCmd) Public() goutil.Map { return cmd.unpacked().ctx.Public() }

// Done returns the channel that GoPull delivers the command on; nil after Pull.
func (cmd *PullCmd) Done() <-chan *PullCmd { return cmd.done }

// launch sends the pull. Whatever happens, the command is settled once.
func (cmd *PullCmd) launch(ctx context.Context, settings []PacketSetting) {
	l := cmd.link // which the command may leave when it is complete
	cmd.id = l.pulls.newId()
	l.wakeReader()
	l.peer.expectReplies()
	if !cmd.enter(ctx, settings) {
		l.pulls.unsent.Add(1)
	}
}

// enter makes the packet and sends it. It reports whether the pull has been among those in
// flight.
func (cmd *PullCmd) enter(ctx context.Context, settings []PacketSetting) (entered bool) {
	f := cmd.flight.Load()
	for i := range settings {
		if settings[i].kind == settingReplyMeta {
			f.meta = settings[i].meta
		}
	}
	if x := replyArgument(cmd.reply); x != nil {
		if f.bare {
			f.show(cmd.link)
		}
		f.ctx.setOutput(packet.TypePull, cmd.uri, cmd.args, settings)
		cmd.settle(x)
		return false
	}
	if f.bare {
		x := exchanges.Get().(*exchange)
		entered = cmd.launchBare(ctx, f, x, settings)
		x.put()
		return entered
	}
	c, chain := &f.ctx, cmd.link.peer.chain
	c.setOutput(packet.TypePull, cmd.uri, cmd.args, settings)
	c.valuesLocked().ctx = ctx // which nobody else has yet
	f.numberId(cmd.id)
	c.outHdr.Id = c.id
	c.outHdr.Timeout = cmd.timeoutFor(ctx)
	if err := chain.preWritePull.run(c); err != nil {
		cmd.settle(notRun(err.xerror()))
		return false
	}
	c.fixOutput(c.id, packet.TypePull)
	frame, err := cmd.link.encodeInTurn(ctx, &f.exchange, cmd)
	if err != nil {
		cmd.settle(cmd.link.sendXerror(ctx, cmd.link.waited(ctx, err)))
		return false
	}
	entered, sent := cmd.send(ctx, frame)
	if sent { // it may be complete by now
		if err := chain.postWritePull.run(c); err != nil {
			c.link.peer.rarely(LevelWarn, "hook failed", "pull %s: %v", append([]slog.Attr{uriAttr(cmd.uri), errAttr(err)}, c.link.logAttrs()...)...)
		}
	}
	return entered
}

// launchBare is launch where nobody sees the packet, which is made in x.
func (cmd *PullCmd) launchBare(ctx context.Context, f *flight, x *exchange, settings []PacketSetting) (entered bool) {
	l := cmd.link
	l.peer.cfg.fill(&x.out, &x.outHdr, packet.TypePull, cmd.uri, cmd.args, settings)
	x.numberId(cmd.id)
	x.outHdr.Id = x.id
	x.outHdr.Timeout = cmd.timeoutFor(ctx)
	frame, err := l.encodeInTurn(ctx, x, cmd)
	if err != nil || !cmd.packOutput(&x.out) {
		f.show(l)
		f.ctx.setOutput(packet.TypePull, cmd.uri, cmd.args, settings)
		f.ctx.numberId(cmd.id)
		f.outHdr.Id, f.outHdr.Timeout = f.id, x.outHdr.Timeout
		f.out.HeaderLength, f.out.BodyLength, f.out.Length = x.out.HeaderLength, x.out.BodyLength, x.out.Length
	}
	if err != nil {
		cmd.settle(cmd.link.sendXerror(ctx, cmd.link.waited(ctx, err)))
		return false
	}
	entered, _ = cmd.send(ctx, frame)
	return entered
}

// send enters the pull among those in flight and writes it. It reports what of that it
// has done, and settles the command if it is not sent.
func (cmd *PullCmd) send(ctx context.Context, frame socket.Frame) (entered, sent bool) {
	l, id := cmd.link, cmd.id
	ends := ctx.Done() != nil
	if ends && ctx.Err() != nil {
		frame.Drop()
		cmd.settle(notSent(ctx))
		return false, false
	}
	if l.goneAway() {
		frame.Drop()
		cmd.settle(unrun(StatusServiceUnavailable, "the other side is shutting down, the pull was not sent", nil))
		return false, false
	}
	if cmd.again != nil {
		cmd.again.entered = true
	}
	watched := ends && !cmd.waits
	if watched {
		cmd.watch(ctx)
	}
	// From here on a reply may come: whoever takes the entry out of the table
	// settles the command.
	if !l.pulls.add(cmd, cmd.timeLeft()) {
		frame.Drop()
		cmd.settle(l.sess.closedXerror("connection closed, the pull was not sent", nil))
		return false, false
	}
	if watched && ctx.Err() != nil { // it may have been watched before there was a pull to give up
		frame.Drop()
		if l.takePull(id) != nil {
			cmd.settle(notSent(ctx))
		}
		return true, false
	}
	if l.peer.refusesPulls() {
		frame.Drop()
		if l.takePull(cmd.id) != nil {
			cmd.settle(unrun(StatusServiceUnavailable, "this peer is shutting down, the pull was not sent", nil))
		}
		return true, false
	}
	var err error
	if ends { // who may give up must not be held up by the connection
		err = l.waited(ctx, l.sock.TryFrame(ctx, frame))
	} else {
		err = l.wrote(l.sock.WriteFrame(frame))
	}
	if err != nil {
		if l.takePull(id) != nil {
			cmd.settle(cmd.link.sendXerror(ctx, err))
		}
		return true, false
	}
	if ends && ctx.Err() == context.Canceled { // it may have said so before the pull was sent
		l.cancelPull(id)
	}
	return true, true
}

// replyArgument is what is wrong with what a reply is to be decoded into.
func replyArgument(reply interface{}) Xerror {
	if reply == nil {
		return nil
	}
	if v := reflect.ValueOf(reply); v.Kind() != reflect.Pointer {
		return unrun(StatusBadRequest, fmt.Sprintf("nothing was sent: the reply cannot be decoded into a %T; expected a pointer, or nil", reply), nil)
	} else if v.IsNil() {
		return unrun(StatusBadRequest, fmt.Sprintf("nothing was sent: the reply cannot be decoded into a nil %T", reply), nil)
	}
	return nil
}

// notSent is the end of a pull or a push whose context was done before it was sent.
func notSent(ctx context.Context) Xerror {
	x := ctxXerror(ctx, "nothing was sent")
	x.notRun = true
	return x
}

// await waits until the command is settled, which it does itself when ctx is done.
func (cmd *PullCmd) await(ctx context.Context, f *flight) {
	if f.ended == nil {
		f.settled.Wait()
		return
	}
	select {
	case <-f.ended:
	case <-ctx.Done():
		cmd.abandon(ctx, cmd.link, cmd.id)
		<-f.ended
	}
	f.ended = nil
}

// abandon settles the command, if it is still in flight on the link with the id, and
// tells the other side.
func (cmd *PullCmd) abandon(ctx context.Context, l *link, id uint64) {
	if l.takePull(id) == nil {
		return
	}
	cmd.settle(ctxXerror(ctx, "the outcome of the pull is unknown"))
	if ctx.Err() == context.Canceled { // of a deadline the other side knows
		l.cancelPull(id)
	}
}

// watch abandons the pull when its context is done.
func (cmd *PullCmd) watch(ctx context.Context) {
	l, id := cmd.link, cmd.id // which are others when the pull is sent again
	cmd.flight.Load().stop = context.AfterFunc(ctx, func() { cmd.abandon(ctx, l, id) })
}

// timeoutFor is what the header says about the time that the pull may take.
func (cmd *PullCmd) timeoutFor(ctx context.Context) int64 {
	left := cmd.timeLeft()
	if deadline, ok := ctx.Deadline(); ok {
		if until := time.Until(deadline); left == 0 || until < left {
			left = max(until, 1)
		}
	}
	if left <= 0 {
		return 0
	}
	return timeoutOf(left)
}

// startTimer completes the pull when it has taken too long.
func (cmd *PullCmd) startTimer(d time.Duration) {
	l, id := cmd.link, cmd.id // which are others when the pull is sent again
	cmd.flight.Load().timer = time.AfterFunc(d, func() {
		if l.takePull(id) != nil {
			cmd.settle(newXerror(StatusDeadlineExceeded, fmt.Sprintf("no reply after %v, the outcome of the pull is unknown", l.peer.cfg.DefaultPullTimeout), context.DeadlineExceeded))
		}
	})
}

// settle completes the command: with an error, or with the reply in the flight's
// in and body. Only whoever owns the command may call it, once.
func (cmd *PullCmd) settle(x Xerror) {
	cmd.Xerror = x
	if cmd.waits {
		if f := cmd.flight.Load(); f.ended != nil {
			f.ended <- struct{}{}
		} else {
			f.settled.Done()
		}
		return
	}
	go cmd.deliver(true)
}

// deliver completes a command of GoPull's: one that is settled, or one that has to
// wait for a connection.
func (cmd *PullCmd) deliver(settled bool) {
	finished := false
	defer func() {
		if finished {
			return
		}
		// A hook has called runtime.Goexit, or something here has panicked.
		if p := recover(); p != nil {
			cmd.link.peer.logPanic(LevelCritical, "pull", "", p)
		}
		f := cmd.flight.Load()
		if again := cmd.again; again != nil && again.flying && again.entered {
			cmd.await(again.ctx, f) // it is on its way, and will be settled
			again.flying = false
			cmd.deliver(true)
			return
		}
		if f != nil {
			f.raw.Release()
		}
		cmd.Xerror = newXerror(StatusFailedPlugin, "", nil)
		cmd.done <- cmd
	}()
	if settled {
		cmd.finish()
	}
	if !settled || cmd.refused() {
		cmd.waits = true
		cmd.persist()
	}
	finished = true
	cmd.done <- cmd
}

// timeLeft is how long the pull may still take by DefaultPullTimeout; zero is no bound.
func (cmd *PullCmd) timeLeft() time.Duration {
	switch {
	case cmd.again == nil:
		return max(cmd.link.peer.cfg.DefaultPullTimeout, 0)
	case cmd.again.patience.until.IsZero():
		return 0
	}
	return max(time.Until(cmd.again.patience.until), 1)
}

// finish does the part of completing that belongs on the waiting goroutine:
// decoding.
func (cmd *PullCmd) finish() {
	f := cmd.flight.Load()
	if f.timer != nil {
		f.timer.Stop()
		f.timer = nil
	}
	if f.stop != nil {
		f.stop()
		f.stop = nil
	}
	if f.meta != nil {
		if *f.meta = f.inHdr.Meta; f.bare {
			*f.meta = nil
		}
		f.meta = nil
	}
	if f.bare {
		if cmd.Xerror == nil {
			cmd.Xerror = cmd.decode(f, int32(cmd.packed.inGzip))
		}
		f.raw.Release()
		cmd.flight.Store(nil)
		flights.Put(f)
		return
	}
	if cmd.Xerror == nil {
		cmd.Xerror = cmd.readReply(f)
	}
	f.raw.Release()
	cmd.logPulled(&f.ctx)
}

func (cmd *PullCmd) readReply(f *flight) Xerror {
	c := &f.ctx
	if f.inHdr.StatusCode != StatusOK {
		x := repliedStatus(&f.inHdr)
		if len(f.raw.B) > 0 {
			x.details, x.gzip, x.limits = packet.RawBody(bytes.Clone(f.raw.B)), f.inHdr.Gzip, &c.link.peer.limits
		}
		return x
	}
	chain := c.link.peer.chain
	if err := chain.preReadBody.run(c); err != nil {
		return err.xerror()
	}
	if x := cmd.decode(f, f.inHdr.Gzip); x != nil {
		return x
	}
	f.in.Body = cmd.reply
	c.printInput(cmd.reply)
	if err := chain.postReadBody.run(c); err != nil {
		return err.xerror()
	}
	return nil
}

// decode decodes the reply's body; no body leaves the reply as it is.
func (cmd *PullCmd) decode(f *flight, gzip int32) Xerror {
	var err error
	if len(f.raw.B) <= smallPacket && gzip == 0 { // too little to be counted
		_, err = packet.DecodeBody(f.raw.B, 0, cmd.reply, cmd.link.peer.freeLimits)
	} else {
		_, err = packet.DecodeBody(f.raw.B, gzip, cmd.reply, cmd.link.sock.Limits())
	}
	if err != nil {
		return replyXerror(err)
	}
	return nil
}

// notRun makes x say that the pull has not run.
func notRun(x Xerror) Xerror {
	return &xerror{code: x.Code(), text: x.Text(), cause: x, notRun: true, after: afterOf(x)}
}

// closedXerror is why nothing was sent by a connection that has ended.
func (s *Session) closedXerror(text string, err error) *xerror {
	cause := s.Err()
	var refused *refusedConn
	if errors.As(cause, &refused) {
		return refused.unrun()
	}
	if cause != nil && cause != errClosedHere && cause != ErrPeerClosed && cause != io.EOF {
		text += ": " + cause.Error()
	}
	return unrun(StatusConnClosed, text, err)
}

// sendXerror is why a packet could not be sent, by who would wait as long as ctx lasts.
func (l *link) sendXerror(ctx context.Context, err error) Xerror {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return notSent(ctx)
	}
	if errors.Is(err, errSocketClosed) {
		return l.sess.closedXerror("connection closed, the packet was not sent", err)
	}
	var we *socket.WriteError
	if !errors.As(err, &we) { // it did not encode
		if errors.Is(err, packet.ErrTooLarge) {
			return unrun(StatusTooLarge, "nothing was sent: "+err.Error(), err)
		}
		return unrun(StatusWriteFailed, "nothing was sent: "+err.Error(), err)
	}
	x := newXerror(StatusWriteFailed, fmt.Sprintf("write failed: %v", err), err)
	if socket.Gone(err) {
		x = newXerror(StatusConnClosed, fmt.Sprintf("connection closed by the other side: %v", err), err)
	}
	x.notRun = we.Unsent
	return x
}
