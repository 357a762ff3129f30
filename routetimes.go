package tp

import (
	"strings"
	"sync"

	"github.com/henrylee2cn/teleport/internal/quantile"
)

// routeTimes is how long the idempotent pulls of each route take.
type routeTimes struct {
	mu     sync.RWMutex // guards byPath
	byPath map[string]*quantile.Sketch
	others quantile.Sketch // of the routes for which there was no place
}

// maxRouteTimes is of how many routes the times are known: paths may have ids in them.
const maxRouteTimes = 1024

// of returns the times of the path.
func (r *routeTimes) of(path string) *quantile.Sketch {
	r.mu.RLock()
	s, full := r.byPath[path], len(r.byPath) >= maxRouteTimes
	r.mu.RUnlock()
	switch {
	case s != nil:
		return s
	case full:
		return &r.others
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if s = r.byPath[path]; s == nil {
		if len(r.byPath) >= maxRouteTimes {
			return &r.others
		}
		if r.byPath == nil {
			r.byPath = make(map[string]*quantile.Sketch)
		}
		s = new(quantile.Sketch)
		r.byPath[strings.Clone(path)] = s // the URI may be long, or part of something that is
	}
	return s
}
