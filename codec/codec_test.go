package codec_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/codec/codectest"
)

func byName(t testing.TB, name string) codec.Codec {
	t.Helper()
	c, err := codec.GetByName(name)
	require.NoError(t, err)
	return c
}

func TestBuiltInCodecsAreRegistered(t *testing.T) {
	for name, id := range map[string]byte{"json": 'j', "protobuf": 'p', "string": 's'} {
		c := byName(t, name)
		require.Equal(t, name, c.Name())
		require.Equal(t, id, c.Id())
		same, err := codec.GetById(id)
		require.NoError(t, err)
		require.Equal(t, c, same)
		_, ok := c.(codec.Appender)
		require.True(t, ok, "%s is no Appender", name)
	}
	require.Equal(t, "json protobuf string", strings.Join([]string{codec.NameJSON, codec.NameProtobuf,
		codec.NameString}, " "))
	require.Equal(t, "jps", string([]byte{codec.IdJSON, codec.IdProtobuf, codec.IdString}))
}

func TestAll(t *testing.T) {
	all := codec.All()
	var ids []byte
	for _, c := range all {
		ids = append(ids, c.Id())
	}
	require.IsIncreasing(t, ids)
	for _, id := range []byte{codec.IdJSON, codec.IdProtobuf, codec.IdString} {
		require.Contains(t, ids, id)
	}
	clear(all)
	require.NotNil(t, codec.All()[0], "the slice is the caller's")
}

func TestUnknownCodec(t *testing.T) {
	_, err := codec.GetById(0)
	require.ErrorIs(t, err, codec.ErrUnknown)
	require.EqualError(t, err, `unknown codec: id 0 ('\x00')`)
	_, err = codec.GetById('J')
	require.ErrorIs(t, err, codec.ErrUnknown)
	require.ErrorContains(t, err, "id 74 ('J')")
	_, err = codec.GetByName("JSON")
	require.ErrorIs(t, err, codec.ErrUnknown)
	require.EqualError(t, err, `unknown codec: name "JSON"`)
	_, err = codec.GetByName("")
	require.ErrorIs(t, err, codec.ErrUnknown)
}

// fake is a codec of strings whose parts can be set.
type fake struct {
	id        byte
	name      string
	marshal   func(interface{}) ([]byte, error)
	unmarshal func([]byte, interface{}) error
}

func (f fake) Id() byte     { return f.id }
func (f fake) Name() string { return f.name }

func (f fake) Marshal(v interface{}) ([]byte, error) {
	if f.marshal != nil {
		return f.marshal(v)
	}
	return []byte(v.(string)), nil
}

func (f fake) Unmarshal(data []byte, v interface{}) error {
	if f.unmarshal != nil {
		return f.unmarshal(data, v)
	}
	*v.(*string) = string(data)
	return nil
}

// fakeAppender is a fake that appends.
type fakeAppender struct {
	fake
	appendMarshal func([]byte, interface{}) ([]byte, error)
}

func (f fakeAppender) AppendMarshal(dst []byte, v interface{}) ([]byte, error) {
	return f.appendMarshal(dst, v)
}

func TestRegRefuses(t *testing.T) {
	for _, tc := range []struct {
		name  string
		codec codec.Codec
		says  string
	}{
		{"nil", nil, "codec: Reg of a nil Codec."},
		{"id 0", fake{name: "zero"}, `codec: Reg of "zero" with id 0; 0 is never a codec.`},
		{"no name", fake{id: 200}, "codec: Reg of a codec with id 200 and no name."},
		{"id taken", fake{id: 'j', name: "another"},
			`codec: Reg of "another": id 106 already belongs to codec "json".`},
		{"name taken", fake{id: 200, name: "json"},
			`codec: Reg of id 200: the name "json" already belongs to the codec with id 106.`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			require.PanicsWithValue(t, tc.says, func() { codec.Reg(tc.codec) })
		})
	}
	// What was refused has left nothing behind, and the others are as they were.
	for _, id := range []byte{0, 200} {
		_, err := codec.GetById(id)
		require.ErrorIs(t, err, codec.ErrUnknown)
	}
	for _, name := range []string{"", "zero", "another"} {
		_, err := codec.GetByName(name)
		require.ErrorIs(t, err, codec.ErrUnknown)
	}
	require.Equal(t, byte('j'), byName(t, "json").Id())
}

// upper is a user's own codec: text in capitals on the wire.
type upper struct{}

func (upper) Id() byte     { return 'U' }
func (upper) Name() string { return "upper" }

