package tp

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// Pull sends a request to the URI and waits for the reply, which is decoded into
// reply, a pointer; a nil reply drops the body. The returned command's Xerror
// is nil on success. Args and reply belong to the call until it returns.
func (s *Session) Pull(uri string, args, reply interface{}, setting ...PacketSetting) *PullCmd {
	return s.PullContext(context.Background(), uri, args, reply, setting...)
}

// PullContext is Pull for as long as ctx lasts. When that is done the pull completes
// at once: with StatusDeadlineExceeded, which errors.Is finds to be
// context.DeadlineExceeded, or with StatusCanceled and context.Canceled. The other
// side's handler is told of the deadline and of a cancellation, see [Ctx]. A reply that
// comes later is dropped.
//
// If as many pulls of the session are unanswered as the other side takes, its MaxSessionHandlers, the
// pull waits until there is a place for it, in the order of the calls: as long as ctx and
// DefaultPullTimeout allow. With neither a deadline nor that timeout it ends with StatusOverloaded when
// none of the session's pulls was answered for the write timeout. [WithFailFast] is for pulls that
// must not wait.
func (s *Session) PullContext(ctx context.Context, uri string, args, reply interface{},
	setting ...PacketSetting) *PullCmd {
	ctx = orNone(ctx)
	cmd := newPullCmd(s, uri, args, reply)
	if s.redial != nil {
		cmd.again = s.redial.resend(ctx, setting)
		cmd.persist()
		return cmd
	}
	pd := cmd.newPending(ctx, true)
	cmd.launch(ctx, pd, setting)
	cmd.await(ctx, pd)
	cmd.finish(pd)
	return cmd
}

// GoPull is Pull without the wait. The command is delivered on done when it is
// complete, exactly once and without holding up anything else, whether done is
// buffered or not; if done is nil a buffered channel is made. Args and reply
// belong to the call until then. Like Pull and Push it may wait while the
// connection takes no output, and for a place, see [Session.PullContext]. The command that
// is returned gives the same channel with [PullCmd.Done], and nothing else of it
// may be used before it was delivered.
func (s *Session) GoPull(uri string, args, reply interface{}, done chan *PullCmd,
	setting ...PacketSetting) *PullCmd {
	return s.GoPullContext(context.Background(), uri, args, reply, done, setting...)
}

// GoPullContext is GoPull for as long as ctx lasts, see [Session.PullContext].
func (s *Session) GoPullContext(ctx context.Context, uri string, args, reply interface{},
	done chan *PullCmd, setting ...PacketSetting) *PullCmd {
	ctx = orNone(ctx)
	if done == nil {
		done = make(chan *PullCmd, 1)
	}
	cmd := newPullCmd(s, uri, args, reply)
	cmd.done = done
	if s.redial != nil {
		cmd.again = s.redial.resend(ctx, setting)
		if !cmd.conn.usable() {
			go cmd.deliver(nil)
			return cmd
		}
	}
	pd := cmd.newPending(ctx, false)
	pd.command = cmd
	cmd.launch(ctx, pd, setting)
	return cmd
}

// newPending begins the pull: it returns the pending pull, which is not in the connection's table yet. waits
// says whether a goroutine will wait for the pull, as Pull does and GoPull does not.
func (cmd *PullCmd) newPending(ctx context.Context, waits bool) *pending {
	cn := cmd.conn
	pd := pendings.Get().(*pending)
	if start := cn.peer.packetLog.start(); cn.peer.chain.seesPulls() || !start.IsZero() {
		pd.seen = newOutgoing(cn, ctx, start)
	}
	if waits && ctx.Done() != nil {
		pd.ended = make(chan struct{}, 1)
	}
	return pd
}

// launch sends the pull, and reports whether it was sent. Whatever happens, pd is completed once.
func (cmd *PullCmd) launch(ctx context.Context, pd *pending, settings []PacketSetting) (sent bool) {
	cn := cmd.conn // kept here: the command may get another connection once pd is complete
	d := newDraft()
	open := pd.wire.open
	number, ok := uint64(0), true
	if open {
		number = cn.flow.Pulls.Aside()
	} else {
		number, ok = cn.flow.TryPull()
	}
	if !ok {
		var x Xerror
		if pd.began == 0 {
			pd.began = time.Since(processStart)
		}
		if number, x = cn.awaitPlace(ctx, cmd.timeLeft(pd), settings); x != nil {
			cmd.unsent(pd, d, settings, x)
			d.put()
			return false
		}
	}
	cmd.number = number
	cn.wakeReader()
	entered := false
	defer func() {
		if !entered && !open {
			cn.flow.Pulls.Unused()
		}
	}()
	entered, sent = cmd.makeAndSend(ctx, pd, d, settings)
	d.put()
	return sent
}

