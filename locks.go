package tp

import (
	"reflect"
	"sync"
	"sync/atomic"
)

// Each call gets a copy of its controller. A lock that stands in a controller by value is
// copied too, so that every call locks another one and none keeps anybody out; Reg refuses
// it, by the rule of go vet's copylocks.

var (
	typeLocker      = reflect.TypeFor[sync.Locker]()
	typeAtomicValue = reflect.TypeFor[atomic.Value]() // has nothing that vet could find
)

// findLock returns where in t a lock is held by value, as a path of fields, and the lock's
// type; "" and t if t is one itself. The type is nil if there is none.
func findLock(t reflect.Type) (path string, lock reflect.Type) {
	if isLock(t) {
		return "", t
	}
	switch t.Kind() {
	case reflect.Array:
		if t.Len() > 0 {
			path, lock = findLock(t.Elem())
			return "[0]" + path, lock
		}
	case reflect.Struct:
		for i := range t.NumField() {
			f := t.Field(i)
			if path, lock := findLock(f.Type); lock != nil {
				return "." + f.Name + path, lock
			}
		}
	}
	return "", nil
}

// isLock reports whether a pointer to t can be locked and a copy of t cannot. The types of
// sync and sync/atomic have such a field where they are not such a type.
func isLock(t reflect.Type) bool {
	if t == typeAtomicValue {
		return true
	}
	return t.Kind() != reflect.Interface && t.Kind() != reflect.Pointer &&
		reflect.PointerTo(t).Implements(typeLocker) && !t.Implements(typeLocker)
}