func (upper) Marshal(v interface{}) ([]byte, error) {
	s, ok := v.(string)
	if !ok {
		return nil, errors.New("not a string")
	}
	return []byte(strings.ToUpper(s)), nil
}

func (upper) Unmarshal(data []byte, v interface{}) error {
	s, ok := v.(*string)
	if !ok {
		return errors.New("not a *string")
	}
	*s = strings.ToLower(string(data))
	return nil
}

// Once a process, whatever -count says: nothing is ever taken out of the registry.
var regUpper = sync.OnceFunc(func() { codec.Reg(upper{}) })

func TestUsersOwnCodec(t *testing.T) {
	regUpper()
	c := byName(t, "upper")
	same, err := codec.GetById('U')
	require.NoError(t, err)
	require.Equal(t, c, same)
	codectest.Run(t, c, codectest.Of("small"), codectest.Of(""))

	b, err := codec.Append(c, []byte("in front "), "text")
	require.NoError(t, err)
	require.Equal(t, "in front TEXT", string(b))
	var s string
	require.NoError(t, codec.Decode(c, []byte("TEXT"), &s))
	require.Equal(t, "text", s)

	require.Panics(t, func() { codec.Reg(upper{}) }, "a second time")
}

func TestRegistryIsReadWhileWritten(t *testing.T) {
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				_, err := codec.GetByName("json")
				assert.NoError(t, err)
				_, err = codec.GetById('p')
				assert.NoError(t, err)
			}
		})
		wg.Go(func() { regUpper() })
		wg.Go(func() {
			assert.Panics(t, func() { codec.Reg(fake{id: 's', name: "taken"}) })
		})
	}
	wg.Wait()
}

// Types whose own methods misbehave.
type (
	panicky struct{ At string }
	failing struct{ At string }
)

func (panicky) MarshalJSON() ([]byte, error)       { panic("user's marshal") }
func (*panicky) UnmarshalJSON(data []byte) error   { panic("user's unmarshal") }
func (failing) MarshalJSON() ([]byte, error)       { return nil, errUser }
func (*failing) UnmarshalJSON(data []byte) error   { return errUser }
func (p *panicky) UnmarshalText(text []byte) error { panic("user's text") }

var errUser = errors.New("the user's error")

// after has something that encodes before, and behind, what may not.
type after struct {
	Before string
	Then   interface{}
	Behind []int
}

// requireUntouched calls f with a slice that has room behind it, and requires
// that f fails and returns that slice.
func requireUntouched(t *testing.T, f func(dst []byte) ([]byte, error)) error {
	t.Helper()
	const front = "what was there"
	dst := append(make([]byte, 0, 1000), front...)
	out, err := f(dst)
	require.Error(t, err)
	require.Equal(t, front, string(out))
	require.Equal(t, front, string(dst))
	require.Same(t, unsafe.SliceData(dst), unsafe.SliceData(out))
	require.Equal(t, cap(dst), cap(out))

	out, err = f(nil)
	require.Error(t, err)
	require.Nil(t, out)
	return err
}

func TestAppendThatFailsLeavesDstAlone(t *testing.T) {
	jsonCodec, pb, str := byName(t, "json"), byName(t, "protobuf"), byName(t, "string")
	for _, tc := range []struct {
		name  string
		codec codec.Codec
		value interface{}
		says  []string
	}{
		{"json: a channel", jsonCodec, after{"a", make(chan int), nil},
			[]string{"codec json: encoding codec_test.after", "chan int"}},
		{"json: NaN half way", jsonCodec, after{"a", []interface{}{1, math.NaN()}, nil},
			[]string{"codec_test.after", "NaN"}},
		{"json: the user's error", jsonCodec, after{"a", failing{}, []int{1}}, []string{"codec_test.after",
			errUser.Error()}},
		{"json: the user's panic", jsonCodec, after{"a", panicky{}, []int{1}},
			[]string{"codec json: encoding codec_test.after panicked: user's marshal"}},
		{"protobuf: not a message", pb, 7, []string{"codec protobuf: encoding int: not a protobuf message"}},
		{"protobuf: nil", pb, nil, []string{"encoding <nil>"}},
		{"protobuf: invalid UTF-8", pb, wrapperspb.String("\xff"), []string{"*wrapperspb.StringValue",
			"UTF-8"}},
		{"protobuf: a required field", pb, new(descriptorpb.UninterpretedOption_NamePart),
			[]string{"*descriptorpb.UninterpretedOption_NamePart", "required"}},
		{"string: a number", str, 7, []string{"codec string: encoding int: not a string"}},
		{"string: nil", str, nil, []string{"encoding <nil>"}},
		{"string: a nil pointer", str, (*string)(nil), []string{"encoding *string"}},
		{"string: a pointer to a number", str, new(int), []string{"encoding *int"}},
		{"string: an array", str, [2]byte{}, []string{"encoding [2]uint8"}},
		{"a codec's error", fake{id: 1, name: "mine", marshal: func(interface{}) ([]byte,
			error) {
			return []byte("half"), errUser
		}}, "x", []string{"codec mine: encoding string: the user's error"}},
		{"a codec's panic", fake{id: 1, name: "mine"}, 7,
			[]string{"codec mine: encoding int panicked: interface conversion"}},
		{"an appender's error", fakeAppender{fake{id: 1, name: "mine"},
			func(dst []byte, v interface{}) ([]byte, error) {
				return append(dst, "half of it"...), errUser
			}}, "x", []string{"codec mine: encoding string: the user's error"}},
		{"an appender's panic", fakeAppender{fake{id: 1, name: "mine"},
			func(dst []byte, v interface{}) ([]byte, error) {
				_ = append(dst, "half of it"...)
				panic("stop")
			}}, "x", []string{"codec mine: encoding string panicked: stop"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := requireUntouched(t, func(dst []byte) ([]byte, error) {
				return codec.Append(tc.codec, dst, tc.value)
			})
			for _, s := range tc.says {
				require.ErrorContains(t, err, s)
			}
		})
	}
}

