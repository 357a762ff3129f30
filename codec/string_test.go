package codec_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/codec"
)

type (
	text      string
	blob      []byte
	octet     byte
	octetBlob []octet
)

func TestStringEncodes(t *testing.T) {
	c := byName(t, "string")
	s, b, tx, bl := "abc", []byte("abc"), text("abc"), blob("abc")
	var anyString, anyBytes interface{} = "abc", []byte("abc")
	for _, tc := range []struct {
		name  string
		value interface{}
	}{
		{"string", s}, {"bytes", b}, {"named string", tx}, {"named bytes", bl}, {"bytes of a named byte",
			octetBlob("abc")},
		{"*string", &s}, {"*[]byte", &b}, {"*named string", &tx}, {"*named bytes", &bl},
		{"*interface{} with a string", &anyString}, {"*interface{} with bytes", &anyBytes},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, err := codec.Append(c, []byte("front "), tc.value)
			require.NoError(t, err)
			require.Equal(t, "front abc", string(out))
			out, err = c.Marshal(tc.value)
			require.NoError(t, err)
			require.Equal(t, "abc", string(out))
		})
	}
	var empty interface{}
	_, err := codec.Append(c, nil, &empty)
	require.ErrorContains(t, err, "*interface {}: not a string")
}

func TestStringDecodes(t *testing.T) {
	c := byName(t, "string")
	for _, tc := range []struct {
		name string
		into interface{}
		want interface{}
	}{
		{"string", new(string), "abc"},
		{"bytes", new([]byte), []byte("abc")},
		{"named string", new(text), text("abc")},
		{"named bytes", new(blob), blob("abc")},
		{"bytes of a named byte", new(octetBlob), octetBlob("abc")},
		{"interface{}", new(interface{}), "abc"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			data := []byte("abc")
			require.NoError(t, codec.Decode(c, data, tc.into))
			clear(data)
			require.EqualValues(t, tc.want, deref(tc.into))
			require.NoError(t, codec.Decode(c, nil, tc.into))
			require.Empty(t, deref(tc.into))
		})
	}
}

func deref(p interface{}) interface{} {
	switch p := p.(type) {
	case *string:
		return *p
	case *[]byte:
		return *p
	case *text:
		return *p
	case *blob:
		return *p
	case *octetBlob:
		return *p
	case *interface{}:
		return *p
	}
	return nil
}

// Bytes are bytes: nothing is said about their being text.
func TestStringCarriesAnyBytes(t *testing.T) {
	c := byName(t, "string")
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	out, err := codec.Append(c, nil, all)
	require.NoError(t, err)
	require.Equal(t, all, out)
	var got []byte
	require.NoError(t, codec.Decode(c, out, &got))
	require.Equal(t, all, got)
}

// A slice that the caller holds is not written into: it may be a constant, or
// another packet's body.
func TestStringDecodesIntoNewMemory(t *testing.T) {
	c := byName(t, "string")
	before := []byte("before")
	got := before
	require.NoError(t, codec.Decode(c, []byte("after!"), &got))
	require.Equal(t, "before", string(before))
	named := blob(before)
	require.NoError(t, codec.Decode(c, []byte("after!"), &named))
	require.Equal(t, "before", string(before))
}
