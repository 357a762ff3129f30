//go:build !unix

package usage

import "time"

// CPU returns zero, which shows as "not measured": this system has no
// getrusage.
func CPU() time.Duration { return 0 }
