//go:build !unix

package sockopt

import "math"

// MaxOpenFiles returns how many files the process may open.
func MaxOpenFiles() int { return math.MaxInt32 }
