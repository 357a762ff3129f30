package payload

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
)

func TestEveryMessageTakesSizeBytes(t *testing.T) {
	m := New(nil)
	for _, id := range []uint64{1, 98, 99, 100, 1 << 40, 1<<64 - 1} {
		m.Stamp(id)
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) != Size {
			t.Errorf("message %d takes %d bytes, want %d", id, len(b), Size)
		}
		m.Count++
		if proto.Size(m) != Size {
			t.Errorf("the answer to message %d takes %d bytes, want %d", id, proto.Size(m), Size)
		}
	}
}

// The message itself and its two strings: three allocations on each side.
func TestDecodingTakesThreeAllocations(t *testing.T) {
	b, err := proto.Marshal(New(nil))
	if err != nil {
		t.Fatal(err)
	}
	var m *Message
	allocs := testing.AllocsPerRun(100, func() {
		m = new(Message)
		if err := proto.Unmarshal(b, m); err != nil {
			t.Fatal(err)
		}
	})
	if allocs != 3 {
		t.Errorf("decoding takes %v allocations, want 3", allocs)
	}
}

func TestHandleAndCheck(t *testing.T) {
	w := NewWork(10)
	for _, k := range Kinds() {
		m, p := New(make([]byte, 5)), NewPlain(make([]byte, 5))
		m.Stamp(1234)
		p.Stamp(1234)
		if m.Check(1234, 5) == nil || p.Check(1234, 5) == nil {
			t.Errorf("%v: a message that was not handled passes for its answer", k)
		}
		w.Handle(k, m)
		w.HandlePlain(k, p)
		if err := m.Check(1234, 5); err != nil {
			t.Errorf("%v: %v", k, err)
		}
		if err := p.Check(1234, 5); err != nil {
			t.Errorf("%v: %v", k, err)
		}
		for _, wrong := range []error{m.Check(1235, 5), m.Check(1234, 4), new(Message).Check(0, 0),
			p.Check(1, 5)} {
			if wrong == nil {
				t.Errorf("%v: a wrong answer passes", k)
			}
		}
	}
}

func TestDozeSleepsInOneCallOfAThousand(t *testing.T) {
	w, m := NewWork(0), New(nil)
	for _, tc := range []struct {
		id     uint64
		sleeps bool
	}{{DozeEvery, true}, {5 * DozeEvery, true}, {1, false}, {DozeEvery - 1, false}} {
		m.Stamp(tc.id)
		// The shortest of some tries, for a machine that is busy otherwise.
		took := time.Hour
		for range 5 {
			start := time.Now()
			w.Handle(Doze, m)
			took = min(took, time.Since(start))
		}
		if slept := took >= DozeTime; slept != tc.sleeps {
			t.Errorf("call %d took %v", tc.id, took)
		}
	}
}

func TestCalibrate(t *testing.T) {
	spins := Calibrate()
	best := time.Hour
	w, m := NewWork(spins), New(nil)
	for range 20 {
		start := time.Now()
		w.Handle(Compute, m)
		best = min(best, time.Since(start))
	}
	if best < ComputeTime/2 || best > 4*ComputeTime {
		t.Errorf("computing takes %v at best, want about %v", best, ComputeTime)
	}
}
