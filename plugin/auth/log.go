package auth

import (
	"fmt"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/printable"
)

// maxLine is how many bytes of a line are written: some of it is what the other side has sent.
const maxLine = 1 << 10

func infof(format string, args ...any) {
	tp.Infof("%s", printable.Text(fmt.Sprintf(format, args...), maxLine))
}

func debugf(format string, args ...any) {
	tp.Debugf("%s", printable.Text(fmt.Sprintf(format, args...), maxLine))
}

func warnf(format string, args ...any) {
	tp.Warnf("%s", printable.Text(fmt.Sprintf(format, args...), maxLine))
}

func errorf(format string, args ...any) {
	tp.Errorf("%s", printable.Text(fmt.Sprintf(format, args...), maxLine))
}
