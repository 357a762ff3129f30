//lint:file-ignore SA5008 The tags are what is tested.

package codec_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/codec"
)

type (
	one    struct{ A int }
	two    struct{ A, B string }
	three  struct{ A, B, C float64 }
	four   struct{ A, B, C, D []string }
	five   struct{ A, B, C, D, E *one }
	six    struct{ A, B, C, D, E, F map[string]int }
	ten    struct{ A, B, C, D, E, F, G, H, I, K bool }
	twelve struct {
		A, B, C, D, E, F, G, H, I, K int
		Long, List                   []one
	}
	numbers struct {
		I8  int8    `json:"i8"`
		I16 int16   `json:"i16"`
		I32 int32   `json:"i32"`
		I64 int64   `json:"i64"`
		U8  uint8   `json:"u8"`
		U16 uint16  `json:"u16"`
		U32 uint32  `json:"u32"`
		U64 uint64  `json:"u64"`
		F32 float32 `json:"f32"`
		F64 float64 `json:"f64"`
	}
	empties struct {
		B bool           `json:"b,omitempty"`
		I int            `json:"i,omitempty"`
		F float64        `json:"f,omitempty"`
		S string         `json:"s,omitempty"`
		L []int          `json:"l,omitempty"`
		M map[string]int `json:"m,omitempty"`
		P *string        `json:"p,omitempty"`
	}
	emptyKinds struct {
		St one         `json:"st,omitempty"`
		Ar [2]int      `json:"ar,omitempty"`
		No [0]int      `json:"no,omitempty"`
		An interface{} `json:"an,omitempty"`
		Ti time.Time   `json:"ti,omitempty"`
	}
	zeros struct {
		When  time.Time         `json:"when,omitzero"`
		Addr  netip.Addr        `json:"addr,omitzero"`
		N     int               `json:"n,omitzero"`
		S     one               `json:"s,omitzero"`
		P     *int              `json:"p,omitzero"`
		Own   ownZero           `json:"own,omitzero"`
		Both  map[string]string `json:"both,omitempty,omitzero"`
		Plain int               `json:"plain"`
	}
	ownZero int
	quoted  struct {
		I  int      `json:"i,string"`
		F  float64  `json:"f,string"`
		B  bool     `json:"b,string"`
		S  string   `json:"s,string"`
		P  *int     `json:"p,string"`
		Ps *string  `json:"ps,string"`
		L  []int    `json:"l,string"`
		O  *float64 `json:"o,string,omitempty"`
	}
	raws struct {
		Raw    json.RawMessage            `json:"raw"`
		Ptr    *json.RawMessage           `json:"ptr"`
		List   []json.RawMessage          `json:"list"`
		Map    map[string]json.RawMessage `json:"map"`
		Number json.Number                `json:"number"`
		Nums   []json.Number              `json:"nums"`
		Any    interface{}                `json:"any"`
		Behind bool                       `json:"behind"`
	}
	shadow struct {
		one
		*two
		Named three
		A     string // hides one's
	}
	folded struct {
		Name string `json:"name"`
		NAME string
		Kind string `json:"kind"`
		S    string `json:"ſ"`
	}
	oddNames struct {
		Dash  int `json:"-,"`
		Dot   int `json:"a.b"`
		Quote int `json:"a\"b"`
		HTML  int `json:"<a>"`
		Space int `json:" "`
		Skip  int `json:"-"`
		Typo  int `json:"typo,omitempt"`
		hid   int //nolint:unused // must be left alone
	}
	arrays struct {
		Two   [2]int
		Bytes [3]byte
		Empty [0]string
		Deep  [2][]one
	}
	tree struct {
		Kids  []tree           `json:"kids,omitempty"`
		Left  *tree            `json:"left"`
		Named map[string]*tree `json:"named,omitempty"`
		Text  string           `json:"text"`
	}
	named      string
	namedBytes []byte
	byteKind   uint8
	various    struct {
		Named   named
		Bytes   namedBytes
		Kinds   []byteKind
		Lists   [][]byte
		Keys    map[named]int
		IntKeys map[int8]string
		Texts   map[textKey]int
		Times   []time.Time
		Big     *big.Int
		Addr    netip.Addr
		Ptrs    **one
		Values  []valueMarshaler
		Pointer []pointerMarshaler
		Of      map[string]pointerMarshaler
		Nil     nilMap
		Broken  broken
		Float   []float32
	}
	// wide has integers of 64 bits and of less.
	wide struct {
		Id    uint64 `json:"id"`
		Count int32  `json:"count"`
		Data  []byte `json:"data,omitempty"`
		Far   *int64
		Few   []int16
	}
	// wider has fields whose names differ in their letters' case alone, and a map.
	wider struct {
		Id  uint64 `json:"id"`
		Sub struct {
			ID int8 `json:"ID"`
			K  uint64
		}
	}
	widest struct {
		K uint64
		M map[string]int32
	}
	textKey          struct{ n int }
	valueMarshaler   struct{ S string }
	pointerMarshaler struct{ S string }
	nilMap           map[string]int
	broken           string // what MarshalJSON returns
)

