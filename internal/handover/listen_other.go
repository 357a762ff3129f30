//go:build !unix

package handover

import (
	"errors"
	"fmt"
	"net"
	"os"
)

func listenUnix(path string, _ os.FileMode) (net.Listener, error) {
	return nil, fmt.Errorf("PeerConfig.UnixMode for %s: %w on this system", path, errors.ErrUnsupported)
}
