package describe

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/big"
	"math/rand/v2"
	"net/http"
	"net/mail"
	"net/netip"
	"net/textproto"
	"net/url"
	"reflect"
	"testing"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
	independent "github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/apipb"
	"google.golang.org/protobuf/types/known/timestamppb"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/packet"
)

//lint:file-ignore SA5008 tags that are odd are what is tested
//lint:file-ignore U1000 fields that are not exported are there to be left out

// Types of every form that encoding/json knows.
type (
	Tree struct {
		Kids   []*Tree          `json:"kids"`
		Named  map[string]Tree  `json:"named,omitempty"`
		Parent *Tree            `json:"parent"`
		ByAge  map[int8][]*Tree `json:"by_age"`
	}
	Numbers struct {
		I   int
		I8  int8
		I16 int16
		I32 int32
		I64 int64
		U   uint
		U8  uint8
		U16 uint16
		U32 uint32
		U64 uint64
		Up  uintptr
		F32 float32
		F64 float64
	}
	Texts struct {
		I  int         `json:",string"`
		U  uint16      `json:"u,string"`
		F  float64     `json:",string,omitempty"`
		B  bool        `json:",string"`
		S  string      `json:",string"`
		P  *int        `json:",string"`
		N  json.Number `json:",string"`
		No []int       `json:",string"` // without a meaning
	}
	Tagged struct {
		Renamed   int `json:"other-name"`
		Dash      int `json:"-,"`
		Left      int `json:"-"`
		Bad       int `json:"a\"b"`
		hidden    int
		Omitted   string    `json:"omitted,omitempty"`
		Zero      time.Time `json:"zero,omitzero"`
		ZeroFunc  func()    `json:"zero_func,omitzero"`
		WithSpace int       `json:"with space"`
		Greek     int       `json:"αβγ"`
		Odd       int       `json:"$%/~"`
	}
	base struct {
		A      int
		Common string
	}
	Exported struct {
		B      int
		Common string
	}
	Deep struct {
		C    int `json:"A"`
		Deep int
	}
	Embedding struct {
		base
		*Exported
		Deep
		Interfaces
		Named `json:"named"`
		Own   bool
	}
	Twice struct {
		L
		R
	}
	L          struct{ Plain }
	R          struct{ Plain }
	Plain      struct{ P int }
	PtrInside  struct{ *base }
	Interfaces struct {
		Any interface{}
	}
	Named       string
	Bytes       []byte
	Flags       [3]bool
	List        []List
	Mapping     map[string]Mapping
	Keyed       map[Named]uint8
	Upper       string
	UpperKeys   map[Upper]int
	Pointed     *Tree
	Page[T any] struct {
		Items []T `json:"items"`
		Next  *Page[T]
	}
	Special struct {
		T    time.Time
		Tp   *time.Time
		D    time.Duration
		N    json.Number
		R    json.RawMessage
		B    []byte
		Bs   Bytes
		B4   [4]byte
		Big  *big.Int
		Addr netip.Addr
		Pa   *netip.Addr
		Ad   map[netip.Addr]int
		P    **int
		An   struct{ X, Y int }
		Ans  []struct{ Z *string }
		U    *UpperKeys
	}
	Time      struct{ time.Time } // is encoded as the time
	Out       struct{ X int }     // has its own form when it is encoded
	PtrOut    struct{ X int }     // has it where it can be addressed
	OutHolder struct {
		O  Out
		P  *PtrOut
		V  PtrOut
		Vs []PtrOut
	}
)

func (u Upper) MarshalText() ([]byte, error)     { return bytes.ToUpper([]byte(u)), nil }
func (u *Upper) UnmarshalText(text []byte) error { *u = Upper(bytes.ToLower(text)); return nil }
func (Out) MarshalJSON() ([]byte, error)         { return []byte(`[1,"x"]`), nil }
func (*PtrOut) MarshalText() ([]byte, error)     { return []byte("text"), nil }