func (z ownZero) IsZero() bool { return z == 7 }

func (k textKey) MarshalText() ([]byte, error) { return []byte(fmt.Sprint("key", k.n)), nil }
func (k *textKey) UnmarshalText(b []byte) error {
	_, err := fmt.Sscanf(string(b), "key%d", &k.n)
	return err
}
func (m valueMarshaler) MarshalJSON() ([]byte, error) { return json.Marshal("v" + m.S) }
func (m *valueMarshaler) UnmarshalJSON(b []byte) error {
	return json.Unmarshal(b, &m.S)
}
func (m *pointerMarshaler) MarshalJSON() ([]byte, error) { return json.Marshal("p" + m.S) }
func (m nilMap) MarshalJSON() ([]byte, error) {
	return []byte(fmt.Sprintf(`{"n":%d}`, len(m))), nil
}
func (b broken) MarshalJSON() ([]byte, error) { return []byte(b), nil }

// jsonTypes are what the json codec is compared with encoding/json for.
var jsonTypes = []interface{}{
	one{}, two{}, three{}, four{}, five{}, six{}, ten{}, twelve{}, numbers{}, empties{}, emptyKinds{},
	zeros{}, quoted{}, raws{},
	shadow{}, folded{}, oddNames{}, arrays{}, tree{}, various{}, "", 1.5, int64(0), uint8(0), []byte(nil),
	[]one(nil), []tree(nil),
	map[string]interface{}(nil), map[string][]two(nil), map[string]map[string]one(nil), json.Number(""),
	json.RawMessage(nil), time.Time{},
	struct{ V interface{} }{}, struct{ V []interface{} }{}, []*int(nil), [][][]int(nil),
	struct{ P ***string }{},
	map[string]*one(nil), []map[string]string(nil), struct{}{}, []bool(nil), [2]string{}, everything{},
	wide{}, wider{}, widest{}, []wide(nil),
}

func newJSONType(n int) interface{} {
	return reflect.New(reflect.TypeOf(jsonTypes[n%len(jsonTypes)])).Interface()
}

// requireSameDecoding decodes the texts one after the other into one value.
func requireSameDecoding(t require.TestingT, of int, texts ...string) {
	c, err := codec.GetByName("json")
	require.NoError(t, err)
	ours, std := newJSONType(of), newJSONType(of)
	for _, text := range texts {
		wantErr := json.Unmarshal([]byte(text), std)
		err := codec.Decode(c, []byte(text), ours)
		require.Equal(t, wantErr == nil, err == nil, "%T: %q: encoding/json says %v, the codec %v", std, text,
			wantErr, err)
		if err != nil {
			return
		}
		require.Equal(t, std, ours, "%q", texts)
	}
	requireSameEncoding(t, ours)
}

