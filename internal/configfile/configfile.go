// Package configfile reads and writes a struct of configuration as an object of a JSON or YAML file.
//
// What a field is in a file depends on its type alone, so that a new field is in files too: a time.Duration
// is a text such as "3m0s", an int64 is a size in bytes such as "16MiB", an os.FileMode is a text of octal
// digits, an int is a number, and a negative duration, size or int, which stands for no bound, is "none". A
// pointer to a struct is an object. Texts, bools and slices of texts are what they are.
package configfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Form says what of a struct is in a file. It is safe for concurrent use.
type Form struct {
	// Name returns the name in a file of the field with the name in Go.
	Name func(field string) string
	// ProgramOnly has the names in Go of fields that cannot be in a file.
	ProgramOnly []string
}

// units are the units of sizes, the largest of each kind first.
var units = []struct {
	name  string
	bytes int64
}{
	{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"KB", 1e3}, {"B", 1},
}

const noBound = "none" // in a file, what a negative number is in a program

var (
	typeDuration = reflect.TypeFor[time.Duration]()
	typeFileMode = reflect.TypeFor[os.FileMode]()
)

// field is a field of a struct, as files have it.
type field struct {
	name string // in files
	reflect.StructField
}

// fields lists the fields of the struct that can be in a file; only has the names of the others.
func (f *Form) fields(t reflect.Type) (fields []field, only []string) {
	for i := range t.NumField() {
		sf := t.Field(i)
		if slices.Contains(f.ProgramOnly, sf.Name) {
			only = append(only, f.Name(sf.Name))
		} else {
			fields = append(fields, field{f.Name(sf.Name), sf})
		}
	}
	return fields, only
}

// DecodeJSON decodes the text into values for Read. A text of no bytes has no values.
func DecodeJSON(text []byte) (values map[string]interface{}, err error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	if err := dec.Decode(&values); err != nil && err != io.EOF {
		var kind *json.UnmarshalTypeError
		if errors.As(err, &kind) {
			return nil, fmt.Errorf("expected an object, and there is %s", kind.Value)
		}
		return nil, err
	}
	return values, nil
}

// Object is an object of a file. Its names have the order of the struct's fields.
type Object []pair

type pair struct {
	name  string
	value interface{} // a string, a number, a bool, a []string or a Object
}

// MarshalJSON writes the object as JSON.
func (o Object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, p := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		value, err := json.Marshal(p.value)
		if err != nil {
			return nil, err
		}
		b.WriteString(strconv.Quote(p.name) + ":")
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// Map returns the object as a map, for writers of YAML.
func (o Object) Map() map[string]interface{} {
	m := make(map[string]interface{}, len(o))
	for _, p := range o {
		if in, ok := p.value.(Object); ok {
			p.value = in.Map()
		}
		m[p.name] = p.value
	}
	return m
}

// Write returns the fields of v that are not zero. V is a pointer to a struct.
func (f *Form) Write(v interface{}) Object { return f.writeFields(reflect.ValueOf(v).Elem()) }

// Read sets fields of v, a pointer to a struct, to the values, which DecodeJSON or a package for YAML has
// made. Fields that have no value stay as they are. An error names the first value that is wrong, and what
// was expected; then some fields may be set. A pointer that is not nil is written through.
func (f *Form) Read(v interface{}, values map[string]interface{}) error {
	return f.readFields(reflect.ValueOf(v).Elem(), "", values)
}

func (f *Form) writeFields(v reflect.Value) (o Object) {
	fields, _ := f.fields(v.Type())
	for _, sf := range fields {
		if value := v.FieldByIndex(sf.Index); !value.IsZero() {
			o = append(o, pair{sf.name, f.writeValue(value)})
		}
	}
	return o
}

func (f *Form) writeValue(v reflect.Value) interface{} {
	switch v.Type() {
	case typeDuration:
		if v.Int() < 0 {
			return noBound
		}
		return v.Interface().(time.Duration).String()
	case typeFileMode:
		return fmt.Sprintf("%#o", v.Uint())
	}
	switch v.Kind() {
	case reflect.Pointer:
		return f.writeFields(v.Elem())
	case reflect.Int64, reflect.Int:
		if v.Int() < 0 {
			return noBound
		}
		if v.Kind() == reflect.Int {
			return v.Int()
		}
		for _, u := range units[:3] {
			if v.Int()%u.bytes == 0 {
				return fmt.Sprintf("%d%s", v.Int()/u.bytes, u.name)
			}
		}
		return v.Int()
	}
	return v.Interface()
}

// readFields sets the fields of v, a struct, to values; path is where they are in the file.
func (f *Form) readFields(v reflect.Value, path string, values map[string]interface{}) error {
	fields, only := f.fields(v.Type())
	left := len(values)
	for _, sf := range fields {
		value, ok := values[sf.name]
		if !ok {
			continue
		}
		left--
		if err := f.readValue(v.FieldByIndex(sf.Index), path+sf.name, value); err != nil {
			return err
		}
	}
	if left == 0 {
		return nil
	}
	return unknownName(fields, only, path, values)
}

// unknownName names the first name, in the alphabet, that no field has.
func unknownName(fields []field, only []string, path string, values map[string]interface{}) error {
	first, like := "", ""
	for name := range values {
		known := false
		for _, f := range fields {
			known = known || f.name == name
		}
		if !known && (first == "" || name < first) {
			first = name
		}
	}
	squeeze := func(s string) string {
		return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(s))
	}
	for _, f := range fields {
		if squeeze(f.name) == squeeze(first) {
			like = f.name
		}
	}
	for _, name := range only {
		if squeeze(name) == squeeze(first) {
			return fmt.Errorf("%s%s cannot be set in a file, only in a program", path, first)
		}
	}
	if like != "" {
		return fmt.Errorf("there is no %s%s; it is called %s%s", path, first, path, like)
	}
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
	}
	return fmt.Errorf("there is no %s%s; there are %s", path, first, strings.Join(names, ", "))
}

