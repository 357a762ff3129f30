//go:build !linux

package tp

import (
	"net"
	"time"
)

// setUserTimeout leaves it to the kernel how long data may stay unacknowledged.
func setUserTimeout(*net.TCPConn, time.Duration) {}

// kernelSignsOf are not known.
func kernelSignsOf(*net.TCPConn) kernelSigns { return kernelSigns{} }
