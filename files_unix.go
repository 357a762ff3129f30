//go:build unix

package tp

import (
	"math"
	"syscall"
)

// maxOpenFiles returns how many files the process may open.
func maxOpenFiles() int {
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		return math.MaxInt32
	}
	return int(min(uint64(lim.Cur), math.MaxInt32))
}
