package bufpool

import "sync/atomic"

// Shared is bytes that are encoded once and kept alive by many connections. They are not changed any
// more. What they take is taken once from the account, while anybody holds them. All methods are safe for
// concurrent use.
type Shared struct {
	B       []byte
	account Account
	refs    atomic.Int64
}

// Account is memory of which the bytes are a part. Its methods must not wait.
type Account interface {
	Take(n int64) bool
	Force(n int64)
	Give(n int64)
}

// Share makes bytes that nobody holds yet.
func Share(b []byte, account Account) *Shared { return &Shared{B: b, account: account} }

// Hold counts one who keeps the bytes alive until Release. It reports false if there is no memory for
// them; with force it takes the memory anyway.
func (s *Shared) Hold(force bool) bool {
	n := int64(len(s.B))
	for {
		refs := s.refs.Load()
		if refs > 0 {
			if s.refs.CompareAndSwap(refs, refs+1) {
				return true
			}
			continue
		}
		if force {
			s.account.Force(n)
		} else if !s.account.Take(n) {
			return false
		}
		if s.refs.CompareAndSwap(0, 1) {
			return true
		}
		s.account.Give(n)
	}
}

// Release ends what one Hold has begun.
func (s *Shared) Release() {
	if s.refs.Add(-1) == 0 {
		s.account.Give(int64(len(s.B)))
	}
}
