//go:build !unix

package harness

import "time"

// cpuTime returns zero, which shows as "not measured": this system has no
// getrusage.
func cpuTime() time.Duration { return 0 }
