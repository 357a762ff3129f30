// Package grown has maps that grow for a while and then are only read.
package grown

import (
	"maps"
	"sync"
	"sync/atomic"
)

// Map is a map of what is made once and never changed. To look something up takes no lock; to add something
// copies the map. The zero value is empty. All methods are safe for concurrent use.
type Map[K comparable, V any] struct {
	mu  sync.Mutex // held while all is replaced
	all atomic.Pointer[map[K]V]
}

// Get returns what the map has under the key.
func (m *Map[K, V]) Get(key K) (v V, ok bool) {
	if all := m.all.Load(); all != nil {
		v, ok = (*all)[key]
	}
	return v, ok
}

// Len returns how many there are.
func (m *Map[K, V]) Len() int {
	if all := m.all.Load(); all != nil {
		return len(*all)
	}
	return 0
}

// Add returns what the map has under the key, which is what make returns if there was nothing.
func (m *Map[K, V]) Add(key K, make func() V) V {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v, ok := m.Get(key); ok {
		return v
	}
	next := map[K]V{}
	if all := m.all.Load(); all != nil {
		next = maps.Clone(*all)
	}
	v := make()
	next[key] = v
	m.all.Store(&next)
	return v
}
