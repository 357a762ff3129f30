//go:build !unix

package tp

import (
	"os"
	"time"
)

var rebootSignals []os.Signal

func startSuccessor([]*sharedListener, time.Duration) (int, error) { return 0, ErrRebootUnsupported }

func closeOnExec(int) {}
