// Package rarely says when something that may happen as often as others like is worth
// another line of a log.
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
	last time.Time // when one passed,
	left int       // and how many have not since then
}

// Allow reports whether this one passes, and how many of the kind have not since the last
// one that did.
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

// More is what a line says about those that were left out; "" if there were none.
func More(left int) string {
	if left == 0 {
		return ""
	}
	return fmt.Sprintf(" (and %d more like it)", left)
}
