//go:build unix

package sockopt

import (
	"math"
	"syscall"
)

// MaxOpenFiles returns how many files the process may open.
func MaxOpenFiles() int {
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		return math.MaxInt32
	}
	return int(min(uint64(lim.Cur), math.MaxInt32))
}
