//go:build !plan9

package tp

import "syscall"

// What the system says of a connection that has ended.
const (
	errnoReset   = syscall.ECONNRESET
	errnoPipe    = syscall.EPIPE
	errnoTimeout = syscall.ETIMEDOUT
)