// tableOfTypes has types whose schemas are exact.
var tableOfTypes = []interface{}{
	0, "", true, 1.5, float32(0), uint8(0), int64(0), uint64(0), []int(nil), [2]int{}, []byte(nil), [3]byte{},
	map[string]int(nil), map[int]string(nil), map[uint8]bool(nil), (*int)(nil), (**string)(nil),
	[]interface{}(nil), map[string]interface{}(nil), struct{}{}, struct{ X, y int }{},
	Tree{}, (*Tree)(nil), []Tree(nil), Numbers{}, Texts{}, Tagged{}, Embedding{}, Twice{}, Interfaces{},
	Named(""), Bytes(nil), Flags{}, List(nil), Mapping(nil), Keyed(nil), Upper(""), UpperKeys(nil),
	Pointed(nil), Page[Tree]{}, Page[Page[int]]{}, Special{}, time.Time{}, &time.Time{}, Time{},
	json.Number("0"), json.RawMessage(nil), &big.Int{}, OutHolder{}, PtrInside{}, Item{},
	[]map[string]*[]Item(nil), (*timestamppb.Timestamp)(nil), (*apipb.Api)(nil), url.Values(nil),
}

// schemaOf returns a schema that stands alone, with both libraries' ways to look at values.
func schemaOf(t testing.TB, typ reflect.Type, dir direction, strict bool) (check func(text []byte) error,
	schema *jsonschema.Schema) {
	types := newSchemas()
	s, err := types.of(typ, dir)
	require.NoError(t, err, "%v", typ)
	if strict { // fields that the schema does not have do not fit
		var visit func(s *jsonschema.Schema)
		visit = func(s *jsonschema.Schema) {
			if s.Properties != nil {
				s.AdditionalProperties = &jsonschema.Schema{Not: new(jsonschema.Schema)}
			}
			inPlace(s, visit)
			below(s, visit)
		}
		visit(s)
		for _, def := range types.defs {
			visit(def)
		}
	}
	schema = s.CloneSchemas()
	schema.Schema, schema.Defs = dialect, types.defs
	text, err := encode(schema)
	require.NoError(t, err)

	ours := new(jsonschema.Schema)
	require.NoError(t, json.Unmarshal(text, ours))
	resolved, err := ours.Resolve(nil)
	require.NoError(t, err, "%s", text)

	doc, err := independent.UnmarshalJSON(bytes.NewReader(text))
	require.NoError(t, err)
	c := independent.NewCompiler()
	c.AssertFormat()
	require.NoError(t, c.AddResource("schema.json", doc))
	theirs, err := c.Compile("schema.json") // checks it against the meta-schema, too
	require.NoError(t, err, "%s", text)

	return func(text []byte) error {
		var v interface{}
		if err := json.Unmarshal(text, &v); err != nil {
			return err
		}
		exact, err := independent.UnmarshalJSON(bytes.NewReader(text))
		if err != nil {
			return err
		}
		a, b := resolved.Validate(v), theirs.Validate(exact)
		if (a == nil) != (b == nil) {
			t.Errorf("the libraries do not agree on %s: %v; %v", text, a, b)
		}
		return b
	}, schema
}

var jsonCodec = func() codec.Codec {
	c, err := codec.GetByName(codec.NameJSON)
	if err != nil {
		panic(err)
	}
	return c
}()

// What the codec json makes of a value fits the schema of a reply, and that of an argument: the codec takes
// it back.
func TestWhatIsEncodedFits(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, v := range tableOfTypes {
		typ := reflect.TypeOf(v)
		t.Run(typ.String(), func(t *testing.T) {
			check, schema := schemaOf(t, typ, encoded, true)
			argument, _ := schemaOf(t, typ, decoded, true)
			seen := make(map[string]json.RawMessage)
			for range 200 {
				v := reflect.New(typ).Elem()
				fill(rnd, v, 5)
				text, err := codec.Append(jsonCodec, nil, v.Interface())
				require.NoError(t, err)
				require.NoError(t, check(text), "%s\n%s", text, schema)
				_ = json.Unmarshal(text, &seen)
				back := reflect.New(typ)
				if typ.Kind() == reflect.Pointer && string(text) == "null" {
					continue // an argument is what the pointer leads to
				}
				if typ == typeOfHolder || typ == typeOfPtrInside {
					continue
				}
				require.NoError(t, codec.Decode(jsonCodec, text, back.Interface()), "%s", text)
				require.NoError(t, argument(text), "%s", text)
			}
			if name, ok := definitionOf(schema.Ref); ok && typ != typeOfPtrInside {
				for property := range schema.Defs[name].Properties {
					require.Contains(t, seen, property, "no value had it")
				}
			}
		})
	}
}

