package printable

import (
	"encoding/json"
	"reflect"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Finite reports whether v is shallow and small enough to be given to a printer or an
// encoder that follows whatever it finds: no deeper than 1,000 and with at most 100,000
// values that may have others in them. A value that contains itself is not. It looks at
// what JSON has of a value, and at all of a protobuf message.
func Finite(v interface{}) (ok bool) {
	defer func() {
		if recover() != nil {
			ok = false
		}
	}()
	w := walk{left: 100_000}
	return w.value(reflect.ValueOf(v), 0)
}

const maxWalkDepth = 1000

type walk struct{ left int }

// step counts a value, and reports whether there may be more.
func (w *walk) step(depth int) bool {
	w.left--
	return w.left >= 0 && depth <= maxWalkDepth
}

func (w *walk) message(m protoreflect.Message, depth int) bool {
	if !w.step(depth) {
		return false
	}
	fine := true
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			if f.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					fine = w.message(v.Message(), depth+1)
					return fine
				})
			}
		case f.Message() == nil:
		case f.IsList():
			for i := 0; i < v.List().Len() && fine; i++ {
				fine = w.message(v.List().Get(i).Message(), depth+1)
			}
		default:
			fine = w.message(v.Message(), depth+1)
		}
		return fine
	})
	return fine
}

var (
	typeMarshaler = reflect.TypeFor[json.Marshaler]()
	typeNew       = reflect.TypeFor[proto.Message]()
	typeOld       = reflect.TypeFor[protoadapt.MessageV1]()
)

func (w *walk) value(v reflect.Value, depth int) bool {
	if !v.IsValid() {
		return true
	}
	if v.Kind() == reflect.Pointer && v.CanInterface() {
		switch m := v.Interface().(type) {
		case proto.Message:
			return w.message(m.ProtoReflect(), depth)
		case protoadapt.MessageV1:
			return w.message(protoadapt.MessageV2Of(m).ProtoReflect(), depth)
		}
	}
	if leaf(v.Type()) {
		return true
	}
	if !w.step(depth) {
		return false
	}
	switch v.Kind() {
	case reflect.Interface, reflect.Pointer:
		return w.value(v.Elem(), depth+1)
	case reflect.Array, reflect.Slice:
		if leaf(v.Type().Elem()) {
			return true
		}
		for i := range v.Len() {
			if !w.value(v.Index(i), depth+1) {
				return false
			}
		}
	case reflect.Map:
		if leaf(v.Type().Elem()) {
			return true
		}
		for entry := v.MapRange(); entry.Next(); {
			if !w.value(entry.Value(), depth+1) {
				return false
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if (f.IsExported() || f.Anonymous) && f.Tag.Get("json") != "-" && !w.value(v.Field(i), depth+1) {
				return false
			}
		}
	}
	return true
}

// leaf reports whether values of the type have no other values in them, or write themselves by a method of
// their own.
func leaf(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Interface:
		return false
	case reflect.Pointer, reflect.Array, reflect.Slice, reflect.Map, reflect.Struct:
		return t.Implements(typeMarshaler) && !t.Implements(typeNew) && !t.Implements(typeOld)
	}
	return true
}
