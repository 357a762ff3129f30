package codec_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/henrylee2cn/teleport/codec"
)

type flat struct {
	Id      int64     `json:"id"`
	Name    string    `json:"name"`
	Balance float64   `json:"balance"`
	Active  bool      `json:"active"`
	Tags    []string  `json:"tags"`
	When    time.Time `json:"when"`
}

// benchValues are what is encoded and decoded: what is plain and what is not.
var benchValues = []struct {
	name string
	v    interface{}
	to   func() interface{}
}{
	{"flat", flat{1 << 40, "a name of some length", 12.5, true, []string{"a", "b"}, time.Unix(1e9, 5).UTC()},
		func() interface{} { return new(flat) }},
	{"chinese", flat{1, strings.Repeat("中文文本", 25), 0, false, nil, time.Unix(1e9, 0).UTC()},
		func() interface{} { return new(flat) }},
	{"list", make([]flat, 100), func() interface{} { return new([]flat) }},
	{"map", map[string]interface{}{"id": 1.0, "name": "a name", "tags": []interface{}{"a", "b"},
		"nested": map[string]interface{}{"x": true}},
		func() interface{} { return new(map[string]interface{}) }},
	{"raw", struct{ Raw json.RawMessage }{json.RawMessage(`{"a":[1,2,3]}`)},
		func() interface{} { return new(struct{ Raw json.RawMessage }) }},
}

func BenchmarkJSON(b *testing.B) {
	c := byName(b, "json")
	for _, tc := range benchValues {
		text, err := codec.Append(c, nil, tc.v)
		if err != nil {
			b.Fatal(err)
		}
		b.Run("encode/"+tc.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(text)))
			var buf []byte
			for b.Loop() {
				if buf, err = codec.Append(c, buf[:0], tc.v); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("decode/"+tc.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				if err := codec.Decode(c, text, tc.to()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkDecodedBound is what every body that is received costs.
func BenchmarkDecodedBound(b *testing.B) {
	for _, tc := range []struct {
		codec string
		v     interface{}
	}{{"json", new(flat)}, {"protobuf", new(wrapperspb.StringValue)}, {"string", new(string)}} {
		c := byName(b, tc.codec)
		data := make([]byte, 60)
		b.Run(tc.codec, func(b *testing.B) {
			for b.Loop() {
				codec.DecodedBound(c, data, tc.v)
			}
		})
	}
}
