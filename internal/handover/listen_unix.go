//go:build unix

package handover

import (
	"net"
	"os"
	"syscall"
)

// unixBacklog is how many connections wait to be accepted; the kernel has a bound of its own.
const unixBacklog = 4096

// listenUnix is net.Listen for a unix socket that has the mode before it can be connected to:
// between being bound and listening, where package net leaves no room.
func listenUnix(path string, mode os.FileMode) (net.Listener, error) {
	fd, err := unixSocket()
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: "unix", Err: os.NewSyscallError("socket", err)}
	}
	f := os.NewFile(uintptr(fd), "unix:"+path)
	defer f.Close() // the listener has a copy
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		return nil, &net.OpError{Op: "listen", Net: "unix", Err: os.NewSyscallError("bind", err)}
	}
	if err = os.Chmod(path, mode); err == nil {
		err = os.NewSyscallError("listen", syscall.Listen(fd, unixBacklog))
	}
	var ln net.Listener
	if err == nil {
		ln, err = net.FileListener(f)
	}
	if err != nil {
		_ = os.Remove(path)
		return nil, err
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(true)
	return ln, nil
}

// unixSocket makes a socket that programs which are started do not inherit.
func unixSocket() (int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	return fd, err
}
