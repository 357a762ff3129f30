package codec

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
)

// An error of the codec says where something is wrong and of what type it is, and never
// what it is: errors are logged, and bodies have secrets in them.

func jsonDecodingError(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		if strings.Contains(syntax.Error(), "unexpected end") {
			return errors.New("it is not JSON: it ends too early")
		}
		if strings.Contains(syntax.Error(), "max depth") {
			return fmt.Errorf("nested deeper than %d", maxNesting)
		}
		return fmt.Errorf("it is not JSON: something else is expected at byte %d", syntax.Offset)
	case errors.As(err, &kind):
		value, _, _ := strings.Cut(kind.Value, " ") // behind that is the number
		field := ""
		if kind.Field != "" {
			field = " of field " + kind.Field
		}
		return &jsonTypeError{value, kind.Offset, kind.Type, field}
	case quotesInput(err):
		return errors.New("a string is not in the form that its Go type needs")
	}
	return err
}

// jsonTypeError is a value of another type.
type jsonTypeError struct {
	value  string // what kind of value there is
	offset int64
	typ    reflect.Type
	field  string
}

func (e *jsonTypeError) Error() string {
	return fmt.Sprintf("the %s at byte %d is no value for the Go type %v%s", e.value, e.offset, e.typ,
		e.field)
}

// Told is the error without types of Go.
func (e *jsonTypeError) Told() string {
	return fmt.Sprintf("the %s at byte %d is not %s%s", e.value, e.offset, jsonKind(e.typ), e.field)
}

// jsonKind is what JSON has for a type of Go.
func jsonKind(t reflect.Type) string {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil {
		return "what is expected"
	}
	if u := reflect.TypeFor[json.Unmarshaler](); t.Implements(u) || reflect.PointerTo(t).Implements(u) {
		return "what is expected"
	}
	if u := reflect.TypeFor[encoding.TextUnmarshaler](); t.Implements(u) ||
		reflect.PointerTo(t).Implements(u) {
		return "a string"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return fmt.Sprintf("a whole number of %d bits", t.Bits())
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return fmt.Sprintf("a whole number of %d bits without a sign", t.Bits())
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.String:
		return "a string"
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Slice, reflect.Array:
		if t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8 {
			return "a string in base64"
		}
		return "an array"
	}
	return "what is expected"
}

func jsonEncodingError(err error) error {
	var syntax *json.SyntaxError
	var method *json.MarshalerError
	switch {
	case errors.As(err, &method) && errors.As(method.Err, &syntax):
		return fmt.Errorf("what %v makes of itself is not JSON", method.Type)
	case errors.As(err, &method) && quotesInput(method.Err):
		return fmt.Errorf("%v cannot be encoded", method.Type)
	case quotesInput(err):
		return errors.New("a json.Number is not a number")
	}
	return err
}

// quotesInput reports whether an error of the standard library may have a piece of what it
// is about in its text. An error of the user's own is the user's.
func quotesInput(err error) bool {
	for ; err != nil; err = errors.Unwrap(err) {
		t := reflect.TypeOf(err)
		if t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		switch t.PkgPath() {
		case "time", "strconv", "net", "net/netip", "net/url", "math/big", "encoding/hex":
			return true
		case "errors", "fmt":
			for _, of := range []string{"json: ", "math/big: ", "netip.", "ParseAddr"} {
				if strings.HasPrefix(err.Error(), of) {
					return true
				}
			}
		}
	}
	return false
}
