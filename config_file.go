package tp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/henrylee2cn/goutil"
)

// A PeerConfig in a file has the names of its fields in snake case. What a field is in a file
// depends on its type alone, so that a new field is in files too.

// fileUnits are the units of sizes, the largest of each kind first.
var fileUnits = []struct {
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
	typeRedial   = reflect.TypeFor[*Redial]()
)

// fileField is a field of the struct of a configuration, as files have it.
type fileField struct {
	name string // in files
	reflect.StructField
}

// fileFields lists those that can be in a file; only names those that cannot.
func fileFields(t reflect.Type) (fields []fileField, only []string) {
	for i := range t.NumField() {
		f := t.Field(i)
		switch f.Name {
		case "TLSConfig":
			only = append(only, "tls_config")
		case "DialContext":
			only = append(only, "dial_context")
		default:
			fields = append(fields, fileField{goutil.SnakeString(f.Name), f})
		}
	}
	return fields, only
}

// MarshalJSON writes the configuration for a file: the fields that are not zero, their names
// in snake case as in "default_read_timeout", durations as "3m0s", sizes as "16MiB", modes as
// "0600", and "none" for no bound. An error says that it has a TLSConfig or a DialContext,
// which a file cannot hold.
func (c PeerConfig) MarshalJSON() ([]byte, error) {
	values, err := c.fileValues()
	if err != nil {
		return nil, err
	}
	return values.MarshalJSON()
}

// MarshalYAML is MarshalJSON for YAML, as the packages go.yaml.in/yaml, gopkg.in/yaml and
// goccy/go-yaml call it.
func (c PeerConfig) MarshalYAML() (interface{}, error) {
	values, err := c.fileValues()
	if err != nil {
		return nil, err
	}
	return values.plain(), nil
}

// UnmarshalJSON reads what MarshalJSON writes. Fields that the text does not have are left as
// they are. A name that no field has, a value of another kind or one that NewPeer would not
// take is an error that names it, and then nothing is changed.
func (c *PeerConfig) UnmarshalJSON(text []byte) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	var values map[string]interface{}
	if err := dec.Decode(&values); err != nil && err != io.EOF {
		var kind *json.UnmarshalTypeError
		if errors.As(err, &kind) {
			return fmt.Errorf("tp: PeerConfig: expected an object, and there is %s", kind.Value)
		}
		return fmt.Errorf("tp: PeerConfig: %w", err)
	}
	return c.readFile(values)
}

// UnmarshalYAML is UnmarshalJSON for YAML, as the packages go.yaml.in/yaml, gopkg.in/yaml and
// goccy/go-yaml call it.
func (c *PeerConfig) UnmarshalYAML(unmarshal func(interface{}) error) error {
	var values map[string]interface{}
	if err := unmarshal(&values); err != nil {
		return err
	}
	return c.readFile(values)
}

func (c *PeerConfig) readFile(values map[string]interface{}) error {
	next := *c
	if c.Redial != nil {
		r := *c.Redial
		next.Redial = &r
	}
	if err := readFields(reflect.ValueOf(&next).Elem(), "", values); err != nil {
		return fmt.Errorf("tp: PeerConfig: %w", err)
	}
	if err := next.problem(); err != nil {
		return err
	}
	*c = next
	return nil
}

// fileObject is an object of a file with its names in order.
type fileObject []filePair

type filePair struct {
	name  string
	value interface{} // a string, a number, a bool, a []string or a fileObject
}

func (o fileObject) MarshalJSON() ([]byte, error) {
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

// plain is the object for a writer that knows maps.
func (o fileObject) plain() map[string]interface{} {
	m := make(map[string]interface{}, len(o))
	for _, p := range o {
		if in, ok := p.value.(fileObject); ok {
			p.value = in.plain()
		}
		m[p.name] = p.value
	}
	return m
}

func (c *PeerConfig) fileValues() (fileObject, error) {
	switch {
	case c.TLSConfig != nil:
		return nil, errors.New("tp: PeerConfig: TLSConfig is set, which a file cannot hold; TlsCertFile " +
			"and TlsKeyFile can be there")
	case c.DialContext != nil:
		return nil, errors.New("tp: PeerConfig: DialContext is set, which a file cannot hold")
	}
	return writeFields(reflect.ValueOf(c).Elem()), nil
}

func writeFields(v reflect.Value) (o fileObject) {
	fields, _ := fileFields(v.Type())
	for _, f := range fields {
		if field := v.FieldByIndex(f.Index); !field.IsZero() {
			o = append(o, filePair{f.name, writeValue(field)})
		}
	}
	return o
}

func writeValue(v reflect.Value) interface{} {
	switch v.Type() {
	case typeDuration:
		if v.Int() < 0 {
			return noBound
		}
		return v.Interface().(time.Duration).String()
	case typeFileMode:
		return fmt.Sprintf("%#o", v.Uint())
	case typeRedial:
		return writeFields(v.Elem())
	}
	switch v.Kind() {
	case reflect.Int64, reflect.Int:
		if v.Int() < 0 {
			return noBound
		}
		if v.Kind() == reflect.Int {
			return v.Int()
		}
		for _, u := range fileUnits[:3] {
			if v.Int()%u.bytes == 0 {
				return fmt.Sprintf("%d%s", v.Int()/u.bytes, u.name)
			}
		}
		return v.Int()
	}
	return v.Interface()
}

// readFields sets the fields of v, a struct, to values; path is where they are in the file.
func readFields(v reflect.Value, path string, values map[string]interface{}) error {
	fields, only := fileFields(v.Type())
	left := len(values)
	for _, f := range fields {
		value, ok := values[f.name]
		if !ok {
			continue
		}
		left--
		if err := readValue(v.FieldByIndex(f.Index), path+f.name, value); err != nil {
			return err
		}
	}
	if left == 0 {
		return nil
	}
	return unknownName(fields, only, path, values)
}

// unknownName names the first name, in the alphabet, that no field has.
func unknownName(fields []fileField, only []string, path string, values map[string]interface{}) error {
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
func readValue(field reflect.Value, path string, value interface{}) error {
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
	case typeRedial:
		values, ok := mapOf(value)
		if !ok {
			return bad("an object with the fields of Redial, which may be empty")
		}
		if field.IsNil() {
			field.Set(reflect.ValueOf(new(Redial)))
		}
		return readFields(field.Elem(), path+".", values)
	}
	switch field.Kind() {
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
	for _, u := range fileUnits {
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
