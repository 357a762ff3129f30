package codec

import (
	"reflect"
	"runtime"

	"github.com/henrylee2cn/teleport/internal/bufpool"
)

// Name and wire id of the string codec.
const (
	NameString = "string"
	IdString   = 's'
)

// stringCodec carries text or bytes as they are. It encodes string, []byte,
// types made of them, and pointers to either; it decodes into pointers to them
// and into *interface{}, which then holds a string.
type stringCodec struct{}

var errNotString error = &toldError{"not a string, a []byte or a pointer to one",
	"a text is not what is expected"}

func (stringCodec) Id() byte     { return IdString }
func (stringCodec) Name() string { return NameString }

func (c stringCodec) Marshal(v interface{}) ([]byte, error) {
	return c.AppendMarshal(nil, v)
}

func (stringCodec) AppendMarshal(dst []byte, v interface{}) ([]byte, error) {
	switch s := v.(type) {
	case string:
		return appendText(dst, s), nil
	case []byte:
		return appendText(dst, s), nil
	}
	rv := reflect.ValueOf(v)
	if rv.Kind() == reflect.Pointer && !rv.IsNil() {
		rv = rv.Elem()
		if rv.Kind() == reflect.Interface {
			rv = rv.Elem()
		}
	}
	switch {
	case rv.Kind() == reflect.String:
		return appendText(dst, rv.String()), nil
	case isBytes(rv):
		return appendText(dst, rv.Bytes()), nil
	}
	return dst, errNotString
}

// longText is how many bytes are copied before other goroutines may run: 20 to 60 us, where the
// memory is not in a cache.
const longText = 64 << 10

// appendText appends the text. The runtime does not interrupt a copy, so that a long one would hold up
// whatever waits for the processor: it is made in pieces.
func appendText[T string | []byte](dst []byte, s T) []byte {
	dst = bufpool.Grow(dst, len(s))
	for len(s) > longText {
		dst = append(dst, s[:longText]...)
		s = s[longText:]
		runtime.Gosched()
	}
	return append(dst, s...)
}

func (stringCodec) Unmarshal(data []byte, v interface{}) error {
	switch p := v.(type) {
	case *string:
		if p != nil {
			*p = string(data)
			return nil
		}
	case *[]byte:
		if p != nil {
			*p = append((*p)[:0:0], data...)
			return nil
		}
	case *interface{}:
		if p != nil {
			*p = string(data)
			return nil
		}
	}
	rv := reflect.ValueOf(v)
	if rv.Kind() != reflect.Pointer || rv.IsNil() {
		return errNotString
	}
	switch rv = rv.Elem(); {
	case rv.Kind() == reflect.String:
		rv.SetString(string(data))
		return nil
	case isBytes(rv):
		rv.SetBytes(append([]byte(nil), data...))
		return nil
	}
	return errNotString
}

func isBytes(v reflect.Value) bool {
	return v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8
}

func (stringCodec) DecodedBound(data []byte, _ interface{}) int64 { return allocated(int64(len(data))) }

func (stringCodec) DecodedSize(data []byte, _ interface{}, _ int64) int64 {
	return allocated(int64(len(data)))
}
