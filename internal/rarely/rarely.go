// Package rarely bounds how many lines of a log there are about events that others can cause as often as they
// like.
package rarely

import (
	"fmt"
	"sync"
	"time"
)

// Limiter lets one thing of a kind pass in a second, and counts the others. The zero value
// is ready to use, by any number of goroutines. Kinds are a program's own, never a stranger's text: it keeps
// those of the last minute, and of earlier ones as long as there are few.
type Limiter[K comparable] struct {
	mu    sync.Mutex // guards the fields below
	kinds map[K]*kind
	look  int // how many kinds there are when old ones are forgotten
}

// few is how many kinds are kept whatever their age, and forgetAfter for how long all are.
const (
	few         = 1024
	forgetAfter = time.Minute
)

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
			l.kinds, l.look = make(map[K]*kind), few
		}
		l.forgetLocked(now)
		k = new(kind)
		l.kinds[of] = k
	} else if now.Sub(k.last) < time.Second {
		k.left++
		return 0, false
	}
	left, k.left, k.last = k.left, 0, now
	return left, true
}

// forgetLocked makes room for a kind. The ids of servers for example are never the same again where servers
// come and go.
func (l *Limiter[K]) forgetLocked(now time.Time) {
	if len(l.kinds) < l.look {
		return
	}
	for of, k := range l.kinds {
		if now.Sub(k.last) >= forgetAfter {
			delete(l.kinds, of)
		}
	}
	l.look = max(few, 2*len(l.kinds))
}

// More is the end of a line that says how many lines were left out; "" if none were.
func More(left int) string {
	if left == 0 {
		return ""
	}
	return fmt.Sprintf(" (and %d more like it)", left)
}
