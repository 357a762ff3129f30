package codec

import (
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
		return fmt.Errorf("the %s at byte %d is no value for the Go type %v%s", value, kind.Offset, kind.Type, field)
	case quotesInput(err):
		return errors.New("a string is not in the form that its Go type needs")
	}
	return err
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
