package etcd

import (
	"fmt"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/printable"
)

// maxLine is how many bytes of a line are written: some of it is what stands in etcd.
const maxLine = 1 << 10

func infof(format string, args ...any) {
	tp.Infof("%s", printable.Text(fmt.Sprintf(format, args...), maxLine))
}

func warnf(format string, args ...any) {
	tp.Warnf("%s", printable.Text(fmt.Sprintf(format, args...), maxLine))
}