// These are not decoded in the form in which they are encoded.
var (
	typeOfHolder    = reflect.TypeFor[OutHolder]()
	typeOfPtrInside = reflect.TypeFor[PtrInside]()
)

// What fits the schema of an argument is what the codec json takes: values that are made by the schema, and
// those in which something was then made another. At least some of these do not fit.
func TestWhatFitsIsDecoded(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	unfit := 0
	for _, v := range tableOfTypes {
		typ := reflect.TypeOf(v)
		t.Run(typ.String(), func(t *testing.T) {
			if typ == reflect.TypeFor[Time]() {
				t.Skip("what its own methods take, only they know")
			}
			check, schema := schemaOf(t, typ, decoded, false)
			take := func(text []byte) error {
				return codec.Decode(jsonCodec, text, reflect.New(typ).Interface())
			}
			for range 200 {
				made := instance(rnd, schema, schema.Defs, 5)
				text, err := encode(made)
				require.NoError(t, err)
				require.NoError(t, check(text), "%s\n%s", text, schema)
				require.NoError(t, take(text), "%s\n%s", text, schema)

				text, err = encode(change(rnd, made))
				require.NoError(t, err)
				if check(text) == nil {
					require.NoError(t, take(text), "%s\n%s", text, schema)
				} else {
					unfit++
				}
			}
		})
	}
	require.Greater(t, unfit, 1000)
}

// fill sets a value at random; deep is how deep it may be.
func fill(rnd *rand.Rand, v reflect.Value, deep int) {
	switch p := v.Addr().Interface().(type) {
	case *time.Time:
		*p = time.Unix(rnd.Int64N(4e9), rnd.Int64N(1e9)).In(time.FixedZone("", 60*rnd.IntN(700)))
		return
	case *json.Number:
		*p = json.Number([]string{"", "0", "-1.5", "12345678901234567890", "1e30"}[rnd.IntN(5)])
		return
	case *json.RawMessage:
		*p = json.RawMessage([]string{"null", `{"a":[1]}`, `"x"`, "7"}[rnd.IntN(4)])
		return
	case *big.Int:
		p.Lsh(big.NewInt(rnd.Int64()), uint(rnd.IntN(100)))
		return
	case *netip.Addr:
		*p = netip.AddrFrom4([4]byte{10, 0, 0, byte(rnd.Int())})
		return
	}
	many := rnd.IntN(3)
	if deep <= 0 {
		many = 0
	}
	switch k := v.Kind(); {
	case k == reflect.Bool:
		v.SetBool(rnd.IntN(2) == 0)
	case v.CanInt():
		v.SetInt(int64(rnd.Uint64()) >> rnd.IntN(64))
	case v.CanUint():
		v.SetUint(rnd.Uint64() >> rnd.IntN(64))
	case k == reflect.Float32:
		v.SetFloat(float64(rnd.Float32()) * 1e38)
	case k == reflect.Float64:
		v.SetFloat(rnd.NormFloat64() * 1e10)
	case k == reflect.String:
		v.SetString([]string{"", "a", "A text, longer", "中文 \"x\" <&>", "0"}[rnd.IntN(5)])
	case k == reflect.Pointer:
		if many > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(rnd, v.Elem(), deep-1)
		}
	case k == reflect.Slice:
		if rnd.IntN(4) > 0 {
			v.Set(reflect.MakeSlice(v.Type(), many, many))
		}
		for i := range v.Len() {
			fill(rnd, v.Index(i), deep-1)
		}
	case k == reflect.Array:
		for i := range v.Len() {
			fill(rnd, v.Index(i), deep-1)
		}
	case k == reflect.Map:
		if rnd.IntN(4) > 0 {
			v.Set(reflect.MakeMap(v.Type()))
			for range many {
				key, elem := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
				fill(rnd, key, deep-1)
				fill(rnd, elem, deep-1)
				v.SetMapIndex(key, elem)
			}
		}
	case k == reflect.Interface:
		if v.NumMethod() == 0 {
			if any := []interface{}{nil, 1, "x", []string{"y"}, Item{}, 2.5}[rnd.IntN(6)]; any != nil {
				v.Set(reflect.ValueOf(any))
			}
		}
	case k == reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				fill(rnd, v.Field(i), deep-1)
			}
		}
	}
}

