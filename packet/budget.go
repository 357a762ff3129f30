package packet

import "sync/atomic"

// Budget bounds the memory, in bytes, that bodies and packets which wait to be
// written take, of all connections that share it. Nil is without a bound. All
// methods are safe for concurrent use.
type Budget struct {
	most int64
	used atomic.Int64
}

// NewBudget returns a budget of so many bytes; nil, which is without a bound, for
// a negative number.
func NewBudget(most int64) *Budget {
	if most < 0 {
		return nil
	}
	return &Budget{most: most}
}

// Take takes n bytes, and reports false, and takes nothing, if there are not so
// many left.
func (b *Budget) Take(n int64) bool {
	if b == nil {
		return true
	}
	if b.used.Add(n) > b.most {
		b.used.Add(-n)
		return false
	}
	return true
}

// Give returns n bytes that Take has taken.
func (b *Budget) Give(n int64) {
	if b != nil && n != 0 {
		b.used.Add(-n)
	}
}

// Used returns how many bytes are taken now.
func (b *Budget) Used() int64 {
	if b == nil {
		return 0
	}
	return b.used.Load()
}