// makeAndSend makes the packet, in the draft unless hooks or the log see it, and sends it. It reports whether
// the pull was in the connection's table, and whether it was sent.
func (cmd *PullCmd) makeAndSend(ctx context.Context, pd *pending, d *draft,
	settings []PacketSetting) (entered, sent bool) {
	cn, o := cmd.conn, pd.seen
	for i := range settings {
		if settings[i].kind == settingReplyMeta {
			pd.meta = settings[i].meta
		}
	}
	w := &d.ownPacket
	if o != nil {
		w = &o.out
	}
	typ := pd.wire.typ()
	w.fill(&cn.peer.cfg, typ, cmd.uri, cmd.args, settings)
	w.number(cmd.number)
	if pd.load != nil {
		w.header.Load = 1
	}
	if x := replyArgument(cmd.reply); x != nil {
		pd.sent(cn, w, cmd.number)
		pd.complete(x)
		return false, false
	}
	w.header.Timeout = cmd.timeoutFor(ctx, pd)
	if o != nil {
		if err := cn.peer.chain.preWritePull.run(o); err != nil {
			pd.complete(notRun(err.xerror()))
			return false, false
		}
		w.number(cmd.number)
		w.fix(w.header.Id, typ)
	}
	frame, err := cmd.encode(ctx, pd, w, d.frame[:0])
	pd.sent(cn, w, cmd.number)
	if err != nil {
		pd.complete(cn.sendXerror(ctx, cn.waited(ctx, err)))
		return false, false
	}
	if s, ok := pd.command.(interface{ begins(id string) }); ok {
		s.begins(strconv.FormatUint(cmd.number, 10))
	}
	entered, sent = cmd.send(ctx, pd, frame)
	if sent && o != nil { // pd may be complete by now, and used by another pull
		if err := cn.peer.chain.postWritePull.run(o); err != nil {
			cn.peer.log.rarely(LevelWarn, "hook failed", "pull %s: %v",
				append([]slog.Attr{uriAttr(cmd.uri), errAttr(err)}, cn.logAttrs()...)...)
		}
	}
	return entered, sent
}

// encode waits for a permit to encode, and encodes the packet. The header's timeout is what is left of the
// time after the wait.
func (cmd *PullCmd) encode(ctx context.Context, pd *pending, w *ownPacket, mem []byte) (socket.Frame, error) {
	permit, err := cmd.conn.sock.Permit(ctx)
	if err != nil {
		return socket.Frame{}, err
	}
	if w.header.Timeout > 0 {
		w.header.Timeout = min(w.header.Timeout, cmd.timeoutFor(ctx, pd))
	}
	return cmd.conn.sock.Encode(permit, mem, &w.packet)
}

