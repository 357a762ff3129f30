package tp

import (
	"math"
	"time"

	"github.com/henrylee2cn/teleport/internal/load"
	"github.com/henrylee2cn/teleport/internal/workers"
)

// A peer that serves tells its load to callers that ask for it, with the replies to their pulls. A caller
// that has several servers to choose from learns so what it would have to probe for otherwise. Nothing is
// measured for pulls that do not ask.

// loadMeter is what a peer counts of its load, beside what its pool of workers counts. The zero value is
// ready to use. It is safe for concurrent use.
type loadMeter struct{ delay load.Delay }

// began counts a pull that asks for the load and whose handler begins now. It was received at that time since
// processStart; reads says that the goroutine runs the handler that has read the pull, so that there was no
// wait.
func (m *loadMeter) began(received time.Duration, reads bool) {
	now := received
	if !reads {
		now = time.Since(processStart)
	}
	m.delay.Add(now, now-received)
}

// tell returns what a reply tells: how many calls run or wait, and for how many microseconds calls have
// waited. Those that reading goroutines run take microseconds and are not counted. The one that is answered
// may be one of these, or a refusal: there is always 1 at least, because 0 tells nothing.
func (m *loadMeter) tell(pool *workers.Pool) (calls, micros int32) {
	calls = int32(min(max(pool.Load(), 1), math.MaxInt32))
	delay := m.delay.Mean(time.Since(processStart))
	return calls, int32(min(delay.Microseconds(), math.MaxInt32))
}

// loadTaker takes in what the other side tells of its load with a reply: how many calls run or wait there, 1
// at least, and for how long calls have lately waited for their handlers. It is called by the goroutine that
// reads the connection, before the pull is complete, and not at all if the other side tells nothing, as peers
// of earlier versions do, or there is no reply. Of a pull that is sent several times the last reply counts.
type loadTaker interface {
	set(calls int, delay time.Duration)
}

// takeLoad gives what a reply tells to the taker. The other side may be any: its numbers are bounded, and one
// that makes no sense tells nothing.
func takeLoad(to loadTaker, calls, micros int32) {
	if calls > 0 {
		to.set(int(calls), time.Duration(max(micros, 0))*time.Microsecond)
	}
}