// instance makes a value that fits a schema, of the keywords that this package uses.
func instance(rnd *rand.Rand, s *jsonschema.Schema, defs map[string]*jsonschema.Schema,
	deep int) interface{} {
	if name, ok := definitionOf(s.Ref); ok {
		return instance(rnd, defs[name], defs, deep)
	}
	if len(s.AnyOf) > 0 {
		if deep <= 0 {
			return nil
		}
		return instance(rnd, s.AnyOf[rnd.IntN(len(s.AnyOf))], defs, deep)
	}
	typ := s.Type
	if len(s.Types) > 0 {
		typ = s.Types[rnd.IntN(len(s.Types))]
		if deep <= 0 {
			typ = "null"
		}
	}
	many := rnd.IntN(3)
	if deep <= 0 {
		many = 0
	}
	switch typ {
	case "null":
		return nil
	case "boolean":
		return rnd.IntN(2) == 0
	case "integer":
		if s.Minimum == nil {
			return rnd.Int()
		}
		wide := min(*s.Maximum-*s.Minimum, 1<<53)
		return json.Number(fmt.Sprintf("%.0f", *s.Minimum+float64(rnd.Int64N(int64(wide)))))
	case "number":
		return []interface{}{0, -1.5, 1e10, json.Number("123456789.5")}[rnd.IntN(4)]
	case "string":
		return textFor(rnd, s)
	case "array":
		if s.MinItems != nil {
			many = *s.MinItems
		}
		list := make([]interface{}, many)
		for i := range list {
			list[i] = instance(rnd, s.Items, defs, deep-1)
		}
		return list
	case "object":
		object := make(map[string]interface{})
		for name, p := range s.Properties {
			if rnd.IntN(4) > 0 {
				object[name] = instance(rnd, p, defs, deep-1)
			}
		}
		if s.AdditionalProperties == nil {
			object["not known"] = []int{1}
			many = 0
		}
		for range many {
			key := &jsonschema.Schema{}
			if s.PropertyNames != nil {
				key = s.PropertyNames
			}
			object[textFor(rnd, key).(string)] = instance(rnd, s.AdditionalProperties, defs, deep-1)
		}
		return object
	case "":
		return []interface{}{nil, "x"}[rnd.IntN(2)]
	}
	panic("an unknown type: " + typ)
}

func textFor(rnd *rand.Rand, s *jsonschema.Schema) interface{} {
	switch {
	case s.Format == "date-time":
		return "2026-11-30T12:00:00.5+01:00"
	case s.ContentEncoding == "base64":
		return []string{"", "YQ==", "YWJj"}[rnd.IntN(3)]
	case s.ContentMediaType == "application/json":
		return `"a text"`
	case s.Pattern == "^(true|false)$":
		return "true"
	case s.Pattern != "":
		return []string{"0", "7", "12"}[rnd.IntN(3)]
	case s.Extra[goTypeKeyword] == "net/netip.Addr":
		return "10.0.0.1"
	}
	return []string{"", "x", "中"}[rnd.IntN(3)]
}

// change puts something else in the place of a part of a value.
func change(rnd *rand.Rand, v interface{}) interface{} {
	odd := []interface{}{nil, true, 7, -300, 1.5, int64(1) << 40, []interface{}{}, []interface{}{1.5},
		map[string]interface{}{"?": 1.5}, map[string]interface{}{"7": nil}}[rnd.IntN(10)]
	switch v := v.(type) {
	case []interface{}:
		if len(v) > 0 && rnd.IntN(3) > 0 {
			v[rnd.IntN(len(v))] = change(rnd, v[rnd.IntN(len(v))])
			return v
		}
	case map[string]interface{}:
		for name := range v {
			if rnd.IntN(3) > 0 {
				v[name] = change(rnd, v[name])
				return v
			}
		}
	}
	return odd
}

