package codec_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/codec"
)

type base struct {
	Id int64 `json:"id"`
}

type everything struct {
	base
	Name    string            `json:"name"`
	Omitted string            `json:"omitted,omitempty"`
	Hidden  string            `json:"-"`
	private string            //nolint:unused // must not be encoded
	Quoted  int               `json:"quoted,string"`
	Blob    []byte            `json:"blob"`
	List    []float64         `json:"list"`
	Map     map[string]int    `json:"map"`
	Ints    map[int]string    `json:"ints"`
	Raw     json.RawMessage   `json:"raw"`
	Number  json.Number       `json:"number"`
	Pointer *int              `json:"pointer"`
	Any     interface{}       `json:"any"`
	When    time.Time         `json:"when"`
	Nested  map[string]*inner `json:"nested"`
	NoTag   bool
}

type inner struct{ Text string }

func sampleEverything() everything {
	seven := 7
	return everything{
		base: base{Id: 1 << 53}, Name: "Zoë \"quoted\" \n\t \u2028", Hidden: "no", private: "no",
		Quoted: -5, Blob: []byte{0, 1, 254, 255}, List: []float64{0, -1.5, 1e21, 1e-7},
		Map: map[string]int{"a": 1}, Ints: map[int]string{-3: "x"}, Raw: json.RawMessage(`{"k":[1,null]}`),
		Number: "12.50", Pointer: &seven, Any: []interface{}{"x", 1.5, true, nil,
			map[string]interface{}{"y": "z"}},
		When:   time.Date(2017, 8, 29, 3, 14, 28, 5, time.UTC),
		Nested: map[string]*inner{"n": {Text: "deep"}}, NoTag: true,
	}
}

// The json codec and encoding/json understand each other.
func TestJSONAgreesWithTheStandardLibrary(t *testing.T) {
	c := byName(t, "json")
	v := sampleEverything()
	ours, err := codec.Append(c, nil, &v)
	require.NoError(t, err)
	std, err := json.Marshal(&v)
	require.NoError(t, err)
	require.JSONEq(t, string(std), string(ours))

	var fromStd, fromOurs everything
	require.NoError(t, codec.Decode(c, std, &fromStd))
	require.NoError(t, json.Unmarshal(ours, &fromOurs))
	v.Hidden, v.private = "", ""
	require.Equal(t, v, fromStd)
	require.Equal(t, v, fromOurs)
}

func TestJSON(t *testing.T) {
	c := byName(t, "json")
	for _, tc := range []struct {
		name  string
		value interface{}
		want  string
	}{
		{"nil", nil, `null`},
		{"nil pointer", (*inner)(nil), `null`},
		{"nil slice", []int(nil), `null`},
		{"empty slice", []int{}, `[]`},
		{"array", [2]int{1, 2}, `[1,2]`},
		{"bool", true, `true`},
		{"int", -12, `-12`},
		{"large int", int64(1<<62 + 1), `4611686018427387905`},
		{"float", 0.1, `0.1`},
		{"string", "text", `"text"`},
		{"HTML is left alone", "<a&b>", `"<a&b>"`},
		{"bytes", []byte("abc"), `"YWJj"`},
		{"struct", inner{"x"}, `{"Text":"x"}`},
		{"pointer", &inner{"x"}, `{"Text":"x"}`},
		{"raw", json.RawMessage(`{"a":1}`), `{"a":1}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := codec.Append(c, nil, tc.value)
			require.NoError(t, err)
			require.Equal(t, tc.want, string(got))
			got, err = c.Marshal(tc.value)
			require.NoError(t, err)
			require.Equal(t, tc.want, string(got))
		})
	}
}

func TestJSONIgnoresUnknownFieldsAndCase(t *testing.T) {
	var v inner
	require.NoError(t, codec.Decode(byName(t, "json"), []byte(`{"more":[{}],"TEXT":"x"}`), &v))
	require.Equal(t, inner{"x"}, v)
}

// What is decoded must not be a part of the input, for that is used again.
func TestJSONKeepsNoData(t *testing.T) {
	c := byName(t, "json")
	const data = `{"raw":{"k":"v"},"name":"n","blob":"AQID","map":{"key":1},"number":"12.5","any":{"x":["y"]}}`
	decode := func(b []byte) (v everything) {
		require.NoError(t, codec.Decode(c, b, &v))
		return v
	}
	b := []byte(data)
	v, want := decode(b), decode([]byte(data))
	for i := range b {
		b[i] = 'X'
	}
	require.Equal(t, want, v)
	require.Equal(t, `{"k":"v"}`, string(v.Raw))

	var raw json.RawMessage
	b = []byte(data)
	require.NoError(t, codec.Decode(c, b, &raw))
	clear(b)
	require.Equal(t, data, string(raw))
}

// A nest as deep as it is long must not end the process.
func TestJSONRefusesABottomlessNest(t *testing.T) {
	c := byName(t, "json")
	deep := make([]byte, 1<<20)
	for i := range deep {
		deep[i] = '['
	}
	var v interface{}
	require.Error(t, codec.Decode(c, deep, &v))
	var raw json.RawMessage
	require.Error(t, codec.Decode(c, deep, &raw))
}
