//go:build !linux

package usage

// Resident returns zero, which shows as "not measured": only linux has
// /proc/self/statm.
func Resident() int64 { return 0 }