// send puts the pull into the connection's table and writes the frame. It reports which of the two it has
// done, and completes pd if the pull is not sent.
func (cmd *PullCmd) send(ctx context.Context, pd *pending, frame socket.Frame) (entered, sent bool) {
	cn, number := cmd.conn, cmd.number
	frame = frame.Tagged(number)
	ends := ctx.Done() != nil
	if ends && ctx.Err() != nil {
		frame.Drop()
		pd.complete(notSent(ctx))
		return false, false
	}
	if cn.sess.closed.Load() { // whoever has seen Done closed is told that nothing was sent
		frame.Drop()
		pd.complete(cn.sess.closedXerror("connection closed, the pull was not sent", nil))
		return false, false
	}
	if cn.goneAway() {
		frame.Drop()
		pd.complete(unrun(StatusServiceUnavailable,
			"the other side is shutting down, the pull was not sent", nil))
		return false, false
	}
	if cmd.again != nil {
		cmd.again.entered = true
	}
	watched := ends && pd.ended == nil // no goroutine waits: the context itself must end the pull
	if watched {
		pd.stop = context.AfterFunc(ctx, func() { cn.abandonPull(ctx, number) })
	}
	var timer *time.Timer // set when the pull is in the table
	left := cmd.timeLeft(pd)
	if left > 0 {
		timer = cn.pullTimer(number)
		pd.timer = timer
	}
	// From here on a reply may come: whoever takes pd out of the table completes it.
	if !cn.pulls.Add(&pd.entry, number, pd) {
		frame.Drop()
		pd.complete(cn.sess.closedXerror("connection closed, the pull was not sent", nil))
		return false, false
	}
	cn.peer.keeper.Expect()
	if timer != nil {
		timer.Reset(left)
	}
	if watched && ctx.Err() != nil { // ctx may have ended before the pull was in the table
		frame.Drop()
		if pd := cn.takePull(number); pd != nil {
			pd.complete(notSent(ctx))
		}
		return true, false
	}
	if cn.peer.refusesPulls() {
		frame.Drop()
		if pd := cn.takePull(number); pd != nil {
			pd.complete(unrun(StatusServiceUnavailable, "this peer is shutting down, the pull was not sent",
				nil))
		}
		return true, false
	}
	var err error
	if ends { // a caller that may give up must not be held up by the connection
		_, err = cn.sock.Send(ctx, frame, socket.Try)
		err = cn.waited(ctx, err)
	} else {
		_, err = cn.sock.Send(ctx, frame, socket.Now)
		err = cn.wrote(err)
	}
	if err != nil {
		if pd := cn.takePull(number); pd != nil {
			pd.complete(cn.sendXerror(ctx, err))
		}
		return true, false
	}
	if ends && ctx.Err() == context.Canceled { // the cancellation may have been sent before the pull
		cn.cancelPull(number)
	}
	return true, true
}

// replyArgument returns the error of a reply argument that nothing can be decoded into; nil if it is fine.
func replyArgument(reply interface{}) Xerror {
	if reply == nil {
		return nil
	}
	if v := reflect.ValueOf(reply); v.Kind() != reflect.Pointer {
		return unrun(StatusBadRequest,
			fmt.Sprintf("nothing was sent: the reply cannot be decoded into a %T; expected a pointer, or nil",
				reply), nil)
	} else if v.IsNil() {
		return unrun(StatusBadRequest,
			fmt.Sprintf("nothing was sent: the reply cannot be decoded into a nil %T", reply), nil)
	}
	return nil
}

// await waits until pd is complete. When ctx is done before that, await completes pd itself.
func (cmd *PullCmd) await(ctx context.Context, pd *pending) {
	if pd.ended == nil {
		pd.completed.Wait()
		return
	}
	select {
	case <-pd.ended:
	case <-ctx.Done():
		cmd.conn.abandonPull(ctx, cmd.number)
		<-pd.ended
	}
}

// abandonPull ends the pull with the number, if it still waits for its reply, and tells the other side.
func (cn *conn) abandonPull(ctx context.Context, number uint64) {
	pd := cn.takeUnanswered(number)
	if pd == nil {
		return
	}
	if cn.recall(number) {
		pd.complete(notSent(ctx))
		return
	}
	pd.complete(ctxXerror(ctx, "the outcome of the pull is unknown"))
	if ctx.Err() == context.Canceled { // the other side knows a deadline already
		cn.cancelPull(number)
	}
}

// pullTimer returns a timer that ends the pull with the number, if that still waits for its reply. The caller
// sets the timer.
func (cn *conn) pullTimer(number uint64) *time.Timer {
	return time.AfterFunc(math.MaxInt64, func() {
		if pd := cn.takeUnanswered(number); pd != nil {
			if cn.recall(number) {
				pd.complete(unrun(StatusDeadlineExceeded, fmt.Sprintf(
					"the pull was not sent as a whole within %v", cn.peer.cfg.DefaultPullTimeout),
					context.DeadlineExceeded))
				return
			}
			pd.complete(newXerror(StatusDeadlineExceeded,
				fmt.Sprintf("no reply after %v, the outcome of the pull is unknown",
					cn.peer.cfg.DefaultPullTimeout), context.DeadlineExceeded))
		}
	})
}

