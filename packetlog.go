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

// packetLog logs the packets that are sent and received. It is safe for concurrent use.
type packetLog struct {
	level  slog.Level
	slow   time.Duration // calls that take longer are logged as slow; 0 for none
	bodies bool          // log the bodies too
	lines  *lines
}

func (pl *packetLog) init(cfg *PeerConfig, ls *lines) {
	*pl = packetLog{LevelDebug, cfg.SlowCometDuration, cfg.PrintBody, ls}
	if pl.bodies {
		pl.level = LevelInfo
	}
}

// start returns the time now if the log will show how long the call took, and zero otherwise.
func (pl *packetLog) start() time.Time {
	if pl.slow > 0 || logEnabled(pl.level) {
		return time.Now()
	}
	return time.Time{}
}

// prints reports whether the log will show the bodies of a call that is measured since start.
func (pl *packetLog) prints(start time.Time) bool { return pl.bodies && !start.IsZero() }

// packetLine is a line about what happened to a packet.
type packetLine struct {
	session, remote string    // the session's id and the other side's address
	start           time.Time // zero if the call is not measured
	route           string    // the path of the handler; empty if there is none
	printed         string    // the input's body as text, if prints has reported true
	message, what   string    // what has happened, for a slog.Handler and in the line for people
	kind, uri       string
	code            int32 // left out if it is 0 and status is empty, as for a push
	status          string
	in, out         *packet.Packet // nil if there was no such packet
}

// log logs the line: as slow if the call has taken long, or at the level of packets.
func (pl *packetLog) log(line packetLine) {
	if line.start.IsZero() {
		return
	}
	cost := time.Since(line.start)
	level, slow, left := pl.level, false, 0
	if pl.slow > 0 && cost >= pl.slow && line.kind != "stream" && logEnabled(LevelWarn) {
		n, ok := pl.lines.allow(lineKind{"slow " + line.what, line.route})
		if ok {
			level, slow, left = LevelWarn, true, n
		}
	}
	if line.printed == "" {
		line.printed = printBody(nil)
	}
	if !logEnabled(level) {
		return
	}
	if !structured() {
		logLine(level, line.message, pl.text(line, slow, cost)+rarely.More(left), nil)
		return
	}
	attrs := []slog.Attr{
		slog.String("kind", line.kind), uriAttr(line.uri), slog.String("session", line.session),
		slog.String("remote", line.remote),
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
		if pl.bodies && line.in.BodyLength > 0 {
			attrs = append(attrs, slog.Any("received_body", body(line.printed)))
		}
	}
	if line.out != nil && line.out.Length > 0 {
		attrs = append(attrs, slog.Int64("sent", line.out.Length))
		if pl.bodies && line.out.BodyLength > 0 {
			attrs = append(attrs, slog.Any("sent_body", body(printBody(line.out.Body))))
		}
	}
	logLine(level, line.message, "", withLeft(attrs, left))
}

// text returns the line for people.
func (pl *packetLog) text(line packetLine, slow bool, cost time.Duration) string {
	var b strings.Builder
	if slow {
		b.WriteString("slow ")
	}
	fmt.Fprintf(&b, "%s %s %s", line.what, quote(line.remote), quote(uri.WithoutQuery(line.uri)))
	if line.code != 0 || line.status != "" {
		b.WriteString(" " + statusString(line.code, line.status))
	}
	fmt.Fprintf(&b, " in %v", cost.Round(time.Microsecond))
	if line.in != nil {
		pl.describe(&b, "received", line.in, func() string { return line.printed })
	}
	if line.out != nil {
		pl.describe(&b, "sent", line.out, func() string { return printBody(line.out.Body) })
	}
	return b.String()
}

// describe appends a packet's size and, with PrintBody, its body.
func (pl *packetLog) describe(b *strings.Builder, name string, pkt *packet.Packet, body func() string) {
	if pkt.Length == 0 {
		return
	}
	fmt.Fprintf(b, "; %s %d bytes", name, pkt.Length)
	if pl.bodies && pkt.BodyLength > 0 {
		b.WriteString(": ")
		b.WriteString(body())
	}
}

func statusString(code int32, text string) string {
	if text == "" {
		text = StatusText(code)
	}
	return strings.TrimSpace(fmt.Sprintf("%d %s", code, quote(text)))
}

// printBody returns a body as text for the log: one line, escaped, at most 1 KiB. A panic of the body's own
// methods does not get out, and a body that cannot be encoded, because it contains itself for example, is
// printed in part.
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
