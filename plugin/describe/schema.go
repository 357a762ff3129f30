package describe

import (
	"encoding"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/henrylee2cn/teleport/plugin/describe/docs"
)

// direction says whether values of a type are made from JSON or JSON from them. An argument may lack what a
// reply always has, so that a type may have two schemas.
type direction bool

const (
	decoded direction = false // arguments
	encoded direction = true  // replies
)

// goTypeKeyword is the keyword of a definition that names its Go type, with the path of its package.
const goTypeKeyword = "x-go-type"

var (
	timeType            = reflect.TypeFor[time.Time]()
	numberType          = reflect.TypeFor[json.Number]()
	bigIntType          = reflect.TypeFor[big.Int]()
	marshalerType       = reflect.TypeFor[json.Marshaler]()
	unmarshalerType     = reflect.TypeFor[json.Unmarshaler]()
	textMarshalerType   = reflect.TypeFor[encoding.TextMarshaler]()
	textUnmarshalerType = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// definition names a type in one direction.
type definition struct {
	typ reflect.Type
	dir direction
}

// schemas makes the schemas of types, with definitions of those that have names. The schemas say what the
// codec json does, which means what encoding/json means. One goroutine uses it.
type schemas struct {
	names   map[definition]string
	defs    map[string]*jsonschema.Schema // nil while it is made
	counted map[string]int                // how many types have asked for a name
	failed  map[definition]error
	made    []definition // in their order, to forget those of a type that cannot be described
}

func newSchemas() *schemas {
	return &schemas{
		names:   make(map[definition]string),
		defs:    make(map[string]*jsonschema.Schema),
		counted: make(map[string]int),
		failed:  make(map[definition]error),
	}
}

// of returns the schema of a type. Definitions that it needs are in s.defs. After an error nothing has
// changed.
func (s *schemas) of(t reflect.Type, dir direction) (*jsonschema.Schema, error) {
	if dir == decoded { // what a pointer leads to is decoded
		for t.Kind() == reflect.Pointer && t.Name() == "" {
			t = t.Elem()
		}
	}
	root := definition{t, dir}
	if err := s.failed[root]; err != nil {
		return nil, err
	}
	before := len(s.made)
	schema, err := s.visit(t, dir)
	for _, d := range s.made[before:] {
		if err == nil {
			err = loops(s.defs[s.names[d]], s.defs)
		}
	}
	if err != nil {
		for _, d := range s.made[before:] {
			delete(s.defs, s.names[d])
			delete(s.names, d)
		}
		s.made = s.made[:before]
		s.failed[root] = err
		return nil, err
	}
	return schema, nil
}

// misfit is why a type has no schema, with the way to the place.
type misfit struct {
	at  string
	why string
}

func (e *misfit) Error() string {
	if e.at == "" {
		return e.why
	}
	return strings.TrimPrefix(e.at, ".") + ": " + e.why
}

// inside puts a part of the way in front.
func inside(at string, err error) error {
	if m, ok := err.(*misfit); ok {
		return &misfit{at + m.at, m.why}
	}
	return err
}

func refuse(format string, args ...interface{}) error {
	return &misfit{why: fmt.Sprintf(format, args...)}
}

// visit returns the schema of a type that is a part of another, or all of it.
func (s *schemas) visit(t reflect.Type, dir direction) (*jsonschema.Schema, error) {
	schema := ownMethods(t, dir)
	if schema == nil {
		if t.PkgPath() != "" {
			switch t.Kind() {
			case reflect.Struct, reflect.Map, reflect.Slice, reflect.Array, reflect.Pointer:
				return s.define(t, dir)
			}
		}
		var err error
		if schema, err = s.shape(t, dir); err != nil {
			return nil, err
		}
	}
	label(schema, t)
	return schema, nil
}

// label says in a schema which type with a name it is of.
func label(schema *jsonschema.Schema, t reflect.Type) {
	if t.PkgPath() == "" {
		return
	}
	schema.Description, schema.Deprecated = described(docs.OfType(t))
	schema.Extra = map[string]interface{}{goTypeKeyword: t.PkgPath() + "." + t.Name()}
}

// define returns a reference to the definition of a type with a name, and makes the definition the first
// time.
func (s *schemas) define(t reflect.Type, dir direction) (*jsonschema.Schema, error) {
	d := definition{t, dir}
	name, known := s.names[d]
	if !known {
		name = s.name(d)
		s.names[d] = name
		s.made = append(s.made, d)
		schema, err := s.shape(t, dir)
		if err != nil {
			return nil, err
		}
		schema.Title = t.String()
		label(schema, t)
		s.defs[name] = schema
	}
	return &jsonschema.Schema{Ref: definitionPrefix + name}, nil
}

// argumentSuffix is behind the names of definitions of what is decoded.
const argumentSuffix = "-argument"

// name returns the name of a definition: the type's with the path of its package, in letters that need no
// escaping in a reference. Types that would have the same name get numbers, in the order in which they are
// asked for.
func (s *schemas) name(d definition) string {
	name := strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.ContainsRune("._-", c):
			return c
		case c == '/':
			return '.'
		}
		return '_'
	}, d.typ.PkgPath()+"."+d.typ.Name())
	if d.dir == decoded {
		name += argumentSuffix
	}
	s.counted[name]++
	if n := s.counted[name]; n > 1 {
		name += "-" + strconv.Itoa(n)
	}
	return name
}

