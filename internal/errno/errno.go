//go:build !plan9

// Package errno has errors of the system that not every system has by these names.
package errno

import "syscall"

var (
	// Pipe and Reset are what writing fails with when the other side has closed the
	// connection.
	Pipe  error = syscall.EPIPE
	Reset error = syscall.ECONNRESET
	// TimedOut is what the kernel says of a connection whose other side does not answer any more.
	TimedOut error = syscall.ETIMEDOUT
	// InUse is what listening fails with when somebody has the address, and Refused what
	// dialling does when nobody listens.
	InUse   error = syscall.EADDRINUSE
	Refused error = syscall.ECONNREFUSED
)
