package tp

import "time"

// memoryPatience is how long a push waits for memory that other calls give back.
const memoryPatience = time.Second

// waitUntil asks again and again whether something is so, for the time d at most. It returns the last answer.
func waitUntil(d time.Duration, is func() bool) bool {
	const most = 20 * time.Millisecond
	for pause := 100 * time.Microsecond; d > 0; pause = min(2*pause, most) {
		time.Sleep(pause)
		if d -= pause; is() {
			return true
		}
	}
	return false
}