// ownMethods returns the schema of a type that is encoded, or decoded, by methods of its own, and of one that
// encoding/json knows; nil for others.
func ownMethods(t reflect.Type, dir direction) *jsonschema.Schema {
	elem := t
	if t.Kind() == reflect.Pointer && t.Name() == "" {
		elem = t.Elem()
	}
	var known *jsonschema.Schema
	switch {
	case elem == timeType:
		known = &jsonschema.Schema{Type: "string", Format: "date-time"}
	case elem == numberType:
		known = &jsonschema.Schema{Type: "number"}
	case elem == bigIntType && (dir == decoded || elem != t):
		known = &jsonschema.Schema{Type: "integer"}
	}
	if known != nil {
		if elem != t {
			return nullable(known)
		}
		return known
	}
	if t.Kind() == reflect.Interface {
		return nil
	}
	pointer := reflect.PointerTo(t)
	if dir == decoded {
		switch {
		case pointer.Implements(unmarshalerType):
			return new(jsonschema.Schema)
		case pointer.Implements(textUnmarshalerType):
			return &jsonschema.Schema{Type: "string"}
		}
		return nil
	}
	switch {
	case pointer.Implements(marshalerType):
		return new(jsonschema.Schema)
	case t.Implements(textMarshalerType) && t.Kind() == reflect.Pointer:
		return nullable(&jsonschema.Schema{Type: "string"})
	case t.Implements(textMarshalerType):
		return &jsonschema.Schema{Type: "string"}
	case pointer.Implements(textMarshalerType): // called where the value can be addressed
		return new(jsonschema.Schema)
	}
	return nil
}

// shape returns the schema of a type by its kind.
func (s *schemas) shape(t reflect.Type, dir direction) (*jsonschema.Schema, error) {
	if n := number(t); n != nil {
		return n, nil
	}
	switch t.Kind() {
	case reflect.Bool:
		return &jsonschema.Schema{Type: "boolean"}, nil
	case reflect.String:
		return &jsonschema.Schema{Type: "string"}, nil
	case reflect.Interface:
		if dir == decoded && t.NumMethod() > 0 {
			return nil, refuse("nothing can be decoded into %v, an interface with methods", t)
		}
		return new(jsonschema.Schema), nil
	case reflect.Pointer:
		elem, err := s.visit(t.Elem(), dir)
		if err != nil {
			return nil, err
		}
		return nullable(elem), nil
	case reflect.Slice, reflect.Array:
		return s.list(t, dir)
	case reflect.Map:
		return s.object(t, dir)
	case reflect.Struct:
		return s.fields(t, dir)
	}
	return nil, refuse("%v is of a kind that is not in JSON", t)
}

// list returns the schema of a slice or an array.
func (s *schemas) list(t reflect.Type, dir direction) (*jsonschema.Schema, error) {
	if t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8 {
		elem := reflect.PointerTo(t.Elem())
		if !elem.Implements(marshalerType) && !elem.Implements(textMarshalerType) {
			return nullable(&jsonschema.Schema{Type: "string", ContentEncoding: "base64"}), nil
		}
	}
	items, err := s.visit(t.Elem(), dir)
	if err != nil {
		return nil, inside("[]", err)
	}
	list := &jsonschema.Schema{Type: "array", Items: items}
	if t.Kind() == reflect.Slice {
		return nullable(list), nil
	}
	list.MinItems, list.MaxItems = jsonschema.Ptr(t.Len()), jsonschema.Ptr(t.Len())
	return list, nil
}

