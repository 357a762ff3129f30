//go:build race

package stress

// raceEnabled: the race detector takes several times the memory.
const raceEnabled = true
