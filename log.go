package tp

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// Log levels, on the scale of log/slog.
const (
	LevelTrace    = slog.Level(-8)
	LevelDebug    = slog.LevelDebug
	LevelInfo     = slog.LevelInfo
	LevelNotice   = slog.Level(2)
	LevelWarn     = slog.LevelWarn
	LevelError    = slog.LevelError
	LevelCritical = slog.Level(12)
	// LevelOff is above every level.
	LevelOff = slog.Level(1 << 20)
)

// Logger receives the lines that the library logs, and those of Infof and the like. Both methods are
// called from many goroutines at once.
//
// Every slog.Handler is a Logger. It gets each line of the library as a constant message, for example
// "session ended", with attributes: session, remote, uri, kind, code, duration, received, sent, error
// and others. A Logger that is not a slog.Handler gets one text in which all of this stands, and so does
// the default Logger. The messages of Infof and the like are the same for both.
type Logger interface {
	// Enabled reports whether a message of the level would be used.
	Enabled(ctx context.Context, level slog.Level) bool
	// Handle takes one message. Its error is ignored.
	Handle(ctx context.Context, r slog.Record) error
}

var (
	logLevel  atomic.Int64 // slog.Level; zero is LevelInfo
	logTarget atomic.Pointer[loggerBox]
)

func init() { SetLogger(nil) }

// loggerBox is a Logger, and whether it is a slog.Handler.
type loggerBox struct {
	Logger
	structured bool
}

// structured reports whether lines have attributes.
func structured() bool { return logTarget.Load().structured }

// SetLogger sends all further messages of the process to l, for example to a
// slog.NewJSONHandler. Nil restores the default, which prints lines for people
// to standard error, in colour on a terminal unless NO_COLOR is set. The level
// of [SetLogLevel] still applies before l is asked.
func SetLogger(l Logger) {
	if l == nil {
		l = newTextLogger(os.Stderr)
	}
	_, structured := l.(slog.Handler)
	logTarget.Store(&loggerBox{l, structured})
}

// SetLogLevel drops messages below the level; the default is LevelInfo.
func SetLogLevel(level slog.Level) { logLevel.Store(int64(level)) }

// LogLevel returns the level below which messages are dropped.
func LogLevel() slog.Level { return slog.Level(logLevel.Load()) }

func logEnabled(level slog.Level) bool {
	return level >= LogLevel() && logTarget.Load().Enabled(context.Background(), level)
}

// output hands a message to the logger as it is. The library's own go through logf.
func output(level slog.Level, msg string) {
	outputAttrs(level, msg, nil)
}

func outputAttrs(level slog.Level, msg string, attrs []slog.Attr) {
	r := slog.NewRecord(time.Now(), level, msg, 0)
	r.AddAttrs(attrs...)
	_ = logTarget.Load().Handle(context.Background(), r)
}

// textLogger prints a line a message: time, level, the message as it was
// written.
type textLogger struct {
	out    io.Writer // a file, which writes one message at a time
	colour bool
}

func newTextLogger(out *os.File) *textLogger {
	l := &textLogger{out: out}
	if fi, err := out.Stat(); err == nil && fi.Mode()&os.ModeCharDevice != 0 && os.Getenv("NO_COLOR") == "" {
		l.colour = true
	}
	return l
}

func (l *textLogger) Enabled(context.Context, slog.Level) bool { return true }

func (l *textLogger) Handle(_ context.Context, r slog.Record) error {
	name, colour := levelName(r.Level)
	var b strings.Builder
	b.WriteString(r.Time.Format("2006-01-02 15:04:05.000 "))
	if l.colour {
		fmt.Fprintf(&b, "\x1b[%dm[%s]\x1b[0m ", colour, name)
	} else {
		fmt.Fprintf(&b, "[%s] ", name)
	}
	b.WriteString(strings.TrimRight(r.Message, "\n"))
	r.Attrs(func(a slog.Attr) bool {
		b.WriteString(" " + a.String())
		return true
	})
	b.WriteByte('\n')
	_, err := io.WriteString(l.out, b.String())
	return err
}

// levelName returns the level's name and its colour as a terminal's code.
func levelName(level slog.Level) (string, int) {
	switch {
	case level < LevelDebug:
		return "TRACE", 90
	case level < LevelInfo:
		return "DEBUG", 36
	case level < LevelNotice:
		return "INFO", 32
	case level < LevelWarn:
		return "NOTICE", 34
	case level < LevelError:
		return "WARN", 33
	case level < LevelCritical:
		return "ERROR", 31
	}
	return "CRITICAL", 35
}
