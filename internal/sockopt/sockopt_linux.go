package sockopt

import (
	"math"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// SetUserTimeout bounds how long data that was sent may stay unacknowledged.
func SetUserTimeout(c *net.TCPConn, d time.Duration) {
	control(c, func(fd int) {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT,
			int(min(max(d.Milliseconds(), 1), math.MaxInt32)))
	})
}

// SentOf asks the kernel. Numbers that the kernel does not know are 0.
func SentOf(c *net.TCPConn) (s Sent) {
	control(c, func(fd int) {
		if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			s.Acked = info.Bytes_acked
		}
		if n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ); err == nil {
			s.Unacked = uint64(max(n, 0))
		}
	})
	return s
}

func control(c *net.TCPConn, f func(fd int)) {
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { f(int(fd)) })
	}
}
