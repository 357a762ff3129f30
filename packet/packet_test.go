package packet_test

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/packet"
)

type field struct{ name, typ, tag string }

func fieldsOf(v interface{}) (fields []field) {
	t := reflect.TypeOf(v)
	for i := range t.NumField() {
		f := t.Field(i)
		fields = append(fields, field{f.Name, f.Type.String(), string(f.Tag)})
	}
	return fields
}

// The fields are an interface that others have been written against.
func TestFieldsOfPacketAndHeader(t *testing.T) {
	require.Equal(t, []field{
		{"HeaderCodec", "string", `json:"header_codec"`},
		{"BodyCodec", "string", `json:"body_codec"`},
		{"Header", "*packet.Header", `json:"header"`},
		{"Body", "interface {}", `json:"body"`},
		{"HeaderLength", "int64", `json:"header_length"`},
		{"BodyLength", "int64", `json:"body_length"`},
		{"Length", "int64", `json:"length"`},
	}, fieldsOf(packet.Packet{}))
	require.Equal(t, []field{
		{"Id", "string", ""},
		{"Type", "int32", ""},
		{"Uri", "string", ""},
		{"Gzip", "int32", ""},
		{"StatusCode", "int32", ""},
		{"Status", "string", ""},
		{"Timeout", "int64", `json:",omitempty"`},
		{"Meta", "map[string]string", `json:",omitempty"`},
		{"NotRun", "bool", `json:",omitempty"`},
		{"Load", "int32", `json:",omitempty"`},
		{"QueueDelay", "int32", `json:",omitempty"`},
	}, fieldsOf(packet.Header{}))
	require.Equal(t, []int32{1, 2, 3, 4, 5}, []int32{packet.TypePull, packet.TypeReply, packet.TypePush,
		packet.TypeCancel, packet.TypeGoAway})
}

func TestPacketAsJSON(t *testing.T) {
	b, err := json.Marshal(packet.Packet{
		HeaderCodec: "protobuf", BodyCodec: "json", Body: []int{1}, HeaderLength: 2, BodyLength: 3, Length: 5,
		Header: &packet.Header{Id: "1", Type: packet.TypePull, Uri: "/a", Gzip: 5, StatusCode: 200,
			Status: "OK"},
	})
	require.NoError(t, err)
	require.Equal(t, `{"header_codec":"protobuf","body_codec":"json",`+
		`"header":{"Id":"1","Type":1,"Uri":"/a","Gzip":5,"StatusCode":200,"Status":"OK"},`+
		`"body":[1],"header_length":2,"body_length":3,"length":5}`, string(b))
}

func TestRawBodyCodec(t *testing.T) {
	for _, tc := range []struct {
		raw  packet.RawBody
		want string
	}{
		{nil, ""}, {packet.RawBody{}, ""}, {packet.RawBody("j1"), "json"}, {packet.RawBody("p"), "protobuf"},
		{packet.RawBody("sx"), "string"},
	} {
		name, err := tc.raw.Codec()
		require.NoError(t, err)
		require.Equal(t, tc.want, name)
	}
	_, err := packet.RawBody("\x01x").Codec()
	require.ErrorIs(t, err, codec.ErrUnknown)
}
