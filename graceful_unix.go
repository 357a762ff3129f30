//go:build unix

package tp

import (
	"os"
	"syscall"
)

// graceSignals are the signals that ask for an orderly end.
var graceSignals = []os.Signal{syscall.SIGINT, syscall.SIGTERM}
