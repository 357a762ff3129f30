// Package codec turns values into bytes and back, and keeps the registry that
// maps a codec's one-byte wire id and its name to it.
//
// Three codecs are always registered: json ('j'), protobuf ('p') and string
// ('s'). A program adds its own with [Reg], usually from an init function; the
// package codectest checks such a codec against the rules below.
package codec

import (
	"errors"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"

	"github.com/henrylee2cn/teleport/internal/printable"
)

// A Codec encodes and decodes bodies, and, where it can encode a struct of
// strings and numbers, headers too.
//
// All methods are called from many goroutines at once.
type Codec interface {
	// Id is the byte that stands for the codec on the wire. 0 is never a codec.
	Id() byte
	// Name is what settings and configuration call the codec.
	Name() string
	// Marshal returns v's encoding. The caller owns the slice.
	Marshal(v interface{}) ([]byte, error)
	// Unmarshal decodes data into v, a non-nil pointer. It must not keep data
	// or any part of it: the bytes are reused after it returns.
	Unmarshal(data []byte, v interface{}) error
}

// An Appender is a Codec that can also encode into a buffer of the caller's,
// which saves an allocation and a copy for every packet. It is optional.
type Appender interface {
	// AppendMarshal appends v's encoding to dst and returns the longer slice.
	// After an error the bytes behind len(dst) are unspecified.
	AppendMarshal(dst []byte, v interface{}) ([]byte, error)
}

// A DepthLimiter is a Codec that can refuse values that are nested too deep. To
// decode such a value takes a deep stack, and so does whatever is done with it
// later. It is optional; json and protobuf do it.
type DepthLimiter interface {
	// UnmarshalDepth is Unmarshal, with an error for data in which more than depth
	// values, at least 1, are inside each other.
	UnmarshalDepth(data []byte, v interface{}, depth int) error
}

// ErrUnknown is what errors.Is finds in the error for an id or a name that is
// not registered.
var ErrUnknown = errors.New("unknown codec")

var registry struct {
	mu     sync.Mutex // serializes writers, and guards all
	all    []*named
	byId   [256]atomic.Pointer[named]
	byName atomic.Pointer[map[string]Codec]
}

func init() {
	Reg(jsonCodec{})
	Reg(protobufCodec{})
	Reg(stringCodec{})
}

// Reg registers a codec for the whole process. It panics when the id is 0, the
// name is empty, or either is taken, because two peers that disagree about an
// id could not talk. It is safe for concurrent use.
func Reg(c Codec) {
	if c == nil {
		panic("codec: Reg of a nil Codec.")
	}
	id, name := c.Id(), c.Name()
	if id == 0 {
		panic(fmt.Sprintf("codec: Reg of %q with id 0; 0 is never a codec.", name))
	}
	if name == "" {
		panic(fmt.Sprintf("codec: Reg of a codec with id %d and no name.", id))
	}
	if other := register(named{c, id, name}); other != nil {
		if other.id == id {
			panic(fmt.Sprintf("codec: Reg of %q: id %d already belongs to codec %q.", name, id, other.name))
		}
		panic(fmt.Sprintf("codec: Reg of id %d: the name %q already belongs to the codec with id %d.", id,
			name, other.id))
	}
}

// named is a codec with what it has said when it was registered: its methods are not called
// under the lock.
type named struct {
	Codec
	id   byte
	name string
}

// register takes the codec in, or returns the one that has its id or its name.
func register(c named) (other *named) {
	registry.mu.Lock()
	defer registry.mu.Unlock()
	if other := registry.byId[c.id].Load(); other != nil {
		return other
	}
	names := make(map[string]Codec)
	for _, of := range registry.all {
		if of.name == c.name {
			return of
		}
		names[of.name] = of.Codec
	}
	names[c.name] = c.Codec
	registry.all = append(registry.all, &c)
	registry.byName.Store(&names)
	registry.byId[c.id].Store(&c)
	return nil
}

