package tp

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/henrylee2cn/teleport/internal/printable"
	"github.com/henrylee2cn/teleport/internal/rarely"
	"github.com/henrylee2cn/teleport/internal/uri"
)

// What the library itself logs has text of strangers in it: URIs, ids, statuses, errors
// that quote what was received. Here, and nowhere else, it becomes one line that nobody
// can end or forge: every line of the library's passes logLine, but for the stack of a
// panic. Infof and its kin are the program's, whose messages are left as they are.

const (
	// maxLine bounds a line, in bytes.
	maxLine = 4 << 10
	// maxQuoted bounds a text in it, a URI or an id.
	maxQuoted = 256
	// maxPrinted bounds an error, a body and a value in it, and a status text.
	maxPrinted = 1 << 10
)

// logf logs a line: for people the format with the values of as many of the attributes as it
// has verbs, and for a slog.Handler the message with all of them. Each text and each error is
// made safe and cut off by itself, so that none hides the others.
func logf(level slog.Level, message, format string, attrs ...slog.Attr) {
	if logEnabled(level) {
		logLine(level, message, lineOf(format, attrs), attrs)
	}
}

// logLine logs a line whatever the level is.
func logLine(level slog.Level, message, text string, attrs []slog.Attr) {
	if !structured() {
		output(level, printable.Text(text, maxLine))
		return
	}
	safe := make([]slog.Attr, 0, len(attrs)+1)
	for _, a := range attrs {
		if a.Value.Kind() == slog.KindAny {
			if err, ok := a.Value.Any().(error); ok {
				var x Xerror
				if errors.As(err, &x) && !hasAttr(attrs, "code") {
					safe = append(safe, slog.Int("code", int(x.Code())))
				}
			}
		}
		a.Value = slog.AnyValue(printableValue(a.Value.Any()))
		safe = append(safe, a)
	}
	outputAttrs(level, message, safe)
}

func hasAttr(attrs []slog.Attr, key string) bool {
	return slices.ContainsFunc(attrs, func(a slog.Attr) bool { return a.Key == key })
}

// printableValue is what stands in a line for a value.
func printableValue(v interface{}) interface{} {
	switch v := v.(type) {
	case nil:
		return nil
	case string:
		return printable.Text(v, maxQuoted)
	case body:
		return string(v) // which is
	case error:
		return printable.Value(v, maxPrinted)
	case bool, int64, uint64, float64, time.Duration, time.Time:
		return v
	}
	return printable.Text(fmt.Sprint(v), maxQuoted)
}

// body is a packet's body as the log shows it.
type body string

// errAttr and uriAttr are attributes that many lines have.
func errAttr(err error) slog.Attr { return slog.Any("error", err) }

func uriAttr(text string) slog.Attr { return slog.String("uri", uri.WithoutQuery(text)) }

// quote is a text in a line that is put together elsewhere, as lineOf makes it.
func quote(s string) string { return printable.Text(s, maxQuoted) }

func lineOf(format string, attrs []slog.Attr) string {
	args := make([]interface{}, strings.Count(format, "%"))
	for i := range args {
		args[i] = printableValue(attrs[i].Value.Any())
	}
	return fmt.Sprintf(format, args...)
}

// lineKind tells the lines apart of which there is one a second at most.
type lineKind struct {
	format string
	about  string // a route or a plugin; never what a stranger has sent
}

// lines logs what strangers, or the other side, can cause as often as they like. It is safe for concurrent
// use; nil logs everything.
type lines struct{ limiter rarely.Limiter[lineKind] }

// allow reports whether a line of the kind is to be logged, and how many were left out before it.
func (ls *lines) allow(kind lineKind) (left int, ok bool) {
	if ls == nil {
		return 0, true
	}
	return ls.limiter.Allow(kind)
}

// rarely is logf for lines of which there is one a second of each format. The line says how many were left
// out.
func (ls *lines) rarely(level slog.Level, message, format string, attrs ...slog.Attr) {
	ls.rarelyAbout("", level, message, format, attrs...)
}

// rarelyAbout is rarely where lines about one thing are not to hide those about another.
func (ls *lines) rarelyAbout(about string, level slog.Level, message, format string, attrs ...slog.Attr) {
	if !logEnabled(level) {
		return
	}
	if left, ok := ls.allow(lineKind{format, about}); ok {
		logLine(level, message, lineOf(format, attrs)+rarely.More(left), withLeft(attrs, left))
	}
}

// withLeft adds how many lines were left out.
func withLeft(attrs []slog.Attr, left int) []slog.Attr {
	if left > 0 {
		attrs = append(attrs, slog.Int("left_out", left))
	}
	return attrs
}

// panicked logs a panic with its stack, of which there is one a second at most for each
// place: who can make a handler panic can do it as often as he likes. It is called while
// the panic is being recovered from. The value is nil after panic(nil) in a program with
// GODEBUG=panicnil=1, and of a goroutine that has ended itself.
func (ls *lines) panicked(level slog.Level, where, who string, value interface{}) {
	if !logEnabled(level) {
		return
	}
	left, ok := ls.allow(lineKind{where, who})
	if !ok {
		return
	}
	text := "nil, or the end of its goroutine"
	if value != nil {
		text = printable.Value(value, maxPrinted)
	}
	stack := printable.Lines(string(debug.Stack()), maxLine)
	if structured() {
		outputAttrs(level, "panic", withLeft([]slog.Attr{
			slog.String("where", where), slog.String("of", printable.Text(who, maxQuoted)),
			slog.String("panic", text), slog.String("stack", stack),
		}, left))
		return
	}
	if who != "" {
		where += " " + printable.Text(who, maxQuoted)
	}
	line := printable.Text(where+": panic: "+text+rarely.More(left), maxLine)
	// The one message of several lines. They are this program's own, and even so nothing
	// in them ends a line.
	output(level, line+"\n"+stack)
}

// panicError is the error for a panic, for this side.
func panicError(value interface{}) error {
	return errors.New("panic: " + printable.Value(value, maxPrinted))
}
