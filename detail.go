package tp

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/internal/printable"
	"github.com/henrylee2cn/teleport/internal/rarely"
	"github.com/henrylee2cn/teleport/packet"
)

// startTime reads the clock if the time that the packet takes is of use to
// anybody; otherwise it is zero.
func (p *Peer) startTime() time.Time {
	if p.cfg.SlowCometDuration > 0 || logEnabled(p.packetLevel) {
		return time.Now()
	}
	return time.Time{}
}

// logPacket logs what happened to a packet: as slow, or at the level of packets.
// A code of 0 with no text is left out, as pushes have none.
func (c *packetCtx) logPacket(what, uri string, code int32, status string, in, out *packet.Packet) {
	if c.start.IsZero() {
		return
	}
	p := c.link.peer
	cost := time.Since(c.start)
	level, more := p.packetLevel, ""
	if p.cfg.SlowCometDuration > 0 && cost >= p.cfg.SlowCometDuration && logEnabled(LevelWarn) {
		kind := lineKind{format: "slow " + what}
		if c.handler != nil {
			kind.about = c.handler.path
		}
		if left, ok := p.lines.Allow(kind); ok {
			level, what, more = LevelWarn, kind.format, rarely.More(left)
		}
	}
	if !logEnabled(level) {
		return
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s", what, quote(c.Ip()), quote(loggedPath(uri)))
	if code != 0 || status != "" {
		b.WriteString(" " + statusString(code, status))
	}
	fmt.Fprintf(&b, " in %v", cost.Round(time.Microsecond))
	if in != nil {
		body := c.printed
		if body == "" {
			body = printBody(nil)
		}
		p.describe(&b, "received", in, func() string { return body })
	}
	if out != nil {
		p.describe(&b, "sent", out, func() string { return printBody(out.Body) })
	}
	logLine(level, b.String()+more)
}

// describe appends a packet's size and, with PrintBody, its body.
func (p *Peer) describe(b *strings.Builder, name string, pkt *packet.Packet, body func() string) {
	if pkt.Length == 0 {
		return
	}
	fmt.Fprintf(b, "; %s %d bytes", name, pkt.Length)
	if p.cfg.PrintBody && pkt.BodyLength > 0 {
		b.WriteString(": ")
		b.WriteString(body())
	}
}

// prints reports whether the log will show the bodies.
func (c *packetCtx) prints() bool { return c.link.peer.cfg.PrintBody && !c.start.IsZero() }

// printInput keeps what the log will show of the input's body.
func (c *packetCtx) printInput(v interface{}) {
	if c.prints() {
		c.printed = printBody(v)
	}
}

func statusString(code int32, text string) string {
	if text == "" {
		text = StatusText(code)
	}
	return strings.TrimSpace(fmt.Sprintf("%d %s", code, quote(text)))
}

// logHandled logs a pull or a push that this side was sent.
func (c *packetCtx) logHandled(x Xerror) {
	if c.typ != packet.TypePush {
		c.logPacket("pull-handle", c.inHdr.Uri, c.outHdr.StatusCode, c.outHdr.Status, &c.in, &c.out)
		return
	}
	var code int32
	var text string
	if x != nil {
		code, text = x.Code(), x.Text()
	}
	c.logPacket("push-handle", c.inHdr.Uri, code, text, &c.in, nil)
}

// logPulled logs a pull that this side has made.
func (cmd *PullCmd) logPulled(c *packetCtx) {
	code, text := StatusOK, ""
	if x := cmd.Xerror; x != nil {
		code, text = x.Code(), x.Text()
	}
	c.logPacket("pull-launch", cmd.uri, code, text, &c.in, &c.out)
}

// logPushed logs a push that this side has sent.
func (c *packetCtx) logPushed() {
	c.logPacket("push-launch", c.outHdr.Uri, 0, "", nil, &c.out)
}

// printBody renders a body for people: one line, escaped, at most 1 KiB. A panic of the
// body's own methods is kept out of the log's way, and a body that cannot be encoded,
// because it contains itself for example, is printed as far as it goes.
func printBody(v interface{}) (s string) {
	s = "(printing panicked)"
	defer func() { _ = recover() }() // of a nil *string for example
	switch b := v.(type) {
	case nil:
		return "(not decoded)"
	case *string:
		return printable.Text(*b, maxPrinted)
	case []byte:
		return printable.Bytes(b, maxPrinted)
	case *[]byte:
		return printable.Bytes(*b, maxPrinted)
	case packet.RawBody:
		return printable.Bytes(b, maxPrinted)
	case *packet.RawBody:
		return printable.Bytes(*b, maxPrinted)
	case string, fmt.Stringer, proto.Message: // protobuf messages among others
		return printable.Value(v, maxPrinted)
	}
	if printable.Finite(v) {
		if c, err := codec.GetByName(codec.NameJSON); err == nil {
			if b, err := codec.Append(c, nil, v); err == nil {
				return printable.Bytes(b, maxPrinted)
			}
		}
	}
	return printable.Value(v, maxPrinted)
}

// clipStatus makes a status text fit for the wire and for logs.
func clipStatus(s string) string { return printable.Text(s, maxPrinted) }
