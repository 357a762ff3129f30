//go:build !unix

package tp

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"
)

// maxOpenFiles returns how many files the process may open.
func maxOpenFiles() int { return math.MaxInt32 }

func listenUnix(path string, _ os.FileMode) (net.Listener, error) {
	return nil, fmt.Errorf("PeerConfig.UnixMode for %s: %w on this system", path, errors.ErrUnsupported)
}