// requireSameEncoding encodes v, which may be anything.
func requireSameEncoding(t require.TestingT, v interface{}) {
	c, err := codec.GetByName("json")
	require.NoError(t, err)
	var std bytes.Buffer
	e := json.NewEncoder(&std)
	e.SetEscapeHTML(false)
	wantErr := e.Encode(v)
	got, err := codec.Append(c, []byte("before"), v)
	require.Equal(t, wantErr == nil, err == nil, "%T: encoding/json says %v, the codec %v", v, wantErr, err)
	require.Equal(t, "before", string(got[:6]))
	if err != nil {
		return
	}
	got = got[6:]
	require.True(t, json.Valid(got), "%T: %s", v, got)
	require.Equal(t, anyOf(t, std.Bytes()), anyOf(t, got), "%s, %s", std.Bytes(), got)
}

func anyOf(t require.TestingT, text []byte) (v interface{}) {
	text = bytes.ReplaceAll(text, []byte("e-0"), []byte("e-")) // one number, written in two ways
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	require.NoError(t, d.Decode(&v))
	return v
}

// Every text means to the json codec what it means to encoding/json, for every type.
func TestJSONDecodesAsTheStandardLibrary(t *testing.T) {
	values := []string{
		`0`, `1`, `-1`, `-0`, `127`, `128`, `255`, `256`, `65536`, `1.0`, `1.5`, `1e2`, `1E+2`, `1e-400`,
		`1e999`, `9223372036854775808`, `23341021993282364776`, `-23341021993282364776`, `5000000000`,
		`12884901890`, `18446744073709551616`, `99999999999999999999`,
		`01`, `1.`, `.5`, `-.5`, `+1`, `-`, `--1`, `1e`, `1e+`, `1_0`, `0x1`, `NaN`, `Infinity`, `- 1`, `1-1`,
		`"text"`, `""`, `"1"`, `" 1"`, `"abc"`, `"null"`, `"true"`, `"\"q\""`, `"a\tb"`, "\"a\tb\"",
		"\"a\x00b\"", `"\x"`, `"\u12"`, `"\ud800"`, `"\ud83d\ude00"`, `"\udc00\ud800"`,
		"\"\xff\"", "\"\xed\xa0\x80\"", "\"\u2028\ufeff\"", `"AQID"`, `"AQI"`, `"AQ+/"`, `" +5"`,
		`"1234567890123"`, `{"id":5000000000}`, `{"ID":5000000000,"K":1}`, `{"count":1,"id":12884901890,"data":"++++"}`, `{"K":12884901890}`, `1+1`, `"2017-08-29T03:14:28Z"`,
		`"2017-08-29"`, `"127.0.0.1"`, `"key5"`,
		`"1,\"admin\":true"`, `'a'`, `"unended`, `true`, `false`, `tru`, `True`, `null`, `nul`, `nullx`,
		`{}`, `[]`, `{"A":1}`, `{"a":1}`, `{"a":null}`, `[1,2]`, `[1,2,3]`, `[null]`, `[1,]`, `[,1]`,
		`{"a":1,}`, `{,}`, `{"a"}`, `{"a":}`, `{1:2}`, `{"a":1 "b":2}`,
		`[{"A":1},{"B":2}]`, `{"x":{"A":1},"y":{}}`, `[[1],[2]]`, `[[[1]]]`, `{"key1":2}`, `{"1":"x"}`,
		`{"\u0041":7}`, `{"\u017fa":7}`, "{\"\u212aind\":\"x\"}", "{\"\u017f\":\"x\"}",
	}
	var all []string
	for _, v := range values {
		all = append(all, v, " "+v+"\n", v+"x", v+"\x00", "\ufeff"+v, `{"unknown":`+v+`}`, "{\"A\x01\":"+v+
			"}", "{\"A\n\":"+v+"}", "{\n\t\"A\":\r\n "+v+"}", `{"a":`+v+`}`, `{"A":`+v+`,"b":`+v+`}`, `[`+v+
			`]`, `[`+v+`,`+v+`]`, `{"k":{"k":`+v+`}}`)
	}
	for i := range jsonTypes {
		fields := []string{"V", "P"}
		if typ := reflect.TypeOf(jsonTypes[i]); typ.Kind() == reflect.Struct {
			for n := range typ.NumField() {
				name, _, _ := strings.Cut(typ.Field(n).Tag.Get("json"), ",")
				if name == "" {
					name = typ.Field(n).Name
				}
				fields = append(fields, name)
			}
		}
		for _, text := range all {
			requireSameDecoding(t, i, text)
		}
		for _, field := range fields {
			for _, v := range values {
				text := fmt.Sprintf(`{%q:%s}`, field, v)
				requireSameDecoding(t, i, text)
				requireSameDecoding(t, i, fmt.Sprintf(`{%q : [%s, %s] }`, strings.ToUpper(field), v, v))
				requireSameDecoding(t, i, fmt.Sprintf(`{%q:{"k":%s,"K":%s}}`, field, v, v))
				requireSameDecoding(t, i, text, `{"other":[{"deep":`+v+`}]}`)
				requireSameDecoding(t, i, fmt.Sprintf(`{%q:%s,%q:1,%q:"x",%q:[],%q:%s}`, field, v, field,
					field, field, field, v))
			}
		}
	}
}