// GetById returns the codec with the wire id, or an error that wraps
// [ErrUnknown]. It takes no lock.
func GetById(id byte) (Codec, error) {
	switch id { // they are always registered; this saves a look
	case IdProtobuf:
		return protobufCodec{}, nil
	case IdJSON:
		return jsonCodec{}, nil
	}
	if c := registry.byId[id].Load(); c != nil {
		return c.Codec, nil
	}
	return nil, fmt.Errorf("%w: id %d (%q)", ErrUnknown, id, rune(id))
}

// GetByName returns the codec with the name, or an error that wraps
// [ErrUnknown]. It takes no lock.
func GetByName(name string) (Codec, error) {
	switch name { // they are always registered; this saves hashing the name
	case NameProtobuf:
		return protobufCodec{}, nil
	case NameJSON:
		return jsonCodec{}, nil
	}
	if c, ok := (*registry.byName.Load())[name]; ok {
		return c, nil
	}
	return nil, fmt.Errorf("%w: name %q", ErrUnknown, name)
}

// All returns the codecs that are registered, by id. It takes no lock; the slice is the caller's.
func All() []Codec {
	all := make([]Codec, 0, len(*registry.byName.Load()))
	for i := range registry.byId {
		if c := registry.byId[i].Load(); c != nil {
			all = append(all, c.Codec)
		}
	}
	return all
}

// maxPrinted bounds what an error says of a panic's value, in bytes.
const maxPrinted = 256

// Append appends v's encoding to dst. On an error, a panic of the codec or of
// v's own methods included, it returns dst as it was.
func Append(c Codec, dst []byte, v interface{}) (out []byte, err error) {
	returned := false
	defer func() {
		if !returned { // recover returns nil after panic(nil) with GODEBUG=panicnil=1
			out, err = dst, fmt.Errorf("codec %s: encoding %T panicked: %s", c.Name(), v,
				printable.Value(recover(), maxPrinted))
		}
	}()
	if a, ok := c.(Appender); ok {
		out, err = a.AppendMarshal(dst, v)
	} else {
		var b []byte
		if b, err = c.Marshal(v); err == nil {
			out = append(dst, b...)
		}
	}
	returned = true
	if err != nil {
		return dst, fmt.Errorf("codec %s: encoding %T: %w", c.Name(), v, err)
	}
	return out, nil
}

// Decode decodes data into v with c. A panic of the codec or of v's own methods
// becomes an error: data may come from a stranger.
func Decode(c Codec, data []byte, v interface{}) error {
	return DecodeDepth(c, data, v, 0)
}

// DecodeDepth is Decode with a bound on how deep the data may be nested, if c is a
// [DepthLimiter]; 0 is the codec's own.
func DecodeDepth(c Codec, data []byte, v interface{}, depth int) (err error) {
	returned := false
	defer func() {
		if !returned {
			err = &decodeError{codec: c.Name(), into: reflect.TypeOf(v), panicked: true,
				err: errors.New(printable.Value(recover(), maxPrinted))}
		}
	}()
	if d, ok := c.(DepthLimiter); ok && depth > 0 {
		err = d.UnmarshalDepth(data, v, depth)
	} else {
		err = c.Unmarshal(data, v)
	}
	returned = true
	if err != nil {
		return &decodeError{codec: c.Name(), into: reflect.TypeOf(v), err: err}
	}
	return nil
}

// decodeError is why a body does not decode, with what this side decodes it into. Told says it
// to the other side, which is to know nothing of that.
type decodeError struct {
	codec    string
	into     reflect.Type
	panicked bool
	err      error
}

func (e *decodeError) Error() string {
	if e.panicked {
		return fmt.Sprintf("codec %s: decoding into %v panicked: %v", e.codec, e.into, e.err)
	}
	return fmt.Sprintf("codec %s: decoding into %v: %v", e.codec, e.into, e.err)
}

func (e *decodeError) Unwrap() error { return e.err }

func (e *decodeError) Told() string {
	if e.panicked {
		return e.codec + ": the codec panicked"
	}
	var typed interface{ Told() string }
	if errors.As(e.err, &typed) {
		return e.codec + ": " + typed.Told()
	}
	return e.codec + ": " + e.err.Error()
}

// toldError has a text for this side and one for the other.
type toldError struct{ text, told string }

func (e *toldError) Error() string { return e.text }
func (e *toldError) Told() string  { return e.told }
