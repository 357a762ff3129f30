package codec_test

import (
	"bytes"
	"fmt"
	"math"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/henrylee2cn/teleport/codec"
)

type large struct {
	A [32]int64
	B string
}

// Embedded can be decoded where it is embedded as a pointer.
type Embedded large

type withPointer struct {
	P *large
	Q **[4]int64
}

type linked struct{ Next *linked }

// sized is what is decoded in the tests of sizes: a piece of text again and again, between
// others, until there is enough of it.
type sized struct {
	name                string
	codec               string
	new                 func() interface{}
	before, each, after string // %d in each is a number of its own
}

func jsonSized(new func() interface{}, before, each, after string) sized {
	return sized{fmt.Sprintf("json %T %s", new(), before+each), "json", new, before, each, after}
}

func protoSized(name string, new func() interface{}, each ...byte) sized {
	return sized{"protobuf " + name, "protobuf", new, "", string(each), ""}
}

func newOf[T any]() interface{} { return new(T) }

func sizedCases() []sized {
	return []sized{
		jsonSized(newOf[[]large], `[{}`, `,{}`, `]`),
		jsonSized(newOf[[]large], `[0`, `,0`, `]`),
		jsonSized(newOf[[]*large], `[{}`, `,{}`, `]`),
		jsonSized(newOf[[]withPointer], `[{}`, `,{"P":{},"q":[]}`, `]`),
		jsonSized(newOf[[]withPointer], `[{}`, `,{"\u0050":{},"q":[]}`, `]`),
		jsonSized(newOf[[]struct{ large }], `[{}`, `,{}`, `]`),
		jsonSized(newOf[[]struct{ *Embedded }], `[{}`, `,{"B":""}`, `]`),
		jsonSized(newOf[[]int64], `[1`, `,1`, `]`),
		jsonSized(newOf[[]int8], `[1`, `,1`, `]`),
		jsonSized(newOf[[]*int8], `[1`, `,1`, `]`),
		jsonSized(newOf[[][]large], `[[]`, `,[1]`, `]`),
		jsonSized(newOf[[][]int8], `[[]`, `,[1]`, `]`),
		jsonSized(newOf[[][2]int64], `[[]`, `,[]`, `]`),
		jsonSized(newOf[[]string], `[""`, `,"a"`, `]`),
		jsonSized(newOf[[]string], `[""`, `,""`, `]`),
		jsonSized(newOf[[]string], `[""`, `,"a text of some more bytes than that"`, `]`),
		jsonSized(newOf[[][]byte], `[""`, `,"AQ=="`, `]`),
		jsonSized(newOf[[]map[string]int], `[{}`, `,{}`, `]`),
		jsonSized(newOf[[]map[string]int], `[{}`, `,{"":1}`, `]`),
		jsonSized(newOf[map[string]int], `{"x":1`, `,"%d":1`, `}`),
		jsonSized(newOf[map[string]large], `{"x":{}`, `,"%d":{}`, `}`),
		jsonSized(newOf[map[string]*large], `{"x":{}`, `,"%d":{}`, `}`),
		jsonSized(newOf[map[int]int], `{"1":1`, `,"%d":1`, `}`),
		jsonSized(newOf[map[string]map[string]int], `{"x":{}`, `,"%d":{"":1}`, `}`),
		jsonSized(newOf[interface{}], `[1`, `,1`, `]`),
		jsonSized(newOf[interface{}], `[1`, `,1.5e7`, `]`),
		jsonSized(newOf[interface{}], `[1`, `,""`, `]`),
		jsonSized(newOf[interface{}], `[1`, `,"a"`, `]`),
		jsonSized(newOf[interface{}], `[1`, `,[]`, `]`),
		jsonSized(newOf[interface{}], `[1`, `,[1]`, `]`),
		jsonSized(newOf[interface{}], `[1`, `,{}`, `]`),
		jsonSized(newOf[interface{}], `[1`, `,{"":0}`, `]`),
		jsonSized(newOf[interface{}], `[1`, `,{"":{"":{"":{}}}}`, `]`),
		jsonSized(newOf[map[string]interface{}], `{"x":1`, `,"%d":null`, `}`),
		jsonSized(newOf[map[string]interface{}], `{"x":1`, `,"%d":[[[]]]`, `}`),
		jsonSized(newOf[[]linked], `[{}`, `,{"Next":{"next":{"NEXT":{}}}}`, `]`),
		jsonSized(newOf[[]tree], `[{}`, `,{"kids":[{},{}],"left":{}}`, `]`),
		jsonSized(newOf[[]flat], `[{}`,
			`,{"id":1,"name":"a name","tags":["a","b"],"when":"2017-08-29T03:14:28Z"}`, `]`),
		jsonSized(newOf[raws], `{"list":[1`, `,{"a":1}`, `]}`),
		jsonSized(newOf[various], `{"Times":[null`, `,"2017-08-29T03:14:28Z"`, `]}`),
		jsonSized(newOf[various], `{"Values":["x"`, `,"abc"`, `]}`),
		jsonSized(newOf[string], `"`, `x`, `"`),
		jsonSized(newOf[[]byte], `"`, `AQID`, `"`),
		protoSized("messages", newOf[structpb.ListValue], 0x0a, 0),
		protoSized("messages with a map", newOf[structpb.ListValue], 0x0a, 4, 0x2a, 2, 0x0a, 0),
		protoSized("oneof strings", newOf[structpb.ListValue], 0x0a, 2, 0x1a, 0),
		protoSized("oneof numbers", newOf[structpb.ListValue], 0x0a, 2, 0x20, 1),
		protoSized("lists in lists", newOf[structpb.ListValue], 0x0a, 4, 0x32, 2, 0x0a, 0),
		protoSized("strings", newOf[fieldmaskpb.FieldMask], 0x0a, 0),
		protoSized("longer strings", newOf[fieldmaskpb.FieldMask], append([]byte{0x0a, 20},
			strings.Repeat("x", 20)...)...),
		protoSized("large messages", newOf[descriptorpb.FileDescriptorProto], 0x22, 0),
		protoSized("optional scalars", newOf[descriptorpb.DescriptorProto], 0x12, 2, 0x18, 1),
		protoSized("packed", newOf[descriptorpb.FileDescriptorProto], append([]byte{0x52, 0x80, 0x80, 0x10},
			make([]byte, 1<<18)...)...),
		protoSized("unpacked", newOf[descriptorpb.FileDescriptorProto], 0x50, 1),
		protoSized("unknown", newOf[wrapperspb.StringValue], 0x38, 1),
		protoSized("unknown groups", newOf[wrapperspb.StringValue], 0x3b, 0x3c),
		protoSized("extensions", newOf[descriptorpb.FieldOptions], 0xaa, 0xf4, 0x03, 0),
		protoSized("dynamic", func() interface{} {
			file := protodesc.ToFileDescriptorProto(structpb.File_google_protobuf_struct_proto)
			return dynamicpb.NewMessage(file.ProtoReflect().Descriptor())
		}, 0x22, 2, 0x0a, 0),
		protoSized("any", newOf[anypb.Any], append([]byte{0x12, 0x80, 0x80, 0x10},
			make([]byte, 1<<18)...)...),
	}
}

