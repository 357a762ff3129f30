package nats

import (
	"fmt"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/printable"
	"github.com/henrylee2cn/teleport/internal/rarely"
)

// lines are the hub's in the library's log: one a second of a format, as others can cause any number.
type lines struct{ allow rarely.Limiter[string] }

const maxQuoted, maxLine = 1 << 10, 4 << 10

func (l *lines) warnf(format string, args ...interface{}) {
	if tp.LogLevel() > tp.LevelWarn {
		return
	}
	left, ok := l.allow.Allow(format)
	if !ok {
		return
	}
	for i, arg := range args {
		args[i] = printable.Value(arg, maxQuoted)
	}
	tp.Warnf("%s", printable.Text("nats: "+fmt.Sprintf(format, args...)+rarely.More(left), maxLine))
}
