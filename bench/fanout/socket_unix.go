//go:build unix

package main

import "syscall"

// writeNow is one write(2). It returns how much of b the kernel has taken, and false after an error.
func writeNow(m *floorMember, b []byte) (n int, ok bool) {
	for {
		n, err := syscall.Write(int(m.fd), b)
		switch err {
		case nil:
			return n, true
		case syscall.EINTR:
		case syscall.EAGAIN:
			return 0, true
		default:
			return 0, false
		}
	}
}

// smallInput makes what the kernel receives for a connection small, before it is connected.
func smallInput(_, _ string, conn syscall.RawConn) error {
	var failed error
	if err := conn.Control(func(fd uintptr) {
		failed = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, smallBuffer)
	}); err != nil {
		return err
	}
	return failed
}