func TestErrorsOfTheCodecAreWrapped(t *testing.T) {
	bad := fake{id: 1, name: "mine",
		marshal:   func(interface{}) ([]byte, error) { return nil, errUser },
		unmarshal: func([]byte, interface{}) error { return errUser },
	}
	_, err := codec.Append(bad, nil, "x")
	require.ErrorIs(t, err, errUser)
	err = codec.Decode(bad, nil, new(string))
	require.ErrorIs(t, err, errUser)
	require.EqualError(t, err, "codec mine: decoding into *string: the user's error")
}

// The next packets are encoded with the same pooled state as those that failed.
func TestFailedMarshalDoesNotPoisonTheNext(t *testing.T) {
	c := byName(t, "json")
	want, err := json.Marshal(after{"a", "b", []int{1, 2}})
	require.NoError(t, err)
	// Memory that was the caller's, or has become it, is written over here if the
	// codec has kept it.
	overwrite := func() {
		_, err := c.Marshal("zzzzzzzzzzzzzzzzzzzzzzzzzzzzzz")
		assert.NoError(t, err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 200 {
				bad := []interface{}{make(chan int), math.Inf(1), failing{}, panicky{}, nil}[i%5]
				dst := append(make([]byte, 0, 256), "mine"...)
				out, err := codec.Append(c, dst, after{strings.Repeat("x", i), bad, nil})
				assert.Equal(t, bad == nil, err == nil, "%v", err)
				overwrite()
				assert.Equal(t, "mine", string(out[:min(4, len(out))]))
				_, err = c.Marshal(failing{})
				assert.Error(t, err)

				good, err := codec.Append(c, nil, after{"a", "b", []int{1, 2}})
				assert.NoError(t, err)
				overwrite()
				assert.Equal(t, string(want), string(good))
				marshaled, err := c.Marshal(after{"a", "b", []int{1, 2}})
				assert.NoError(t, err)
				overwrite()
				assert.Equal(t, string(want), string(marshaled))
			}
		})
	}
	wg.Wait()
}