// Every value is encoded as encoding/json does it, or not at all.
func TestJSONEncodesAsTheStandardLibrary(t *testing.T) {
	text, seven := "x", 7
	for _, v := range []interface{}{
		nil, zeros{}, zeros{Own: 7}, zeros{When: time.Unix(1, 0), Own: 1, S: one{1}, P: &seven}, quoted{},
		quoted{P: &seven, Ps: &text, S: `"`},
		raws{Raw: json.RawMessage(`1`), Number: "1"}, nilMap(nil), &nilMap{}, map[string]nilMap{"a": nil},
		[]nilMap{nil},
		time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), []time.Time{{}}, "\xff", "a\x00\u2028<&>",
		map[string]string{"\xff": "\xff", "\"\n": "<"},
		math.NaN(), []float32{float32(math.Inf(1))}, []float64{math.Copysign(0, -1), 1e21, 1e-7,
			math.MaxFloat64, math.SmallestNonzeroFloat64}, float32(3.4e38), float32(1e-7),
		[]valueMarshaler{{"a"}}, []pointerMarshaler{{"a"}}, pointerMarshaler{"a"}, &pointerMarshaler{"a"},
		map[string]pointerMarshaler{"a": {"b"}},
		map[textKey]int{{1}: 2}, map[int8]string{-1: "x"}, map[bool]int{true: 1}, make(chan int), func() {},
		complex(1, 2), []interface{}{make(chan int)},
		errors.New("x"), &one{}, (*one)(nil), [2]*one{}, struct{ error }{}, struct{ E error }{},
		big.NewInt(5), netip.Addr{},
		folded{"a", "b", "c", "d"}, oddNames{1, 2, 3, 4, 5, 6, 7, 8}, shadow{}, shadow{two: &two{"x", "y"}},
		emptyKinds{}, empties{},
		json.Number(""), json.Number("1e5"), struct{ N *json.Number }{}, [][]byte{nil, {}, {1}},
		[]byteKind{1, 2}, [3]byte{1, 2, 3}, uintptr(5), []uintptr{1},
	} {
		requireSameEncoding(t, v)
		requireSameEncoding(t, &v)
		requireSameEncoding(t, []interface{}{v, v})
		requireSameEncoding(t, map[string]interface{}{"a": v})
	}
	for _, bad := range []string{``, ` `, `1 2`, `{"a":1}x`, `1,"admin":true`, `nul`, `"a`, "\"\xff\"", `[1}`,
		`01`, `1.`, `-`, "\"\t\"", `{"a":1}`, ` {"a" : 1 } `} {
		for _, v := range []interface{}{
			json.RawMessage(bad), json.Number(bad), broken(bad), &raws{Raw: json.RawMessage(bad)},
			raws{Number: json.Number(bad)}, raws{Nums: []json.Number{json.Number(bad)}},
			map[string]json.RawMessage{"a": json.RawMessage(bad)}, []broken{broken(bad)},
			struct{ A interface{} }{broken(bad)}, map[string]interface{}{"a": json.Number(bad)},
		} {
			requireSameEncoding(t, v)
		}
	}
}

