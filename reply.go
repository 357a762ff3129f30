package tp

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// prepareReply fills in what the reply takes from the pull: id, codecs, compression.
func (c *call) prepareReply() {
	c.outHdr.Id = c.id
	c.outHdr.Type = packet.TypeReply
	if c.inHdr.Gzip != 0 { // the other side takes compressed bodies; the level is this side's choice
		if c.outHdr.Gzip = c.conn.peer.cfg.DefaultBodyGzipLevel; c.outHdr.Gzip == 0 {
			c.outHdr.Gzip = gzip.DefaultCompression
		}
	}
	c.out = packet.Packet{Header: &c.outHdr, HeaderCodec: c.in.HeaderCodec, BodyCodec: c.in.BodyCodec}
	if c.out.BodyCodec == "" {
		c.out.BodyCodec = c.conn.peer.cfg.DefaultBodyCodec
	}
}

// reply sends the reply to a pull. It always sends one, unless the connection has failed.
func (c *call) reply(body interface{}, x Xerror) {
	sent := false
	defer func() {
		if sent {
			return
		}
		// A hook has called runtime.Goexit, or something here has panicked.
		if p := recover(); p != nil {
			c.conn.peer.log.panicked(LevelCritical, "reply", "", p)
		}
		c.fixOutput(c.id, packet.TypeReply)
		c.setReply(nil, newXerror(StatusInternalServerError, "", nil))
		_ = c.writeReply()
	}()
	c.setReply(body, x)
	chain := c.replyChain()
	if err := chain.preWriteReply.run(c); err != nil {
		c.conn.peer.log.rarely(LevelWarn, "hook failed", "reply to %s: %v", c.replyAttrs(err)...)
		c.setReply(nil, err.xerror())
	}
	c.fixOutput(c.id, packet.TypeReply)
	err := c.writeReply()
	sent = true
	if err != nil {
		logf(LevelDebug, "reply not sent", "reply to %s: %v", c.replyAttrs(err)...)
		return
	}
	if err := chain.postWriteReply.run(c); err != nil {
		c.conn.peer.log.rarely(LevelWarn, "hook failed", "reply to %s: %v", c.replyAttrs(err)...)
	}
}

// writeReply sends the reply. If the reply does not encode it sends less: an error without a body, then an
// error without a text. If that does not encode either it ends the session, so that nobody waits for a reply
// that cannot be sent.
func (c *call) writeReply() error {
	for {
		err := c.send()
		if err == nil || isWriteError(err) {
			return err
		}
		c.conn.peer.log.rarely(LevelError, "reply does not encode", "reply to %s: %v", c.replyAttrs(err)...)
		c.out.HeaderCodec = c.in.HeaderCodec
		switch {
		case c.out.Body != nil && c.outHdr.StatusCode != StatusOK: // details
			c.out.Body, c.outHdr.Gzip = nil, 0
		case c.outHdr.StatusCode == StatusOK:
			x := newXerror(StatusInternalServerError, "the reply could not be encoded", err)
			if errors.Is(err, packet.ErrTooLarge) {
				x = newXerror(StatusTooLarge, "the reply was not sent: "+err.Error(), err)
			}
			c.setReply(nil, x)
		case c.outHdr.Status != "" || c.outHdr.Uri != "" || c.outHdr.NotRun || c.outHdr.Meta != nil ||
			c.outHdr.Load != 0:
			c.outHdr.Status, c.outHdr.Uri, c.outHdr.NotRun, c.outHdr.Meta = "", "", false, nil
			c.outHdr.Load, c.outHdr.QueueDelay = 0, 0
		default:
			_ = c.conn.fail(fmt.Errorf("a pull cannot be answered: %w", err))
			return err
		}
	}
}

// replyAttrs returns the attributes of a log line about an error of the reply.
func (c *call) replyAttrs(err error) []slog.Attr {
	return append([]slog.Attr{uriAttr(c.inHdr.Uri), errAttr(err)}, c.conn.logAttrs()...)
}

// send encodes the reply and hands it to the connection. The reply of a quick handler is only queued: the
// reader flushes it together with others. If the queue has no room the reply waits as others do.
func (c *call) send() error {
	cn, sock := c.conn, c.conn.sock
	if c.onReader || c.offered {
		frame, err := sock.Encode(socket.Permit{}, c.frameMem[:0], &c.out)
		switch {
		case err != nil:
		case c.offered:
			_, err = sock.Send(context.Background(), c.inOrder(frame), socket.Refusal)
		default:
			c.backlog, err = sock.Send(context.Background(), c.inOrder(frame), socket.Queue)
		}
		if err == nil || c.offered || !errors.Is(err, socket.ErrOutputFull) {
			return cn.wrote(err)
		}
	}
	frame, err := cn.encode(context.Background(), &c.out, c.frameMem[:0])
	if err == nil {
		_, err = sock.Send(context.Background(), c.inOrder(frame), socket.Now)
	}
	return cn.wrote(err)
}

