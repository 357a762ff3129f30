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

// The library's own log lines quote texts that strangers have sent: URIs, ids, statuses, and errors with
// parts of what was received. logLine makes these texts safe, so that nobody can end a line or forge one. All
// lines of the library pass logLine, except for the stack of a panic. The messages of Infof and the like are
// the program's, and are logged as they are.

const (
	// maxLine bounds a line, in bytes.
	maxLine = 4 << 10
	// maxQuoted bounds a text in a line, a URI or an id, in bytes.
	maxQuoted = 256
	// maxPrinted bounds an error, a body or another value in a line, and a status text, in bytes.
	maxPrinted = 1 << 10
)

// logf logs a line. A slog.Handler gets the message with all attributes. Other loggers get the format, filled
// with the values of the first attributes. Each value is made safe and cut off by itself, so that a long one
// does not hide the others.
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

// printableValue returns the value as a line shows it.
func printableValue(v interface{}) interface{} {
	switch v := v.(type) {
	case nil:
		return nil
	case string:
		return printable.Text(v, maxQuoted)
	case body:
		return string(v) // safe already
	case error:
		return printable.Value(v, maxPrinted)
	case bool, int64, uint64, float64, time.Duration, time.Time:
		return v
	}
	return printable.Text(fmt.Sprint(v), maxQuoted)
}

// body is a text that printBody has made, so that it is safe already.
type body string

// errAttr and uriAttr make attributes that many lines have.
func errAttr(err error) slog.Attr { return slog.Any("error", err) }

func uriAttr(text string) slog.Attr { return slog.String("uri", uri.WithoutQuery(text)) }

// quote makes a text safe and cuts it off, for messages that are not made by logf.
func quote(s string) string { return printable.Text(s, maxQuoted) }

func lineOf(format string, attrs []slog.Attr) string {
	args := make([]interface{}, strings.Count(format, "%"))
	for i := range args {
		args[i] = printableValue(attrs[i].Value.Any())
	}
	return fmt.Sprintf(format, args...)
}

// lineKind is a kind of line of which there is one a second at most.
type lineKind struct {
	format string
	about  string // a route or a plugin; never a text that a stranger has sent, as there is no end of those
}

// lines logs events that the other side can cause as often as it likes: one line of each kind a second. It is
// safe for concurrent use. A nil *lines logs every event.
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

// rarelyAbout is rarely for lines about a route or a plugin, each of which has one line a second of its own.
func (ls *lines) rarelyAbout(about string, level slog.Level, message, format string, attrs ...slog.Attr) {
	if !logEnabled(level) {
		return
	}
	if left, ok := ls.allow(lineKind{format, about}); ok {
		logLine(level, message, lineOf(format, attrs)+rarely.More(left), withLeft(attrs, left))
	}
}

// withLeft adds to a line how many were left out before it.
func withLeft(attrs []slog.Attr, left int) []slog.Attr {
	if left > 0 {
		attrs = append(attrs, slog.Int("left_out", left))
	}
	return attrs
}

// panicked logs a panic with its stack, once a second at most for each place, because a client that can make
// a handler panic can do so as often as it likes. The caller is in the deferred function that has recovered
// from the panic. The value is nil after panic(nil) in a program with GODEBUG=panicnil=1, and if the
// goroutine was ended by runtime.Goexit.
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
	// This is the only message of several lines. The lines of a stack come from this program, and their
	// texts are made safe all the same.
	output(level, line+"\n"+stack)
}

// panicError is the error of a panic, for this side only.
func panicError(value interface{}) error {
	return errors.New("panic: " + printable.Value(value, maxPrinted))
}
