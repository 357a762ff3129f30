//go:build !linux

package stress

// measureProcess knows nothing here; figures of 0 are within every limit.
func measureProcess(*stats) {}