// object returns the schema of a map.
func (s *schemas) object(t reflect.Type, dir direction) (*jsonschema.Schema, error) {
	key, text := t.Key(), false
	if dir == encoded {
		text = key.Implements(textMarshalerType)
	} else {
		text = reflect.PointerTo(key).Implements(textUnmarshalerType)
	}
	object := &jsonschema.Schema{Type: "object"}
	switch k := key.Kind(); {
	case text || k == reflect.String:
		if key.PkgPath() != "" {
			object.PropertyNames = &jsonschema.Schema{Type: "string"}
			label(object.PropertyNames, key)
		}
	case k >= reflect.Int && k <= reflect.Int64:
		object.PropertyNames = &jsonschema.Schema{Pattern: signedText}
	case k >= reflect.Uint && k <= reflect.Uintptr:
		object.PropertyNames = &jsonschema.Schema{Pattern: unsignedText}
	default:
		return nil, refuse("%v has keys of type %v, which are not in JSON", t, key)
	}
	values, err := s.visit(t.Elem(), dir)
	if err != nil {
		return nil, inside("[]", err)
	}
	object.AdditionalProperties = values
	return nullable(object), nil
}

// Patterns of numbers as text.
const (
	signedText   = "^-?(0|[1-9][0-9]*)$"
	unsignedText = "^(0|[1-9][0-9]*)$"
	numberText   = `^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$`
)

// fields returns the schema of a struct.
func (s *schemas) fields(t reflect.Type, dir direction) (*jsonschema.Schema, error) {
	object := &jsonschema.Schema{Type: "object", Properties: make(map[string]*jsonschema.Schema)}
	for _, f := range jsonFields(t) {
		if dir == decoded && f.unreachable {
			continue
		}
		schema, err := s.field(f, dir)
		switch {
		case err == nil:
		case dir == encoded && f.zero: // it is left out as long as it is nothing
			continue
		case dir == encoded:
			return nil, inside("."+f.goName, err)
		default:
			schema = &jsonschema.Schema{Type: "null", Comment: err.Error()}
		}
		description, deprecated := described(docs.OfField(f.owner, f.goName))
		if description != "" {
			schema.Description, schema.Deprecated = description, deprecated
		}
		object.Properties[f.name] = schema
		object.PropertyOrder = append(object.PropertyOrder, f.name)
		if dir == encoded && !f.optional {
			object.Required = append(object.Required, f.name)
		}
	}
	return object, nil
}

func (s *schemas) field(f jsonField, dir direction) (*jsonschema.Schema, error) {
	if !f.quoted {
		return s.visit(f.typ, dir)
	}
	t, pointer := f.typ, f.typ.Kind() == reflect.Pointer
	if pointer {
		t = t.Elem()
	}
	text := &jsonschema.Schema{Type: "string"}
	switch k := t.Kind(); {
	case t != numberType && ownMethods(t, dir) != nil:
		return s.visit(f.typ, dir)
	case k == reflect.Bool:
		text.Pattern = "^(true|false)$"
	case k >= reflect.Int && k <= reflect.Int64:
		text.Pattern = signedText
	case k >= reflect.Uint && k <= reflect.Uintptr:
		text.Pattern = unsignedText
	case k == reflect.Float32 || k == reflect.Float64 || t == numberType:
		text.Pattern = numberText
	default:
		text.ContentMediaType = "application/json"
	}
	if pointer {
		return nullable(text), nil
	}
	return text, nil
}

// number returns the schema of a number, and nil for other kinds.
func number(t reflect.Type) *jsonschema.Schema {
	whole := func(least, most float64) *jsonschema.Schema {
		return &jsonschema.Schema{Type: "integer", Format: t.Kind().String(), Minimum: &least, Maximum: &most}
	}
	switch k := t.Kind(); {
	case k >= reflect.Int && k <= reflect.Int64:
		// For 64 bits the bounds are powers of two: what a float64, which readers of JSON make of a number,
		// has for the largest integer.
		return whole(-math.Ldexp(1, t.Bits()-1), math.Ldexp(1, t.Bits()-1)-1)
	case k >= reflect.Uint && k <= reflect.Uintptr:
		return whole(0, math.Ldexp(1, t.Bits())-1)
	case k == reflect.Float32:
		return &jsonschema.Schema{Type: "number", Format: "float", Minimum: jsonschema.Ptr(-math.MaxFloat32),
			Maximum: jsonschema.Ptr(math.MaxFloat32)}
	case k == reflect.Float64:
		return &jsonschema.Schema{Type: "number", Format: "double"}
	}
	return nil
}

// nullable returns a schema that takes null, too.
func nullable(s *jsonschema.Schema) *jsonschema.Schema {
	switch {
	case s.Type != "":
		s.Type, s.Types = "", []string{s.Type, "null"}
		return s
	case s.Ref != "":
		return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{s, {Type: "null"}}}
	}
	return s // it takes null: it has several types, or none
}

// described returns a doc comment, and whether it says that something is deprecated.
func described(text string) (string, bool) {
	return text, strings.HasPrefix(text, "Deprecated: ") || strings.Contains(text, "\n\nDeprecated: ")
}
