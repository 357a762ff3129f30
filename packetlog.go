package tp

import (
	"fmt"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/internal/printable"
	"github.com/henrylee2cn/teleport/internal/rarely"
	"github.com/henrylee2cn/teleport/internal/uri"
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

// packetLine is a line about what happened to a packet.
type packetLine struct {
	message, what string // for a slog.Handler, and for people
	kind, uri     string
	code          int32 // with no status a code of 0 is left out, as pushes have none
	status        string
	in, out       *packet.Packet // nil if there was none
}

// logPacket logs what happened to a packet, whose time began at start, if it did: as slow, or at the
// level of packets. Slow ones of one route, if there is one, are told apart from those of another;
// printed is the input's body, as prints has said that it will be shown.
func (cn *conn) logPacket(start time.Time, route, printed string, line packetLine) {
	if start.IsZero() {
		return
	}
	p := cn.peer
	cost := time.Since(start)
	level, slow, left := p.packetLevel, false, 0
	if p.cfg.SlowCometDuration > 0 && cost >= p.cfg.SlowCometDuration && logEnabled(LevelWarn) {
		n, ok := p.lines.Allow(lineKind{"slow " + line.what, route})
		if ok {
			level, slow, left = LevelWarn, true, n
		}
	}
	if printed == "" {
		printed = printBody(nil)
	}
	if !logEnabled(level) {
		return
	}
	if !structured() {
		logLine(level, line.message, cn.packetText(line, printed, slow, cost)+rarely.More(left), nil)
		return
	}
	attrs := []slog.Attr{
		slog.String("kind", line.kind), uriAttr(line.uri), slog.String("session", cn.sess.Id()), slog.String("remote", cn.remoteIp()),
		slog.Duration("duration", cost),
	}
	if line.code != 0 || line.status != "" {
		attrs = append(attrs, slog.Int("code", int(line.code)), slog.String("status", line.status))
	}
	if slow {
		attrs = append(attrs, slog.Bool("slow", true))
	}
	if line.in != nil && line.in.Length > 0 {
		attrs = append(attrs, slog.Int64("received", line.in.Length))
		if p.cfg.PrintBody && line.in.BodyLength > 0 {
			attrs = append(attrs, slog.Any("received_body", body(printed)))
		}
	}
	if line.out != nil && line.out.Length > 0 {
		attrs = append(attrs, slog.Int64("sent", line.out.Length))
		if p.cfg.PrintBody && line.out.BodyLength > 0 {
			attrs = append(attrs, slog.Any("sent_body", body(printBody(line.out.Body))))
		}
	}
	logLine(level, line.message, "", withLeft(attrs, left))
}

// packetText is the line for people.
func (cn *conn) packetText(line packetLine, printed string, slow bool, cost time.Duration) string {
	var b strings.Builder
	if slow {
		b.WriteString("slow ")
	}
	fmt.Fprintf(&b, "%s %s %s", line.what, quote(cn.remoteIp()), quote(uri.WithoutQuery(line.uri)))
	if line.code != 0 || line.status != "" {
		b.WriteString(" " + statusString(line.code, line.status))
	}
	fmt.Fprintf(&b, " in %v", cost.Round(time.Microsecond))
	if line.in != nil {
		cn.peer.describe(&b, "received", line.in, func() string { return printed })
	}
	if line.out != nil {
		cn.peer.describe(&b, "sent", line.out, func() string { return printBody(line.out.Body) })
	}
	return b.String()
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

// prints reports whether the log will show the bodies of a call that is measured since start.
func (cn *conn) prints(start time.Time) bool { return cn.peer.cfg.PrintBody && !start.IsZero() }

func statusString(code int32, text string) string {
	if text == "" {
		text = StatusText(code)
	}
	return strings.TrimSpace(fmt.Sprintf("%d %s", code, quote(text)))
}

// logHandled logs a pull or a push that this side was sent.
func (c *call) logHandled(x Xerror) {
	if c.start.IsZero() {
		return
	}
	route := ""
	if c.handler != nil {
		route = c.handler.path
	}
	line := packetLine{"pull handled", "pull-handle", "pull", c.inHdr.Uri, c.outHdr.StatusCode, c.outHdr.Status, &c.in, &c.out}
	if c.typ == packet.TypePush {
		line = packetLine{"push handled", "push-handle", "push", c.inHdr.Uri, 0, "", &c.in, nil}
		if x != nil {
			line.code, line.status = x.Code(), x.Text()
		}
	}
	c.conn.logPacket(c.start, route, c.printed, line)
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
