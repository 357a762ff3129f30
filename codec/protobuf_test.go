package codec_test

import (
	"fmt"
	"testing"

	//lint:ignore SA1019 messages of the old API are what these tests are about
	oldproto "github.com/golang/protobuf/proto"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/codec/codectest"
)

// old is a message as generators of 2017 wrote it: three methods and tags.
type old struct {
	Name  string           `protobuf:"bytes,1,opt,name=name,proto3" json:"name,omitempty"`
	Count int32            `protobuf:"varint,2,opt,name=count,proto3" json:"count,omitempty"`
	Tags  []string         `protobuf:"bytes,3,rep,name=tags,proto3" json:"tags,omitempty"`
	Child *old             `protobuf:"bytes,4,opt,name=child,proto3" json:"child,omitempty"`
	Blob  []byte           `protobuf:"bytes,5,opt,name=blob,proto3" json:"blob,omitempty"`
	Map   map[string]int64 `protobuf:"bytes,6,rep,name=map,proto3" json:"map,omitempty" protobuf_key:"bytes,1,opt,name=key,proto3" protobuf_val:"varint,2,opt,name=value,proto3"`
}

func (m *old) Reset()         { *m = old{} }
func (m *old) String() string { return fmt.Sprintf("%+v", *m) }
func (*old) ProtoMessage()    {}

func sampleOld() *old {
	return &old{Name: "n", Count: -1, Tags: []string{"a", ""}, Child: &old{Name: "child"},
		Blob: []byte{0, 255}, Map: map[string]int64{"k": 1 << 40}}
}

// Messages of the old API are encoded as github.com/golang/protobuf does it.
func TestProtobufMessagesOfTheOldAPI(t *testing.T) {
	c := byName(t, "protobuf")
	ours, err := codec.Append(c, nil, sampleOld())
	require.NoError(t, err)
	theirs, err := oldproto.Marshal(sampleOld())
	require.NoError(t, err)
	require.Equal(t, theirs, ours)

	var fromOurs, fromTheirs old
	require.NoError(t, oldproto.Unmarshal(ours, &fromOurs))
	require.NoError(t, codec.Decode(c, theirs, &fromTheirs))
	require.Equal(t, sampleOld(), &fromOurs)
	require.Equal(t, sampleOld(), &fromTheirs)

	codectest.Run(t, c, codectest.Of(sampleOld()), codectest.Of(&old{}))
}

func TestProtobuf(t *testing.T) {
	c := byName(t, "protobuf")
	list, err := structpb.NewList([]interface{}{1.0, "x", nil})
	require.NoError(t, err)
	for _, tc := range []struct {
		name  string
		value proto.Message
		into  proto.Message
		hex   string // empty: only there and back
	}{
		{"string", wrapperspb.String("ab"), new(wrapperspb.StringValue), "0a026162"},
		{"negative int32", wrapperspb.Int32(-1), new(wrapperspb.Int32Value), "08ffffffffffffffffff01"},
		{"zero value", new(wrapperspb.BoolValue), new(wrapperspb.BoolValue), ""},
		{"nested", list, new(structpb.ListValue), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, err := codec.Append(c, nil, tc.value)
			require.NoError(t, err)
			if tc.hex != "" {
				require.Equal(t, tc.hex, fmt.Sprintf("%x", b))
			}
			marshaled, err := c.Marshal(tc.value)
			require.NoError(t, err)
			require.Equal(t, string(b), string(marshaled))
			require.NoError(t, codec.Decode(c, b, tc.into))
			require.True(t, proto.Equal(tc.value, tc.into), "%v came back as %v", tc.value, tc.into)
		})
	}
}

// A nil message is one without fields.
func TestProtobufNilMessage(t *testing.T) {
	b, err := codec.Append(byName(t, "protobuf"), []byte("x"), (*wrapperspb.StringValue)(nil))
	require.NoError(t, err)
	require.Equal(t, "x", string(b))
}

// Decoding replaces what the message held before.
func TestProtobufDecodeReplaces(t *testing.T) {
	m := wrapperspb.String("before")
	require.NoError(t, codec.Decode(byName(t, "protobuf"), nil, m))
	require.Empty(t, m.Value)
}

// It is no merge: lists do not become longer, nested messages and maps keep
// nothing, and fields that do not come are as if never set.
func TestProtobufDecodeDoesNotMerge(t *testing.T) {
	c := byName(t, "protobuf")
	for _, data := range []*old{{}, {Count: 7}, {Tags: []string{"b"}}, {Child: &old{Count: 1}},
		{Map: map[string]int64{"l": 2}}, sampleOld()} {
		b, err := codec.Append(c, nil, data)
		require.NoError(t, err)
		m := sampleOld()
		require.NoError(t, codec.Decode(c, b, m))
		require.Equal(t, data, m)
	}
	list, err := structpb.NewList([]interface{}{1.0, "x", nil})
	require.NoError(t, err)
	b, err := codec.Append(c, nil, list)
	require.NoError(t, err)
	m := new(structpb.ListValue)
	for range 3 {
		require.NoError(t, codec.Decode(c, b, m))
		require.True(t, proto.Equal(list, m), "%v", m)
	}
	// Unknown fields of before are gone as well.
	sample, err := codec.Append(c, nil, sampleOld())
	require.NoError(t, err)
	text := new(wrapperspb.StringValue)
	require.NoError(t, codec.Decode(c, sample, text))
	require.NoError(t, codec.Decode(c, nil, text))
	require.Empty(t, text.ProtoReflect().GetUnknown())
	require.Empty(t, text.Value)
}

// Fields that the reader's message lacks are kept for whoever sends it on.
func TestProtobufKeepsUnknownFields(t *testing.T) {
	c := byName(t, "protobuf")
	b, err := codec.Append(c, nil, sampleOld())
	require.NoError(t, err)
	m := new(wrapperspb.StringValue)
	require.NoError(t, codec.Decode(c, b, m))
	require.Equal(t, "n", m.Value)
	again, err := codec.Append(c, nil, m)
	require.NoError(t, err)
	require.Equal(t, b, again)
}
