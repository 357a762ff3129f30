package codec

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"
)

// jsonShape is what the json codec has to know about a type. It is found out once.
type jsonShape struct {
	encode, decode jsonWay
	digits         int // so many in a row may be too many for an integer of it; 0 if it has none
	// wide has the names of fields, in small letters, and whether they are integers of 64 bits, which take
	// more digits than others do. It is nil where digits is for 64 bits, and where there are maps.
	wide map[string]bool
	deep bool // there is no bound to how deep a value of it may be nested
}

// jsonWay says which package encodes, or decodes, a type.
type jsonWay bool

const (
	standard jsonWay = false // encoding/json
	plain    jsonWay = true  // jsoniter, which does the same
)

var jsonShapes sync.Map // of *jsonShape by reflect.Type

var nilShape = &jsonShape{}

func jsonShapeOf(t reflect.Type) *jsonShape {
	if t == nil {
		return nilShape
	}
	if s, ok := jsonShapes.Load(t); ok {
		return s.(*jsonShape)
	}
	f := shapeFinder{open: make(map[reflect.Type]bool), integers: make(map[string]bool)}
	f.shape = jsonShape{encode: plain, decode: plain}
	f.visit(t)
	if f.shape.deep {
		f.shape.encode = standard
	}
	if f.shape.digits == narrowDigits && !f.keyed {
		f.shape.wide = f.integers
	}
	s, _ := jsonShapes.LoadOrStore(t, &f.shape)
	return s.(*jsonShape)
}

var (
	timeType            = reflect.TypeFor[time.Time]()
	numberType          = reflect.TypeFor[json.Number]()
	marshalerType       = reflect.TypeFor[json.Marshaler]()
	unmarshalerType     = reflect.TypeFor[json.Unmarshaler]()
	textMarshalerType   = reflect.TypeFor[encoding.TextMarshaler]()
	textUnmarshalerType = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// shapeFinder goes through a type and all that it is made of.
type shapeFinder struct {
	shape jsonShape
	open  map[reflect.Type]bool // true while the type is being visited, false after it
	// integers has the names of fields, in small letters, and whether all fields with the name are integers
	// of 64 bits. Keyed says that there are maps, in which any integer may have any name.
	integers map[string]bool
	keyed    bool
}

// So many digits may be too many for an integer of less than 64 bits, and for one of 64.
const (
	narrowDigits = len("4294967295")
	maxDigits    = len("9223372036854775807")
)

// wideInteger reports whether the type, or what it points to, is an integer of 64 bits.
func wideInteger(t reflect.Type) bool {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Int, reflect.Int64, reflect.Uint, reflect.Uint64:
		return t.Bits() == 64
	}
	return false
}

// notPlain says that jsoniter differs from encoding/json for the type, or that this was not checked.
func (f *shapeFinder) notPlain() { f.shape.encode, f.shape.decode = standard, standard }

func (f *shapeFinder) visit(t reflect.Type) {
	if open, seen := f.open[t]; seen {
		f.shape.deep = f.shape.deep || open
		return
	}
	f.open[t] = true
	defer func() { f.open[t] = false }()
	if t == timeType { // both call its methods
		return
	}
	if t == numberType || hasJSONMethods(t) {
		f.notPlain()
	}
	if encodesItself(t) { // its fields do not matter
		return
	}
	switch t.Kind() {
	case reflect.Bool, reflect.String, reflect.Float32, reflect.Float64:
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if t.Bits() < 64 {
			f.shape.digits = narrowDigits
		} else if f.shape.digits == 0 {
			f.shape.digits = maxDigits
		}
	case reflect.Interface:
		// Whatever is in one may be of any type.
		f.shape.encode, f.shape.deep = standard, true
		if t.NumMethod() > 0 {
			f.notPlain()
		}
	case reflect.Pointer, reflect.Slice:
		f.visit(t.Elem())
	case reflect.Array:
		f.shape.decode = standard
		f.visit(t.Elem())
	case reflect.Map:
		if t.Key().Kind() != reflect.String {
			f.notPlain()
		}
		f.keyed = true
		f.visit(t.Key())
		f.visit(t.Elem())
	case reflect.Struct:
		f.visitFields(t)
	default:
		f.notPlain()
	}
}

func (f *shapeFinder) visitFields(t reflect.Type) {
	names := make(map[string]bool)
	for i := range t.NumField() {
		field := t.Field(i)
		if !isEncoded(field) {
			continue
		}
		if field.Anonymous {
			f.notPlain()
		}
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		if name == "" {
			name = field.Name
		}
		folded := strings.ToLower(name)
		if !isWord(name) || names[folded] || options != "" &&
			!(options == "omitempty" && canBeEmpty(field.Type)) {
			f.notPlain()
		}
		names[folded] = true
		if wide, seen := f.integers[folded]; !seen || wide {
			f.integers[folded] = wideInteger(field.Type)
		}
		f.visit(field.Type)
	}
}

func isEncoded(f reflect.StructField) bool {
	return (f.IsExported() || f.Anonymous) && f.Tag.Get("json") != "-"
}

// isWord reports whether a name is one that needs no escaping, and no other rule of names.
func isWord(name string) bool {
	for _, c := range []byte(name) {
		if c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}

// canBeEmpty reports whether it is plain what an empty value of the type is.
func canBeEmpty(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Struct, reflect.Array, reflect.Interface:
		return false
	}
	return true
}

// hasJSONMethods reports whether the type, or a pointer to it, has a say in how it is
// encoded or decoded.
func hasJSONMethods(t reflect.Type) bool {
	for _, m := range []reflect.Type{marshalerType, unmarshalerType, textMarshalerType, textUnmarshalerType} {
		if t.Implements(m) || t.Kind() != reflect.Interface && reflect.PointerTo(t).Implements(m) {
			return true
		}
	}
	return false
}

// encodesItself reports whether a value of the type is encoded by a method of its own,
// wherever it is.
func encodesItself(t reflect.Type) bool {
	return t.Kind() != reflect.Interface && (t.Implements(marshalerType) || t.Implements(textMarshalerType))
}

// maxNesting is how deep a value may be nested that is encoded: as deep as encoding/json
// decodes.
const maxNesting = 10_000

// checkNesting returns an error if a value is nested deeper than left, for example as it
// contains itself: encoding it would overflow the stack, which ends the process.
func checkNesting(v reflect.Value, left int) error {
	for v.IsValid() && jsonShapeOf(v.Type()).deep {
		if t := v.Type(); encodesItself(t) || v.CanAddr() && encodesItself(reflect.PointerTo(t)) {
			return nil
		}
		if left--; left < 0 {
			return fmt.Errorf("nested deeper than %d: does it contain itself?", maxNesting)
		}
		switch v.Kind() {
		case reflect.Pointer, reflect.Interface:
			v = v.Elem()
			continue
		case reflect.Struct:
			for i := range v.NumField() {
				if !isEncoded(v.Type().Field(i)) {
					continue
				}
				if err := checkNesting(v.Field(i), left); err != nil {
					return err
				}
			}
		case reflect.Slice, reflect.Array:
			for i := range v.Len() {
				if err := checkNesting(v.Index(i), left); err != nil {
					return err
				}
			}
		case reflect.Map:
			for entries := v.MapRange(); entries.Next(); {
				if err := checkNesting(entries.Value(), left); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return nil
}
