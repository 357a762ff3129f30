package rarely

// Kinds returns how many kinds are kept.
func (l *Limiter[K]) Kinds() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.kinds)
}