// FuzzJSON compares the json codec with encoding/json: texts that are decoded one after the
// other into a value of one of many types, and values of these that are made of the same
// bytes.
func FuzzJSON(f *testing.F) {
	for i := range jsonTypes {
		v := newJSONType(i)
		fillValue(&source{[]byte(strings.Repeat("the seed of a value\xff\x00\x01", 20))},
			reflect.ValueOf(v).Elem(), 5)
		text, err := json.Marshal(v)
		if err != nil {
			text = []byte(`{"a":[1.5,"x",null,{}]}`)
		}
		f.Add(uint8(i), text, []byte(`{"A":1}`))
	}
	f.Add(uint8(1), []byte(`{"A":"\ud800","b":null}`), []byte(`{"a":1e999}`))
	f.Fuzz(func(t *testing.T, of uint8, first, second []byte) {
		requireSameDecoding(t, int(of), string(first), string(second))
		v := newJSONType(int(of))
		fillValue(&source{append(first, second...)}, reflect.ValueOf(v).Elem(), 6)
		requireSameEncoding(t, v)
		requireSameEncoding(t, reflect.ValueOf(v).Elem().Interface())
	})
}

// source is the bytes that values are made of, and zeros behind them.
type source struct{ b []byte }

func (s *source) take(n int) []byte {
	out := make([]byte, n)
	s.b = s.b[copy(out, s.b):]
	return out
}

func (s *source) byte() byte   { return s.take(1)[0] }
func (s *source) uint() uint64 { return binary.LittleEndian.Uint64(s.take(8)) }

// fillValue fills v, as deep as that says.
func fillValue(s *source, v reflect.Value, deep int) {
	if !v.CanSet() || deep == 0 {
		return
	}
	n := int(s.byte() % 4)
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(n&1 == 1)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(int64(s.uint()))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(s.uint())
	case reflect.Float32, reflect.Float64:
		v.SetFloat(math.Float64frombits(s.uint()))
	case reflect.String:
		v.SetString(string(s.take(2 * n)))
	case reflect.Pointer:
		if n > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fillValue(s, v.Elem(), deep-1)
		}
	case reflect.Slice:
		if n > 0 {
			v.Set(reflect.MakeSlice(v.Type(), n-1, n-1))
		}
		fallthrough
	case reflect.Array:
		for i := range v.Len() {
			fillValue(s, v.Index(i), deep-1)
		}
	case reflect.Map:
		if n > 0 {
			v.Set(reflect.MakeMap(v.Type()))
		}
		for range n - 1 {
			key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			fillValue(s, key, deep-1)
			fillValue(s, value, deep-1)
			v.SetMapIndex(key, value)
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(int64(s.uint()%1e12), int64(s.byte()))))
			return
		}
		if v.Type() == reflect.TypeFor[big.Int]() {
			return
		}
		for i := range v.NumField() {
			fillValue(s, v.Field(i), deep-1)
		}
	case reflect.Interface:
		if v.NumMethod() == 0 {
			of := newJSONType(int(s.byte()))
			fillValue(s, reflect.ValueOf(of).Elem(), deep-1)
			v.Set(reflect.ValueOf(of).Elem())
		}
	}
}

type (
	cycle    struct{ Next interface{} }
	list     struct{ Next *list }
	listOf   []listOf
	pointers *pointers
	parent   struct {
		Kids []*kid
	}
	kid struct {
		Up   *parent `json:"-"`
		Name string
	}
)

