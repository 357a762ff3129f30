package usage

import (
	"math"
	"runtime"
	"testing"
	"time"
)

func TestCPUGrowsWithWork(t *testing.T) {
	before := CPU()
	if before == 0 {
		t.Skip("not measured on this system")
	}
	for start := time.Now(); time.Since(start) < 50*time.Millisecond; {
		_ = math.Sqrt(float64(before))
	}
	if used := CPU() - before; used < time.Millisecond {
		t.Errorf("50 ms of work have used %v", used)
	}
}

func TestResidentGrowsWithMemory(t *testing.T) {
	before := Resident()
	if before == 0 {
		t.Skip("not measured on this system")
	}
	const size = 64 << 20
	b := make([]byte, size)
	for i := range b {
		b[i] = 1
	}
	if grown := Resident() - before; grown < size/2 {
		t.Errorf("%d bytes were taken, and %d are there", size, grown)
	}
	runtime.KeepAlive(b)
}
