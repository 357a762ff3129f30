package printable_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/henrylee2cn/teleport/internal/printable"
)

type node struct {
	Name string
	Next *node
	Any  interface{}
	own  *node
}

type stringer struct{ panics interface{} }

func (s stringer) String() string { panic(s.panics) }

func selfMap() interface{} {
	m := map[string]interface{}{}
	m["self"] = m
	return m
}

func selfSlice() interface{} {
	s := make([]interface{}, 1)
	s[0] = s
	return s
}

func selfPointer() interface{} {
	var p interface{}
	p = &p
	return p
}

func ring() interface{} {
	n := &node{Name: "n"}
	n.Next = n
	return n
}

func hiddenRing() interface{} {
	n := &node{Name: "n"}
	n.own = n
	return n
}

func selfMessage() interface{} {
	s := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	s.Fields["self"] = structpb.NewStructValue(s)
	return s
}

// doubled is a value in which one is found 2^40 times.
func doubled() interface{} {
	v := interface{}("x")
	for range 40 {
		v = []interface{}{v, v}
	}
	return v
}

func doubledMessage() interface{} {
	v := structpb.NewStringValue("x")
	for range 40 {
		v = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{v, v}})
	}
	return v
}

func deep(levels int) interface{} {
	v := interface{}(1)
	for range levels {
		v = []interface{}{v}
	}
	return v
}

func TestValue(t *testing.T) {
	n := 5
	for _, c := range []struct {
		v    interface{}
		want string
	}{
		{nil, "<nil>"},
		{"a\nb", `a\nb`},
		{errors.New("an\nerror"), `an\nerror`},
		{3 * time.Second, "3s"},
		{int8(-3), "-3"},
		{uint16(3), "3"},
		{true, "true"},
		{1.5, "1.5"},
		{float32(0.1), "0.1"},
		{2i, "(0+2i)"},
		{&n, "&5"},
		{(*int)(nil), "<nil>"},
		{[]interface{}{1, "x", nil}, "[1 x <nil>]"},
		{[2]bool{}, "[false false]"},
		{map[string]int{"a": 1}, "map[a:1]"},
		{node{Name: "x", own: &node{}},
			"{Name:x Next:<nil> Any:<nil> own:&{Name: Next:<nil> Any:<nil> own:<nil>}}"},
		{struct{ At time.Time }{time.Unix(0, 0).UTC()}, "{At:1970-01-01 00:00:00 +0000 UTC}"},
		{stringer{"no\n"}, `(printing panicked: no\n)`},
		{stringer{stringer{}}, "(printing panicked: {panics:<nil>})"},
		{(*structpb.Struct)(nil), "<nil>"},
		{structpb.NewStringValue("a"), `string_value:"a"`},
	} {
		require.Equal(t, c.want, strings.ReplaceAll(printable.Value(c.v, 200), "\u00a0", " "), "%T", c.v)
	}
	require.Contains(t, printable.Value(make(chan int), 100), "0x")
	require.Contains(t, printable.Value(t.Log, 100), "0x")
	require.Contains(t, printable.Value(stringer{selfMap()}, 100), "map[self:map[self:")
}

// A value that contains itself, is deep, or is huge, ends neither the process nor the
// test's patience.
func TestValueWithoutEnd(t *testing.T) {
	for name, v := range map[string]interface{}{
		"map": selfMap(), "slice": selfSlice(), "pointer": selfPointer(), "ring": ring(),
		"message": selfMessage(),
		"doubled": doubled(), "doubled message": doubledMessage(), "deep": deep(1_000_000),
		"long": make([]int, 1<<24), "text": strings.Repeat("x", 1<<24), "texts": []string{strings.Repeat("x",
			1<<24)},
	} {
		t.Run(name, func(t *testing.T) {
			got := printable.Value(v, 300)
			require.NotEmpty(t, got)
			require.LessOrEqual(t, len(got), 300)
		})
	}
}

func TestFinite(t *testing.T) {
	for name, v := range map[string]interface{}{
		"nil": nil, "text": "x", "numbers": make([]int, 1<<24), "bytes": make([]byte, 1<<20),
		"hidden ring": hiddenRing(),
		"time":        time.Now(), "nodes": node{Next: &node{}, Any: []interface{}{1}}, "deep": deep(300),
		"nil map": map[string]interface{}(nil),
		"message": structpb.NewStringValue("a"), "nil message": (*structpb.Struct)(nil),
	} {
		require.True(t, printable.Finite(v), name)
	}
	for name, v := range map[string]interface{}{
		"map": selfMap(), "slice": selfSlice(), "pointer": selfPointer(), "ring": ring(),
		"message": selfMessage(),
		"doubled": doubled(), "doubled message": doubledMessage(), "deep": deep(3000),
		"message in a struct": struct{ M interface{} }{selfMessage()},
		"messages":            []*structpb.Struct{selfMessage().(*structpb.Struct)},
	} {
		require.False(t, printable.Finite(v), name)
	}
}

func ExampleValue() {
	loop := map[string]interface{}{}
	loop["self"] = loop
	fmt.Println(printable.Value(loop, 40))
	// Output: map[self:map[self:map[self:map[self:m...
}