// A value without an end, or one that is nested too deep, is an error and not the end of the
// process.
func TestJSONValuesWithoutAnEnd(t *testing.T) {
	c := byName(t, "json")
	self := &cycle{}
	self.Next = self
	ring := &list{Next: &list{}}
	ring.Next.Next = ring
	slice := listOf{nil}
	slice[0] = slice
	mapping := map[string]interface{}{}
	mapping["a"] = []interface{}{mapping}
	var pointer pointers
	pointer = &pointer
	var anything interface{}
	anything = &anything
	var long *list
	for range 3_000_000 {
		long = &list{long}
	}
	var nested interface{}
	for range 3_000_000 {
		nested = []interface{}{nested}
	}
	for _, v := range []interface{}{
		self, *self, ring, *ring, slice, mapping, pointer, &anything, long, nested,
		[]interface{}{1, self}, map[string]*list{"a": ring}, struct{ A, B interface{} }{1, mapping},
		[]*list{long}, [1]interface{}{&self},
	} {
		_, err := codec.Append(c, nil, v)
		require.ErrorContains(t, err, "nested deeper than", "%T", v)
	}
	p := &parent{}
	p.Kids = []*kid{{Up: p, Name: "a"}}
	for _, v := range []interface{}{p, &tree{Left: &tree{}}, []interface{}{p, p}} {
		requireSameEncoding(t, v)
	}
	var deepest *list
	for range 4000 {
		deepest = &list{deepest}
	}
	requireSameEncoding(t, deepest)
}

// What the other side has sent is not in an error: it may be a password.
func TestJSONErrorsQuoteNothing(t *testing.T) {
	c := byName(t, "json")
	for _, text := range []string{
		`{"a":"s3cr3t`, `{"a":s3cr3t}`, `"s3cr3t"`, `{"A":"s3cr3t"}`, `{"i8":77123477}`, `{"i":"s3cr3t"}`,
		`{"i":77123477}`, `{"When":"s3cr3t"}`, `"s3cr3t" s3cr3t`,
		`{"Addr":"s3cr3t"}`, `{"Big":"s3cr3t"}`, `{"number":"s3cr3t"}`, `{"Bytes":"s3cr3t!"}`,
		`{"Times":["s3cr3t"]}`, `{"IntKeys":{"s3cr3t":""}}`, `{"IntKeys":{"77123477":""}}`,
		`{"when":"s3cr3t"}`, `{"addr":"s3cr3t"}`, `[7712347712345678901234567890]`, `77123477e999`,
		`{"A":{"s3cr3t":1}}`, `s3cr3t`,
	} {
		for i := range jsonTypes {
			if err := codec.Decode(c, []byte(text), newJSONType(i)); err != nil {
				assert.NotContains(t, err.Error(), "s3cr3t", "%s", text)
				assert.NotContains(t, err.Error(), "77123477", "%s", text)
			}
		}
	}
	for _, v := range []interface{}{json.Number("s3cr3t"), json.RawMessage(`s3cr3t`), broken(`s3cr3t`),
		raws{Raw: json.RawMessage(`{"s3cr3t`)}, &raws{Number: "s3cr3t"}} {
		_, err := codec.Append(c, nil, v)
		require.Error(t, err)
		assert.NotContains(t, err.Error(), "s3cr3t")
	}
	var v numbers
	require.EqualError(t, codec.Decode(c, []byte(`{"i16":1,"i8":300}`), &v),
		"codec json: decoding into *codec_test.numbers: the number at byte 17 is no value for the Go type "+
			"int8 of field i8")
	require.EqualError(t, codec.Decode(c, []byte(`{"i8":`), &v),
		"codec json: decoding into *codec_test.numbers: it is not JSON: it ends too early")
	require.EqualError(t, codec.Decode(c, []byte(`{"i8":x}`), &v),
		"codec json: decoding into *codec_test.numbers: it is not JSON: something else is expected at byte 7")
}
