//go:build !linux

package sockopt

import (
	"net"
	"time"
)

// SetUserTimeout does nothing on this system.
func SetUserTimeout(*net.TCPConn, time.Duration) {}

// SentOf returns zeros on this system.
func SentOf(*net.TCPConn) Sent { return Sent{} }
