package tp

import (
	"fmt"
	"reflect"
	"slices"
	"unsafe"
)

// contextTypes are the context interfaces that a controller, or a struct embedded in it, may embed. *call
// implements all of them.
var contextTypes = []reflect.Type{reflect.TypeFor[PullCtx](), reflect.TypeFor[PushCtx](),
	reflect.TypeFor[Ctx]()}

// ctxField is a field of a controller, or of a struct embedded there, that holds a call's context.
type ctxField struct {
	typ    reflect.Type
	offset uintptr // in the controller
}

// set stores the call's context in the field of the controller at ctrl. It writes through unsafe.Pointer
// because reflect would refuse a field of an embedded struct that is not exported.
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

// embeddedContexts finds the fields of the struct type t that hold a context. All of them are set for each
// call, since a method may use any of them. A context behind an embedded pointer is an error, because all
// calls would share it.
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

// hasContext reports whether a context is embedded in t, behind pointers too. It does not go into the types
// in seen, so that it ends where a type embeds a pointer to itself.
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
