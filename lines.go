package tp

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"

	"github.com/henrylee2cn/teleport/internal/printable"
	"github.com/henrylee2cn/teleport/internal/rarely"
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

// logf logs a line. Each text and each error among args is made safe and cut off by
// itself, so that none hides the others.
func logf(level slog.Level, format string, args ...interface{}) {
	if logEnabled(level) {
		logLine(level, lineOf(format, args))
	}
}

// logLine logs a line whatever the level is.
func logLine(level slog.Level, line string) { output(level, printable.Text(line, maxLine)) }

// quote is a text in a line that is put together elsewhere, as lineOf makes it.
func quote(s string) string { return printable.Text(s, maxQuoted) }

// loggedPath is what the log, or a status, has of a URI: not its query, in which a token
// may be, escaped by mistake or not.
func loggedPath(uri string) string {
	for _, begins := range []string{"?", "%3f", "%3F"} {
		uri, _, _ = strings.Cut(uri, begins)
	}
	return uri
}

func lineOf(format string, args []interface{}) string {
	for i, arg := range args {
		switch v := arg.(type) {
		case string:
			args[i] = printable.Text(v, maxQuoted)
		case error:
			args[i] = printable.Value(v, maxPrinted)
		}
	}
	return fmt.Sprintf(format, args...)
}

// lineKind tells the lines apart of which there is one a second at most.
type lineKind struct {
	format string
	about  string // a route or a plugin; never what a stranger has sent
}

// rarely is logf for lines that strangers, or the other side, can cause as often as they
// like: of those with one format it logs one a second, which says how many were left out.
func (p *Peer) rarely(level slog.Level, format string, args ...interface{}) {
	p.rarelyAbout("", level, format, args...)
}

// rarelyAbout is rarely where lines about one thing are not to hide those about another.
func (p *Peer) rarelyAbout(about string, level slog.Level, format string, args ...interface{}) {
	if !logEnabled(level) {
		return
	}
	if left, ok := p.lines.Allow(lineKind{format, about}); ok {
		logLine(level, lineOf(format, args)+rarely.More(left))
	}
}

// logPanic logs a panic with its stack, of which there is one a second at most for each
// place: who can make a handler panic can do it as often as he likes. It is called while
// the panic is being recovered from. The value is nil after panic(nil) in a program with
// GODEBUG=panicnil=1, and of a goroutine that has ended itself. A nil peer logs always.
func (p *Peer) logPanic(level slog.Level, where, who string, value interface{}) {
	if !logEnabled(level) {
		return
	}
	left := 0
	if p != nil {
		var ok bool
		if left, ok = p.lines.Allow(lineKind{where, who}); !ok {
			return
		}
	}
	text := "nil, or the end of its goroutine"
	if value != nil {
		text = printable.Value(value, maxPrinted)
	}
	if who != "" {
		where += " " + printable.Text(who, maxQuoted)
	}
	line := printable.Text(where+": panic: "+text+rarely.More(left), maxLine)
	// The one message of several lines. They are this program's own, and even so nothing
	// in them ends a line.
	output(level, line+"\n"+printable.Lines(string(debug.Stack()), maxLine))
}

// panicError is the error for a panic, for this side.
func panicError(value interface{}) error {
	return errors.New("panic: " + printable.Value(value, maxPrinted))
}