// readValue sets a field to a value, of those that encoding/json makes with UseNumber and that
// packages for YAML make. Null is zero.
func (f *Form) readValue(field reflect.Value, path string, value interface{}) error {
	bad := func(expected string) error {
		shown := value
		if s, ok := value.(string); ok {
			shown = strconv.Quote(s)
		}
		return fmt.Errorf("%s: %v is not what is expected, %s", path, shown, expected)
	}
	if value == nil {
		field.SetZero()
		return nil
	}
	text, isText := value.(string)
	n, isInt := intOf(value)
	switch field.Type() {
	case typeDuration:
		const expected = `a duration such as "1m30s" or "500ms", or "none"`
		d, err := time.ParseDuration(text)
		switch {
		case isInt && n == 0:
		case isInt && n == -1 || text == noBound:
			d = -1
		case !isText || err != nil:
			return bad(expected)
		}
		field.SetInt(int64(d))
		return nil
	case typeFileMode:
		_, isJSON := value.(json.Number)
		mode, err := strconv.ParseUint(text, 8, 32)
		if isInt && !isJSON && n >= 0 && n <= math.MaxUint32 { // YAML has octal numbers
			mode, err = uint64(n), nil
		}
		if err != nil {
			return bad(`permissions in octal digits such as "0600"`)
		}
		field.SetUint(mode)
		return nil
	}
	switch field.Kind() {
	case reflect.Pointer:
		of := field.Type().Elem()
		values, ok := mapOf(value)
		if !ok {
			return bad(fmt.Sprintf("an object with the fields of %s, which may be empty", of.Name()))
		}
		if field.IsNil() {
			field.Set(reflect.New(of))
		}
		return f.readFields(field.Elem(), path+".", values)
	case reflect.String:
		if !isText {
			return bad("a text")
		}
		field.SetString(text)
	case reflect.Bool:
		b, ok := value.(bool)
		if !ok {
			return bad("true or false")
		}
		field.SetBool(b)
	case reflect.Int64:
		if isText {
			n, isInt = sizeOf(text)
		}
		if !isInt {
			return bad(`a size such as "16MiB" or "64KiB", a number of bytes, or "none"`)
		}
		field.SetInt(n)
	case reflect.Int, reflect.Int32:
		if text == noBound && field.Kind() == reflect.Int {
			n, isInt = -1, true
		}
		if !isInt || field.OverflowInt(n) {
			if field.Kind() == reflect.Int32 {
				return bad("a whole number")
			}
			return bad(`a whole number, or "none"`)
		}
		field.SetInt(n)
	case reflect.Slice:
		list, ok := value.([]interface{})
		texts := make([]string, 0, len(list))
		for _, v := range list {
			s, isText := v.(string)
			ok = ok && isText
			texts = append(texts, s)
		}
		if !ok {
			return bad(`a list of texts such as ["127.0.0.1:9090"]`)
		}
		field.Set(reflect.ValueOf(texts))
	}
	return nil
}

// sizeOf is the size that a text says, in bytes.
func sizeOf(text string) (n int64, ok bool) {
	if text == noBound {
		return -1, true
	}
	for _, u := range units {
		digits, found := strings.CutSuffix(text, u.name)
		if !found {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64/u.bytes {
			return 0, false
		}
		return n * u.bytes, true
	}
	n, err := strconv.ParseInt(text, 10, 64)
	return n, err == nil
}

// intOf is the whole number that a value is.
func intOf(value interface{}) (n int64, ok bool) {
	switch v := value.(type) {
	case json.Number:
		n, err := v.Int64()
		return n, err == nil
	case int:
		return int64(v), true
	case int64:
		return v, true
	case uint64:
		return int64(v), v <= math.MaxInt64
	}
	return 0, false
}

// mapOf is the object that a value is; version 2 of the package yaml makes keys of any type.
func mapOf(value interface{}) (map[string]interface{}, bool) {
	switch v := value.(type) {
	case map[string]interface{}:
		return v, true
	case map[interface{}]interface{}:
		m := make(map[string]interface{}, len(v))
		for k, value := range v {
			m[fmt.Sprint(k)] = value
		}
		return m, true
	}
	return nil, false
}