// inOrder puts the reply that ends a stream behind the stream's values.
func (c *call) inOrder(frame socket.Frame) socket.Frame {
	if c.typ != packet.TypeOpen || c.handler == nil {
		return frame
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.values == nil || c.values.stream == nil {
		return frame
	}
	return frame.In(&c.values.stream.Lane)
}

func (c *call) replyChain() *pluginChain {
	if c.handler != nil {
		return c.handler.chain
	}
	return c.conn.peer.chain
}

// finished runs the hooks of a call that is over. Each of them is called.
func (c *call) finished() {
	c.replyChain().postCall.runEach(c, func(err *hookError) {
		c.conn.peer.log.rarely(LevelWarn, "hook failed", "call of %s: %v", c.replyAttrs(err)...)
	})
}

// Status is for hooks of a call that is over.
func (c *call) Status() (code int32, text string) {
	x := c.keep()
	switch {
	case c.typ != packet.TypePush:
		return x.outHdr.StatusCode, x.outHdr.Status
	case x.failed != nil:
		return x.failed.Code(), x.failed.Text()
	}
	return StatusOK, ""
}

// Received is for hooks of a call that is routed.
func (c *call) Received() time.Time { return processStart.Add(c.received) }

// Route is for hooks of a call that is routed, or over.
func (c *call) Route() string {
	if c.handler == nil {
		return ""
	}
	return c.handler.path
}

// setReply sets the reply's status and body, and this side's load if the pull asks for it. The body of an
// error is its details, and a code that stands for something local to this side is translated.
func (c *call) setReply(body interface{}, x Xerror) {
	c.out.Body = body
	c.outHdr.StatusCode, c.outHdr.Status, c.outHdr.NotRun = StatusOK, "", false
	if x != nil {
		c.out.Body, c.outHdr.Gzip = detailsOf(x)
		c.outHdr.NotRun = !c.ran || isForwarded(x)
		c.outHdr.Meta = addRetryAfter(c.outHdr.Meta, x)
		c.outHdr.StatusCode, c.outHdr.Status = sentStatus(x)
	}
	if c.inHdr.Load != 0 && (c.typ == packet.TypePull || c.typ == packet.TypeOpen) {
		c.outHdr.Load, c.outHdr.QueueDelay = c.conn.peer.load.tell(&c.conn.peer.workers)
	}
}

// sentStatus returns the code and the text that an error of a handler has on the wire. If this side has made
// the error, about a call of the handler's own to an upstream, the text tells of the upstream and its
// address: the other side gets StatusBadGateway with the usual text instead.
func sentStatus(x Xerror) (int32, string) {
	code, text := x.Code(), x.Text()
	switch {
	case code == StatusOK: // an error must not look like success
		code = StatusInternalServerError
	case isLocal(code):
		if usual := StatusText(code); usual != "" {
			text = usual
		}
		code = StatusBadGateway
	case aboutReply(x):
		code, text = StatusBadGateway, "bad gateway: "+StatusText(code)
	}
	return code, clipStatus(text)
}

// repliedStatus returns the error of a reply, without details. A code below 200, which only this side makes,
// becomes StatusBadGateway: believed, it would make the answer look like a lost connection, and a pull that
// may have run like one that was not sent.
func repliedStatus(h *packet.Header) *xerror {
	x := &xerror{code: h.StatusCode, text: clipStatus(h.Status), notRun: h.NotRun, remote: true,
		after: retryAfter(h.Meta)}
	if isLocal(x.code) {
		x.code, x.notRun = StatusBadGateway, false
	}
	return x
}

// addRetryAfter adds to the metadata how long the caller should wait, if WithRetryAfter has said that.
func addRetryAfter(meta map[string]string, x Xerror) map[string]string {
	after := afterOf(x)
	if after == 0 {
		return meta
	}
	if meta == nil {
		meta = make(map[string]string)
	}
	meta[metaRetryAfter] = strconv.FormatInt(timeoutOf(after), 10)
	return meta
}

// retryAfter returns how long the metadata asks the caller to wait; zero if it does not.
func retryAfter(meta map[string]string) time.Duration {
	if len(meta) == 0 {
		return 0
	}
	ms, err := strconv.ParseUint(meta[metaRetryAfter], 10, 63)
	if err != nil {
		return 0
	}
	return time.Duration(min(ms, maxTimeout)) * time.Millisecond
}

// isLocal reports whether the code is one that the caller's side makes, and that is never sent.
func isLocal(code int32) bool { return code >= 100 && code < StatusOK }

// aboutReply reports whether x is, or wraps, an error of replyXerror, and has the same code and text.
func aboutReply(x Xerror) bool {
	of := firstXerror(x, func(of *xerror) bool { return of.ofReply })
	return of != nil && of.code == x.Code() && of.text == x.Text()
}

// replyXerror returns the error of a reply that this side cannot take. The pull has run, so that the code is
// never StatusOverloaded.
func replyXerror(err error) Xerror {
	code := bodyCode(err)
	if errors.Is(err, packet.ErrBudget) {
		code = StatusTooLarge
	}
	x := newXerror(code, "this side cannot take the reply: "+err.Error(), err)
	x.ofReply = true
	return x
}

// bodyXerror returns the error of a body that this side cannot take, for the other side: the text names no Go
// type of this side.
func bodyXerror(err error) *xerror {
	text := err.Error()
	var typed interface{ Told() string }
	if errors.As(err, &typed) {
		text = "the body does not decode: " + typed.Told()
	}
	return newXerror(bodyCode(err), text, err)
}

// bodyCode returns the status code of an error of reading or decoding a body.
func bodyCode(err error) int32 {
	switch {
	case errors.Is(err, codec.ErrUnknown):
		return StatusUnsupportedCodec
	case errors.Is(err, packet.ErrTooLarge):
		return StatusTooLarge
	case errors.Is(err, packet.ErrBudget):
		return StatusOverloaded
	}
	return StatusBadRequest
}