// The types of a package that has types of the same name as others.
type other struct{ Header struct{ X int } }

func local() reflect.Type {
	type Item struct{ Other bool }
	return reflect.TypeFor[Item]()
}

func localToo() reflect.Type {
	type Item struct{ Another bool }
	return reflect.TypeFor[Item]()
}

// Names of definitions need no escaping, tell types with the same name apart, and depend on what is
// described before only if names are the same.
func TestNamesOfDefinitions(t *testing.T) {
	types := newSchemas()
	const own = "github.com.henrylee2cn.teleport.plugin.describe."
	for _, tc := range []struct {
		typ  reflect.Type
		dir  direction
		want string
	}{
		{reflect.TypeFor[Item](), encoded, own + "Item"},
		{reflect.TypeFor[Item](), decoded, own + "Item-argument"},
		{local(), encoded, own + "Item-2"},
		{localToo(), encoded, own + "Item-3"},
		{reflect.TypeFor[Item](), encoded, own + "Item"},
		{reflect.TypeFor[http.Header](), encoded, "net.http.Header"},
		{reflect.TypeFor[textproto.MIMEHeader](), encoded, "net.textproto.MIMEHeader"},
		{reflect.TypeFor[mail.Header](), encoded, "net.mail.Header"},
		{reflect.TypeFor[Page[Item]](), encoded, own +
			"Page_github.com.henrylee2cn.teleport.plugin.describe.Item_"},
	} {
		s, err := types.of(tc.typ, tc.dir)
		require.NoError(t, err)
		require.Equal(t, definitionPrefix+tc.want, s.Ref)
		require.Contains(t, types.defs, tc.want)
		require.Regexp(t, "^[A-Za-z0-9._-]+$", tc.want)
	}
	require.Equal(t, "net/mail.Header", types.defs["net.mail.Header"].Extra[goTypeKeyword])
	s, err := types.of(reflect.TypeFor[other](), encoded)
	require.NoError(t, err)
	_, ok := definitionOf(s.Ref)
	require.True(t, ok)
}

type (
	WithChan struct {
		Deep []map[string]struct{ C chan int }
	}
	WithFunc struct{ F func() }
	Loop     *Loop
	LoopToo  struct{ L *[]Loop }
	Knot     struct{ To *KnotBack }
	KnotBack struct {
		Back *Knot
		Bad  complex64
	}
	WithMethods struct{ Err error }
)

// A type that has no JSON is told apart with the place that is to blame; nothing of it stays behind, and
// others that use some of the same types are described.
func TestTypesWithoutSchema(t *testing.T) {
	types := newSchemas()
	for _, tc := range []struct {
		v    interface{}
		dir  direction
		says string
	}{
		{make(chan int), encoded, "chan int is of a kind that is not in JSON"},
		{make(chan int), decoded, "chan int is of a kind that is not in JSON"},
		{func() {}, encoded, "func() is of a kind that is not in JSON"},
		{complex(1, 1), encoded, "complex128"},
		{WithChan{}, encoded, "Deep[][].C: chan int is of a kind"},
		{WithFunc{}, encoded, "F: func()"},
		{Knot{}, encoded, "To.Bad: complex64"},
		{KnotBack{}, encoded, "Bad: complex64"},
		{Knot{}, encoded, "To.Bad: complex64"},
		{map[bool]int{}, encoded, "map[bool]int has keys of type bool"},
		{map[struct{}]int{}, decoded, "keys of type struct {}"},
		{Loop(nil), encoded, "leads to itself"},
		{LoopToo{}, encoded, "leads to itself"},
		{new(error), decoded, "nothing can be decoded into error"},
	} {
		s, err := types.of(reflect.TypeOf(tc.v), tc.dir)
		require.ErrorContains(t, err, tc.says, "%T", tc.v)
		require.Nil(t, s)
		require.Empty(t, types.defs, "%T", tc.v)
	}
	for _, typ := range []reflect.Type{reflect.TypeFor[Knot](), reflect.TypeFor[WithFunc](),
		reflect.TypeFor[WithMethods](), reflect.TypeFor[WithChan]()} {
		check, schema := schemaOf(t, typ, decoded, false)
		text, err := encode(instance(rand.New(rand.NewPCG(5, 6)), schema, schema.Defs, 5))
		require.NoError(t, err)
		require.NoError(t, check(text))
		require.NoError(t, codec.Decode(jsonCodec, text, reflect.New(typ).Interface()), "%s", text)
	}
	_, err := types.of(reflect.TypeFor[WithMethods](), encoded)
	require.NoError(t, err, "an interface is encoded as what is in it")
}

