//go:build !linux

package sockopt

import (
	"net"
	"time"
)

// SetUserTimeout leaves it to the kernel how long data may stay unacknowledged.
func SetUserTimeout(*net.TCPConn, time.Duration) {}

// SentOf is not known.
func SentOf(*net.TCPConn) Sent { return Sent{} }
