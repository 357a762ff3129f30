// Package weakset has sets whose elements are still collected as garbage.
package weakset

import (
	"runtime"
	"sync"
	"weak"
)

// Set is a set of pointers that does not keep what they point to. The zero value is empty. All methods are
// safe for concurrent use.
type Set[T any] struct {
	mu  sync.Mutex
	all map[weak.Pointer[T]]bool
}

// Add adds p, and reports whether it was not there. P must not be nil.
func (s *Set[T]) Add(p *T) bool {
	w := weak.Make(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all[w] {
		return false
	}
	if s.all == nil {
		s.all = make(map[weak.Pointer[T]]bool)
	}
	s.all[w] = true
	runtime.AddCleanup(p, s.forget, w)
	return true
}

func (s *Set[T]) forget(w weak.Pointer[T]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, w)
}

// All returns those that are still there.
func (s *Set[T]) All() []*T {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*T
	for w := range s.all {
		if p := w.Value(); p != nil {
			all = append(all, p)
		}
	}
	return all
}

// Len returns how many there are.
func (s *Set[T]) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}