// Whatever a route takes and answers it is listed, with a note if that is all that can be said.
func TestRoutesWithoutSchema(t *testing.T) {
	p := newPeer(t, nil, New())
	tp.HandlePull(p.PullRouter, "/chan", func(tp.PullCtx, *WithChan) (chan int, tp.Xerror) {
		return nil, nil
	})
	tp.HandlePull(p.PullRouter, "/loop", func(tp.PullCtx, *Loop) (func(), tp.Xerror) { return nil, nil })
	tp.HandlePull(p.PullRouter, "/raw", func(tp.PullCtx, *packet.RawBody) (interface{}, tp.Xerror) {
		return nil, nil
	})
	tp.HandlePull(p.PullRouter, "/broken", func(tp.PullCtx, *int) (BrokenMessage, tp.Xerror) {
		return BrokenMessage{}, nil
	})
	d := fetch(t, p)
	require.Len(t, d.Routes, 4)
	reply := d.Find("/chan", Pull).Reply
	require.Nil(t, reply.Schema)
	require.Equal(t, "chan int", reply.GoType)
	require.Equal(t, "the codec json has no form of it: chan int is of a kind that is not in JSON",
		reply.Note)
	require.True(t, d.Find("/raw", Pull).Argument.Raw)
	require.NotNil(t, d.Find("/raw", Pull).Reply.Schema, "any JSON")
	broken := d.Find("/broken", Pull).Reply
	require.Contains(t, broken.Note, "the message has no descriptor")
	require.Empty(t, broken.Message)
	require.NotNil(t, broken.Schema)
}

// BrokenMessage is one whose methods do not work without a message inside.
type BrokenMessage struct{ proto.Message }

// A schema from the other side that would never come to an end, or leads elsewhere, is an error and no more.
func TestHostileSchemas(t *testing.T) {
	for text, says := range map[string]string{
		`{"$ref":"#/$defs/a"}`:                            "leads to itself",
		`{"properties":{"x":{"$ref":"#/$defs/a"}}}`:       "leads to itself",
		`{"allOf":[{"if":{"$ref":"#/$defs/b"}}]}`:         "leads to itself",
		`{"$ref":"#"}`:                                    `refers to "#"`,
		`{"$ref":"http://127.0.0.1/x"}`:                   `refers to "http`,
		`{"items":{"$dynamicRef":"#x"}}`:                  "dynamic reference",
		`{"$id":"http://127.0.0.1/x"}`:                    "$id",
		`{"$ref":"#/$defs/missing"}`:                      "no such definition",
		`{"$ref":"#/$defs/elsewhere"}`:                    `refers to "#/properties/x"`,
		`{"pattern":"("}`:                                 "pattern",
		`{"dependentSchemas":{"x":{"$ref":"#/$defs/b"}}}`: "leads to itself",
	} {
		d := new(Description)
		require.NoError(t, json.Unmarshal([]byte(`{"$defs":{"a":{"anyOf":[{"$ref":"#/$defs/b"}]},
			"b":{"not":{"$ref":"#/$defs/a"}},"elsewhere":{"$ref":"#/properties/x"}}}`), d))
		v := &Value{GoType: "T", Schema: new(jsonschema.Schema)}
		require.NoError(t, json.Unmarshal([]byte(text), v.Schema))
		require.ErrorContains(t, d.Validate(v, []byte(`{"x":1}`)), says, text)
	}
}