// recall takes back the pull with the number if not all of it was sent, so that it does not run, and reports
// whether it has.
func (cn *conn) recall(number uint64) bool {
	if !cn.sock.Recall(number) {
		return false
	}
	cn.flow.Pulls.Late() // no answer comes
	go cn.flush()
	return true
}

// timeoutFor returns the header's timeout: the time that the pull may take, in milliseconds; zero for no
// bound.
func (cmd *PullCmd) timeoutFor(ctx context.Context, pd *pending) int64 {
	left := cmd.timeLeft(pd)
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

// deliver completes a command of GoPull: pd is its pull, which is complete, or nil if the command has to wait
// for a connection first.
func (cmd *PullCmd) deliver(pd *pending) {
	finished := false
	defer func() {
		if finished {
			return
		}
		// A hook has called runtime.Goexit, or something here has panicked.
		if p := recover(); p != nil {
			cmd.conn.peer.log.panicked(LevelCritical, "pull", "", p)
		}
		if again := cmd.again; again != nil && again.last != nil {
			if again.entered { // the pull is in the table, so that somebody completes it
				pd, again.last = again.last, nil
				cmd.await(again.ctx, pd)
				cmd.deliver(pd)
				return
			}
		}
		cmd.Xerror = newXerror(StatusFailedPlugin, "", nil)
		cmd.done <- cmd
	}()
	if pd != nil {
		cmd.finish(pd)
	}
	if pd == nil || cmd.refused() {
		cmd.persist()
	}
	finished = true
	cmd.done <- cmd
}

// timeLeft returns how long the pull may still take by DefaultPullTimeout; zero for no bound.
func (cmd *PullCmd) timeLeft(pd *pending) time.Duration {
	switch {
	case pd.wire.open: // streams are for longer
		return 0
	case cmd.again == nil:
		bound := cmd.conn.peer.cfg.DefaultPullTimeout
		if bound <= 0 || pd.began == 0 {
			return max(bound, 0)
		}
		return max(bound-(time.Since(processStart)-pd.began), 1)
	case cmd.again.patience.until.IsZero():
		return 0
	}
	return max(time.Until(cmd.again.patience.until), 1)
}

// finish is the last part of a pull, on the goroutine that waits for it: it decodes the reply into the
// command, and gives pd back.
func (cmd *PullCmd) finish(pd *pending) {
	if pd.timer != nil {
		pd.timer.Stop()
		pd.timer = nil
	}
	if pd.stop != nil {
		pd.stop()
		pd.stop = nil
	}
	cmd.Xerror, cmd.wire = pd.failure, pd.wire
	reply := pd.replied()
	if pd.meta != nil {
		if *pd.meta = nil; reply != nil {
			*pd.meta = reply.header.Meta
		}
	}
	switch o := pd.seen; {
	case o != nil:
		cmd.seen.Store(o)
		cmd.finishSeen(pd, o)
	case pd.failure != nil:
	case reply != nil && reply.header.StatusCode != StatusOK:
		cmd.Xerror = cmd.repliedError(pd, &reply.header)
	case reply != nil:
		cmd.Xerror = cmd.decode(pd, reply.header.Gzip)
	default:
		cmd.Xerror = cmd.decode(pd, int32(pd.wire.inGzip))
	}
	if reply != nil && pd.seen == nil {
		o := cmd.unpack()
		id := o.out.header.Id
		o.in = *reply
		o.in.packet.Header, o.in.header.Id = &o.in.header, id
		if cmd.Xerror == nil {
			o.in.packet.Body = cmd.reply
		}
		cmd.seen.Store(o)
	}
	pd.body.Release()
	pd.put()
}

// finishSeen is finish where hooks or the log see the packets.
func (cmd *PullCmd) finishSeen(pd *pending, o *outgoing) {
	defer pd.body.Release() // if a hook ends the goroutine
	if cmd.Xerror == nil {
		cmd.Xerror = cmd.readReply(pd, o)
	}
	kind := kindOf(cmd.wire.typ())
	code, text := StatusOK, ""
	if x := cmd.Xerror; x != nil {
		code, text = x.Code(), x.Text()
	}
	o.conn.logPacket(packetLine{
		start: o.start, printed: o.printed, message: kind + " made", what: kind + "-launch", kind: kind,
		uri:  cmd.uri,
		code: code, status: text, in: &o.in.packet, out: &o.out.packet,
	})
	o.over(cmd.Xerror)
}

func (cmd *PullCmd) readReply(pd *pending, o *outgoing) Xerror {
	if o.in.header.StatusCode != StatusOK {
		return cmd.repliedError(pd, &o.in.header)
	}
	chain := o.conn.peer.chain
	if err := chain.preReadBody.run(o); err != nil {
		return err.xerror()
	}
	if x := cmd.decode(pd, o.in.header.Gzip); x != nil {
		return x
	}
	o.in.packet.Body = cmd.reply
	if o.conn.peer.packetLog.prints(o.start) {
		o.printed = printBody(cmd.reply)
	}
	if err := chain.postReadBody.run(o); err != nil {
		return err.xerror()
	}
	return nil
}

// repliedError returns the error that the other side has replied with, with its details.
func (cmd *PullCmd) repliedError(pd *pending, h *packet.Header) Xerror {
	x := repliedStatus(h)
	if len(pd.body.B) > 0 {
		x.details, x.gzip, x.limits = packet.RawBody(bytes.Clone(pd.body.B)), h.Gzip, &cmd.conn.peer.limits
	}
	return x
}

// decode decodes the reply's body into the command's reply. Without a body the reply stays as it is.
func (cmd *PullCmd) decode(pd *pending, gzip int32) Xerror {
	var err error
	if len(pd.body.B) <= smallPacket && gzip == 0 { // too little to be counted
		_, err = packet.DecodeBody(pd.body.B, 0, cmd.reply, cmd.conn.peer.freeLimits)
	} else if l := cmd.conn.sock.Limits(); !pd.body.HandOver(cmd.reply, gzip, l) {
		_, err = packet.DecodeBody(pd.body.B, gzip, cmd.reply, l)
	}
	if err != nil {
		return replyXerror(err)
	}
	return nil
}

// cancelPull tells the other side that nobody waits for the pull's reply any more.
func (cn *conn) cancelPull(id uint64) {
	cn.sendControl(&packet.Header{Id: string(appendPullId(nil, id)), Type: packet.TypeCancel})
}

func (r *redialer) resend(ctx context.Context, settings []PacketSetting) *resend {
	return &resend{ctx: ctx, settings: slices.Clone(settings),
		patience: r.patience(r.sess.peer.cfg.DefaultPullTimeout)}
}

// persist sends the command again and again until it may have run, or must not be sent any more, and
// completes it. Nobody else has the command meanwhile.
func (cmd *PullCmd) persist() {
	r, again := cmd.conn.sess.redial, cmd.again
	for {
		cn, x := r.await(again.ctx, again.patience)
		cmd.conn, cmd.Xerror = cn, nil
		cmd.seen.Store(nil)
		pd := cmd.newPending(again.ctx, true)
		again.last, again.entered = pd, false
		if x == nil {
			cmd.launch(again.ctx, pd, again.settings)
			cmd.await(again.ctx, pd)
		} else {
			cmd.missed(pd, again.settings, x)
		}
		again.last = nil
		cmd.finish(pd)
		if x != nil || !cmd.refused() {
			return
		}
	}
}

// missed completes a pull for which there was no connection, with the packet that would have been sent.
func (cmd *PullCmd) missed(pd *pending, settings []PacketSetting, x Xerror) {
	d := newDraft()
	defer d.put()
	pd.ended = nil // so that Wait below is told
	cmd.unsent(pd, d, settings, x)
	pd.completed.Wait()
}

// unsent completes a pull that was not sent with the error, and keeps the packet that would have been sent.
func (cmd *PullCmd) unsent(pd *pending, d *draft, settings []PacketSetting, x Xerror) {
	w := &d.ownPacket
	if pd.seen != nil {
		w = &pd.seen.out
	}
	w.fill(&cmd.conn.peer.cfg, packet.TypePull, cmd.uri, cmd.args, settings)
	pd.sent(cmd.conn, w, cmd.number)
	pd.complete(x)
}

// refused reports whether the command is to be sent again: it is complete, and certainly has not run.
func (cmd *PullCmd) refused() bool {
	return cmd.again != nil && !cmd.conn.usable() && NotRun(cmd.Xerror)
}
