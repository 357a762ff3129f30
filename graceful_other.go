//go:build !unix && !windows

package tp

import "os"

// graceSignals are the signals that ask for an orderly end, as far as there are any.
var graceSignals = []os.Signal{os.Interrupt}
