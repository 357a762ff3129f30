// Package chain has doubly linked lists whose links stand in the elements: an element costs no memory of
// its own in a list, can be taken out from anywhere, and may be in several lists by several links.
package chain

// List is a list of elements that are linked. The zero value is empty. It is not safe for concurrent use.
type List[T any] struct{ first, last *Link[T] }

// Link is an element's place in a list. The zero value is in none, and a link is in one list at a time.
type Link[T any] struct {
	Of         T // the element
	prev, next *Link[T]
}

// First returns the first link; nil if the list is empty.
func (l *List[T]) First() *Link[T] { return l.first }

// Next returns the link behind x; nil if x is the last.
func (x *Link[T]) Next() *Link[T] { return x.next }

// PushBack puts x, which is in no list, behind the others.
func (l *List[T]) PushBack(x *Link[T]) {
	x.prev, x.next = l.last, nil
	if l.last == nil {
		l.first = x
	} else {
		l.last.next = x
	}
	l.last = x
}

// Remove takes out x, which is in the list.
func (l *List[T]) Remove(x *Link[T]) {
	if x.prev == nil {
		l.first = x.next
	} else {
		x.prev.next = x.next
	}
	if x.next == nil {
		l.last = x.prev
	} else {
		x.next.prev = x.prev
	}
	x.prev, x.next = nil, nil
}
