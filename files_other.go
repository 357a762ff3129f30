//go:build !unix

package tp

import "math"

// maxOpenFiles returns how many files the process may open.
func maxOpenFiles() int { return math.MaxInt32 }
