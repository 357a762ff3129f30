package tp

import (
	"fmt"
	"reflect"
	"slices"
	"unsafe"
)

// contextTypes are the contexts that a controller, or a struct embedded in it, may embed.
// A call's context is all of them.
var contextTypes = []reflect.Type{reflect.TypeFor[PullCtx](), reflect.TypeFor[PushCtx](),
	reflect.TypeFor[Ctx]()}

// ctxField is a context that is embedded in a controller, by itself or in a struct that is
// embedded there.
type ctxField struct {
	typ    reflect.Type
	offset uintptr // in the controller
}

// set makes the field of the controller at ctrl the call's context. The field is exported
// or not, but it is ours to set.
func (f *ctxField) set(ctrl unsafe.Pointer, c *call) {
	at := unsafe.Add(ctrl, f.offset)
	switch f.typ {
	case contextTypes[0]:
		*(*PullCtx)(at) = c
	case contextTypes[1]:
		*(*PushCtx)(at) = c
	default:
		*(*Ctx)(at) = c
	}
}

// embeddedContexts finds all contexts in t, a struct. Each is set for a call, or a method
// that uses the one which was not would find nil. One behind an embedded pointer cannot
// be: the calls would share it.
func embeddedContexts(t reflect.Type) (fields []ctxField, err error) {
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.Anonymous {
			continue
		}
		switch {
		case slices.Contains(contextTypes, f.Type):
			fields = append(fields, ctxField{f.Type, f.Offset})
		case f.Type.Kind() == reflect.Struct:
			inner, err := embeddedContexts(f.Type)
			if err != nil {
				return nil, err
			}
			for _, in := range inner {
				fields = append(fields, ctxField{in.typ, f.Offset + in.offset})
			}
		case f.Type.Kind() == reflect.Pointer && hasContext(f.Type.Elem(), nil):
			return nil, fmt.Errorf("the context in %v is behind a pointer, so that all calls would share "+
				"it; embed %v", f.Type, f.Type.Elem())
		}
	}
	return fields, nil
}

// hasContext reports whether a context is embedded in t, behind pointers too. Types that
// are embedded in themselves are seen once.
func hasContext(t reflect.Type, seen []reflect.Type) bool {
	if t.Kind() != reflect.Struct || slices.Contains(seen, t) {
		return false
	}
	seen = append(seen, t)
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.Anonymous {
			continue
		}
		inner := f.Type
		if inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		if slices.Contains(contextTypes, f.Type) || hasContext(inner, seen) {
			return true
		}
	}
	return false
}
