//go:build !linux

package harness

// residentBytes returns zero, which shows as "not measured": only linux has
// /proc/self/statm.
func residentBytes() int64 { return 0 }