// data returns about n bytes of it.
func (s sized) data(n int) []byte {
	b := []byte(s.before)
	for i := 0; len(b) < n; i++ {
		if strings.Contains(s.each, "%d") {
			b = fmt.Appendf(b, s.each, i)
		} else {
			b = append(b, s.each...)
		}
	}
	return append(b, s.after...)
}

// What a value takes in memory is counted: never much less than it is, and not many times
// more.
func TestDecodedSizeIsThatOfTheHeap(t *testing.T) {
	for _, tc := range sizedCases() {
		t.Run(tc.name, func(t *testing.T) {
			c, data := byName(t, tc.codec), tc.data(1<<18)
			size := codec.DecodedSize(c, data, tc.new(), math.MaxInt64)
			bound := codec.DecodedBound(c, data, tc.new())
			v := tc.new()
			before := heap()
			err := codec.Decode(c, data, v)
			live := heap() - before
			runtime.KeepAlive(v)
			runtime.KeepAlive(data)
			t.Logf("%d bytes: live %d, counted %.2f times, bound %.2f times, %v", len(data), live,
				float64(size)/float64(live), float64(bound)/float64(live), err)
			require.GreaterOrEqual(t, float64(size), 0.95*float64(live))
			require.LessOrEqual(t, size, bound)
			require.LessOrEqual(t, size, 5*live*64/strconv.IntSize+1000) // counted are words of 64 bits

			few := codec.DecodedSize(c, data, tc.new(), size/2)
			require.Greater(t, few, size/2)
			require.LessOrEqual(t, codec.DecodedSize(c, data, tc.new(), size), size)
		})
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Numbers that come together are copied whenever more of them come: a megabyte of single
// ones takes a minute to decode. That is counted as well.
func TestDecodedSizeOfManyPackedPieces(t *testing.T) {
	c, of := byName(t, "protobuf"), new(descriptorpb.FileDescriptorProto)
	data := bytes.Repeat([]byte{0x52, 1, 1}, 350_000)
	require.Greater(t, codec.DecodedSize(c, data, of, 64<<20), int64(64<<20))
	require.Greater(t, codec.DecodedBound(c, data, of), int64(64<<20))
	few := bytes.Repeat([]byte{0x52, 1, 1}, 100)
	require.Less(t, codec.DecodedBound(c, few, of), int64(256<<10))
}

// FuzzDecodedSize counts any data, for many types.
func FuzzDecodedSize(f *testing.F) {
	cases := sizedCases()
	for i, tc := range cases {
		f.Add(uint8(i), tc.data(50))
	}
	f.Fuzz(func(t *testing.T, n uint8, data []byte) {
		tc := cases[int(n)%len(cases)]
		c := byName(t, tc.codec)
		bound := codec.DecodedBound(c, data, tc.new())
		size := codec.DecodedSize(c, data, tc.new(), math.MaxInt64)
		require.GreaterOrEqual(t, size, int64(0))
		require.LessOrEqual(t, codec.DecodedSize(c, data, tc.new(), size), size)
		if codec.Decode(c, data, tc.new()) == nil {
			require.LessOrEqual(t, size, bound)
		}
	})
}

// A message without an end, or that is nested too deep, is an error and not the end of the
// process.
func TestProtobufMessagesWithoutAnEnd(t *testing.T) {
	c := byName(t, "protobuf")
	self := &structpb.ListValue{Values: []*structpb.Value{nil}}
	self.Values[0] = structpb.NewListValue(self)
	inMap := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	inMap.Fields["a"] = structpb.NewStructValue(inMap)
	long := structpb.NewNumberValue(1)
	for range 3_000_000 {
		long = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{long}})
	}
	nested := &descriptorpb.DescriptorProto{}
	nested.NestedType = []*descriptorpb.DescriptorProto{{}, nested}
	for _, v := range []proto.Message{self, inMap, long, nested} {
		_, err := codec.Append(c, nil, v)
		require.ErrorContains(t, err, "nested deeper than")
	}
	deep := structpb.NewNumberValue(1)
	for range 1000 {
		deep = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{deep}})
	}
	b, err := codec.Append(c, nil, deep)
	require.NoError(t, err)
	want, err := proto.Marshal(deep)
	require.NoError(t, err)
	require.Equal(t, want, b)
}

// Sizes are the tags and lengths of the wire, also of groups that do not end.
func TestDecodedSizeOfBrokenProtobuf(t *testing.T) {
	c := byName(t, "protobuf")
	for _, data := range [][]byte{
		{0x0a}, {0x0a, 5}, {0xff}, {0x0b}, {0x0c}, {0x0b, 0x0b, 0x0c}, protowire.AppendTag(nil, 1, 7), {0x00},
		[]byte(strings.Repeat("\x0b", 20_000)), []byte(strings.Repeat("\x0a\x7f", 20_000)),
	} {
		size := codec.DecodedSize(c, data, new(structpb.ListValue), math.MaxInt64)
		require.GreaterOrEqual(t, size, int64(0))
		require.LessOrEqual(t, size, codec.DecodedBound(c, data, new(structpb.ListValue)))
	}
	require.EqualValues(t, 5, codec.DecodedBound(c, make([]byte, 5), 7), "no message")
	require.EqualValues(t, 5, codec.DecodedSize(c, make([]byte, 5), 7, 100))
	require.EqualValues(t, 0, codec.DecodedBound(byName(t, "json"), make([]byte, 5), nil))
}
