package tp

import (
	"os"
	"syscall"
)

// graceSignals are the signals that ask for an orderly end: Ctrl-C, and what the
// runtime makes of a closed console, a log-off or a shutdown.
var graceSignals = []os.Signal{os.Interrupt, syscall.SIGTERM}
