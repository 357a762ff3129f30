//go:build !unix

package handover

import (
	"os"
	"time"
)

// Signals are those that ask for a new start: none.
var Signals []os.Signal

func startSuccessor([]*sharedListener, time.Duration) (int, error) { return 0, ErrUnsupported }

func closeOnExec(int) {}
