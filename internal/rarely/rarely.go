// Package rarely bounds how many lines of a log there are about events that others can cause as often as they
// like.
package rarely

import (
	"fmt"
	"sync"
	"time"
)

// Limiter lets one thing of a kind pass in a second, and counts the others. The zero value
// is ready to use, by any number of goroutines. It keeps every kind that it has seen:
// kinds are a program's own, never a stranger's text.
type Limiter[K comparable] struct {
	mu    sync.Mutex // guards the fields below
	kinds map[K]*kind
}

type kind struct {
	last time.Time // when an event last passed
	left int       // how many have not passed since then
}

// Allow reports whether this event passes, and how many of its kind have not passed since the last one that
// did.
func (l *Limiter[K]) Allow(of K) (left int, ok bool) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.kinds[of]
	if k == nil {
		if l.kinds == nil {
			l.kinds = make(map[K]*kind)
		}
		k = new(kind)
		l.kinds[of] = k
	} else if now.Sub(k.last) < time.Second {
		k.left++
		return 0, false
	}
	left, k.left, k.last = k.left, 0, now
	return left, true
}

// More is the end of a line that says how many lines were left out; "" if none were.
func More(left int) string {
	if left == 0 {
		return ""
	}
	return fmt.Sprintf(" (and %d more like it)", left)
}
