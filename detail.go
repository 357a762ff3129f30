package tp

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	jsoniter "github.com/json-iterator/go"

	"github.com/henrylee2cn/teleport/packet"
)

const (
	// maxPrinted bounds a body in the log, and a status text, in bytes.
	maxPrinted = 1 << 10
	// maxQuoted bounds a URI, an id or an error in the log.
	maxQuoted = 256
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
	level := p.packetLevel
	if p.cfg.SlowCometDuration > 0 && cost >= p.cfg.SlowCometDuration {
		level = LevelWarn
		what = "slow " + what
	}
	if !logEnabled(level) {
		return
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s", what, c.Ip(), quote(uri))
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
	logAlways(level, b.String())
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

// printBody renders a body for people: one line, escaped, at most 1 KiB. A panic
// of the body's own methods is kept out of the log's way.
func printBody(v interface{}) (s string) {
	s = "(printing panicked)" // with nil, should recover return that
	defer func() {
		if p := recover(); p != nil {
			s = escape(fmt.Sprintf("(printing panicked: %v)", p), maxPrinted)
		}
	}()
	switch b := v.(type) {
	case nil:
		return "(not decoded)"
	case string:
		return escape(b, maxPrinted)
	case *string:
		return escape(*b, maxPrinted)
	case []byte:
		return escapeBytes(b)
	case *[]byte:
		return escapeBytes(*b)
	case packet.RawBody:
		return escapeBytes(b)
	case *packet.RawBody:
		return escapeBytes(*b)
	case fmt.Stringer: // protobuf messages among others
		return escape(b.String(), maxPrinted)
	}
	s, err := jsoniter.MarshalToString(v)
	if err != nil {
		s = fmt.Sprintf("%+v", v)
	}
	return escape(s, maxPrinted)
}

func escapeBytes(b []byte) string {
	// A rune of four bytes is the longest: more than that is never printed.
	return escape(string(b[:min(len(b), maxPrinted+utf8.UTFMax)]), maxPrinted)
}

// quote makes text of the other side's, or an error with such text in it, fit
// for a line of the log.
func quote(s string) string { return escape(s, maxQuoted) }

// clipStatus makes a status text fit for the wire and for logs.
func clipStatus(s string) string { return escape(s, maxPrinted) }

// escape writes control characters, other unprintable ones and invalid UTF-8 as
// Go escapes, and cuts the result off at max bytes, marked by an ellipsis.
func escape(s string, max int) string {
	plain := len(s) <= max
	for i := 0; plain && i < len(s); i++ {
		plain = s[i] >= ' ' && s[i] < utf8.RuneSelf-1
	}
	if plain {
		return s
	}
	const more = "..."
	var b strings.Builder
	cut := -1 // where to end if all of it turns out too long
	for i, r := range s {
		var piece string
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], string(utf8.RuneError)):
			piece = fmt.Sprintf(`\x%02x`, s[i])
		case unicode.IsPrint(r):
			piece = string(r)
		case r == '\n':
			piece = `\n`
		case r == '\r':
			piece = `\r`
		case r == '\t':
			piece = `\t`
		case r < utf8.RuneSelf:
			piece = fmt.Sprintf(`\x%02x`, r)
		case r > 0xffff:
			piece = fmt.Sprintf(`\U%08x`, r)
		default:
			piece = fmt.Sprintf(`\u%04x`, r)
		}
		if cut < 0 && b.Len()+len(piece) > max-len(more) {
			cut = b.Len()
		}
		b.WriteString(piece)
		if b.Len() > max {
			return b.String()[:cut] + more
		}
	}
	return b.String()
}
