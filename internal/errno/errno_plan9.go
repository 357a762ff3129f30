// Package errno has errors of the system that not every system has by these names.
package errno

import "syscall"

// Plan 9 has texts for errors.
var (
	Pipe     error = syscall.NewError("write to hungup stream")
	Reset    error = syscall.NewError("connection reset")
	TimedOut error = syscall.NewError("connection timed out")
	InUse    error = syscall.NewError("address in use")
	Refused  error = syscall.NewError("connection refused")
)
