//go:build race

// Package race says to tests whether the race detector is on, which takes more memory and time.
package race

// Enabled reports whether the race detector is on.
const Enabled = true