func TestDecodeErrors(t *testing.T) {
	jsonCodec, pb, str := byName(t, "json"), byName(t, "protobuf"), byName(t, "string")
	for _, tc := range []struct {
		name  string
		codec codec.Codec
		data  string
		into  interface{}
		says  string
	}{
		{"json: another type", jsonCodec, `"text"`, new(int), "codec json: decoding into *int: "},
		{"json: cut off", jsonCodec, `{"Before":"a"`, new(after),
			"codec json: decoding into *codec_test.after: "},
		{"json: nothing", jsonCodec, ``, new(after), "codec json: decoding into *codec_test.after: "},
		{"json: more behind it", jsonCodec, `1 2`, new(int), "codec json: decoding into *int: "},
		{"json: out of range", jsonCodec, `300`, new(int8), "codec json: decoding into *int8: "},
		{"json: not a pointer", jsonCodec, `1`, 7, "codec json: decoding into int: "},
		{"json: nil pointer", jsonCodec, `1`, (*int)(nil), "codec json: decoding into *int: "},
		{"json: nil", jsonCodec, `1`, nil, "codec json: decoding into <nil>: "},
		{"json: the user's error", jsonCodec, `{}`, new(failing), "the user's error"},
		{"json: the user's panic", jsonCodec, `{}`, new(panicky),
			"codec json: decoding into *codec_test.panicky panicked: user's unmarshal"},
		{"protobuf: not a message", pb, "", new(int),
			"codec protobuf: decoding into *int: not a protobuf message"},
		{"protobuf: garbage", pb, "\xff\xff", new(wrapperspb.StringValue),
			"codec protobuf: decoding into *wrapperspb.StringValue: "},
		{"protobuf: cut off", pb, "\x0a\x05ab", new(wrapperspb.StringValue),
			"codec protobuf: decoding into *wrapperspb.StringValue: "},
		{"protobuf: invalid UTF-8", pb, "\x0a\x01\xff", new(wrapperspb.StringValue), "UTF-8"},
		{"protobuf: a required field", pb, "", new(descriptorpb.UninterpretedOption_NamePart), "required"},
		{"protobuf: nil pointer", pb, "\x0a\x01a", (*wrapperspb.StringValue)(nil),
			"codec protobuf: decoding into *wrapperspb.StringValue"},
		{"protobuf: nil", pb, "", nil, "codec protobuf: decoding into <nil>: not a protobuf message"},
		{"string: a number", str, "1", new(int), "codec string: decoding into *int: not a string"},
		{"string: not a pointer", str, "1", "x", "codec string: decoding into string: not a string"},
		{"string: nil", str, "1", nil, "codec string: decoding into <nil>: not a string"},
		{"string: nil *string", str, "1", (*string)(nil),
			"codec string: decoding into *string: not a string"},
		{"string: nil *[]byte", str, "1", (*[]byte)(nil),
			"codec string: decoding into *[]uint8: not a string"},
		{"string: nil *interface{}", str, "1", (*interface{})(nil),
			"codec string: decoding into *interface {}: not a string"},
		{"string: numbers", str, "1", new([]int), "codec string: decoding into *[]int: not a string"},
		{"a codec's panic", fake{id: 1, name: "mine"}, "1", 7,
			"codec mine: decoding into int panicked: interface conversion"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := codec.Decode(tc.codec, []byte(tc.data), tc.into)
			require.ErrorContains(t, err, tc.says)
		})
	}
}

func TestAppendUsesRoomOfTheCallers(t *testing.T) {
	for _, tc := range []struct {
		codec string
		value interface{}
		want  string
	}{
		{"json", []int{1, 2}, "[1,2]"},
		{"protobuf", wrapperspb.String("ab"), "\x0a\x02ab"},
		{"string", "ab", "ab"},
	} {
		t.Run(tc.codec, func(t *testing.T) {
			dst := append(make([]byte, 0, 100), "front"...)
			out, err := codec.Append(byName(t, tc.codec), dst, tc.value)
			require.NoError(t, err)
			require.Equal(t, "front"+tc.want, string(out))
			require.Same(t, unsafe.SliceData(dst), unsafe.SliceData(out))

			tight := []byte("front")
			out, err = codec.Append(byName(t, tc.codec), tight[:5:5], tc.value)
			require.NoError(t, err)
			require.Equal(t, "front"+tc.want, string(out))
		})
	}
}

func ExampleReg() {
	regUpper() // in a program of its own: codec.Reg(upper{}), in an init function
	c, err := codec.GetByName("upper")
	if err != nil {
		fmt.Println(err)
		return
	}
	body, err := codec.Append(c, nil, "hello")
	fmt.Printf("%c %s %v\n", c.Id(), body, err)

	var text string
	err = codec.Decode(c, body, &text)
	fmt.Println(text, err)

	_, err = codec.Append(c, nil, 5)
	fmt.Println(err)
	// Output:
	// U HELLO <nil>
	// hello <nil>
	// codec upper: encoding int: not a string
}

func BenchmarkAppend(b *testing.B) {
	type order struct {
		Id    int64
		Name  string
		Lines []string
	}
	v := &order{Id: 12345, Name: "somebody", Lines: []string{"one", "two", "three"}}
	text := strings.Repeat("text ", 20)
	for _, bc := range []struct {
		codec string
		value interface{}
	}{
		{"json", v}, {"protobuf", wrapperspb.String(text)}, {"string", text},
	} {
		b.Run(bc.codec, func(b *testing.B) {
			c := byName(b, bc.codec)
			var dst []byte
			b.ReportAllocs()
			for b.Loop() {
				var err error
				if dst, err = codec.Append(c, dst[:0], bc.value); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(int64(len(dst)))
		})
	}
}
