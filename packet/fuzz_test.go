package packet_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/packet"
)

// allocated returns how many bytes f allocates, freed or not.
func allocated(f func()) int64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return int64(after.TotalAlloc - before.TotalAlloc)
}

// FuzzDecodeBody decodes whatever it is given as a body of every codec into values
// of several types. What is not decoded, but only unpacked, takes at most twice the
// limit and 64 KiB.
func FuzzDecodeBody(f *testing.F) {
	var zipped bytes.Buffer
	zw := gzip.NewWriter(&zipped)
	_, _ = zw.Write(make([]byte, 1<<20))
	_ = zw.Close()
	for _, level := range []int32{0, 1, -2, 10} {
		f.Add([]byte("j[1,2,{\"a\":null}]"), level)
		f.Add([]byte("j"+strings.Repeat("[", 2000)), level)
		f.Add([]byte("p\x0a\x03abc"), level)
		f.Add([]byte("stext"), level)
		f.Add([]byte("\x00"), level)
		f.Add(append([]byte("s"), zipped.Bytes()...), level)
		f.Add(append([]byte("j"), zipped.Bytes()...), level)
	}
	limits := packet.Limits{Inflated: 1 << 16, Depth: 100}
	f.Fuzz(func(t *testing.T, raw []byte, level int32) {
		for _, v := range []interface{}{
			nil, new(interface{}), new(string), new([]byte), new(map[string][]int),
			new(struct{ A *interface{} }),
			new(wrapperspb.StringValue), new(structpb.Value),
		} {
			budget := packet.NewBudget(1 << 18)
			limits.Budget = budget
			_, err := packet.DecodeBody(raw, level, v, limits)
			if err != nil && len(err.Error()) > 64<<10 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			require.Zero(t, budget.Used())
		}
		if len(raw) > 0 && raw[0] == codec.IdString {
			var text []byte
			var err error
			took := allocated(func() { _, err = packet.DecodeBody(raw, level, &text, limits) })
			require.LessOrEqual(t, len(text), max(1<<16, len(raw)), "%v", err)
			most := 2*(1<<16) + int64(len(text)) + 64<<10
			if level != 0 { // a reader of gzip has tables of its own, made once
				most += 64 << 10
			}
			if took > most {
				t.Errorf("%d bytes allocated, at most %d wanted (%v)", took, most, err)
			}
		}
	})
}

// A million empty streams in one body are refused after a thousand.
func TestManyGzipMembers(t *testing.T) {
	var empty bytes.Buffer
	zw := gzip.NewWriter(&empty)
	require.NoError(t, zw.Close())
	for members, ok := range map[int]bool{1: true, 2: true, 1000: true, 1001: false, 800_000: false} {
		raw := append([]byte("s"), bytes.Repeat(empty.Bytes(), members)...)
		got := "untouched"
		_, err := packet.DecodeBody(raw, 1, &got, packet.Limits{Body: -1})
		if ok {
			require.NoError(t, err)
			require.Empty(t, got)
		} else {
			require.ErrorIs(t, err, packet.ErrGzip)
			require.ErrorContains(t, err, "more than 1000 streams")
			require.Equal(t, "untouched", got)
		}
	}
}

// What inflates is taken from the budget while it is there, and the budget's end
// is an error of its own.
func TestBudgetOfGzip(t *testing.T) {
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	_, err := zw.Write(make([]byte, 1<<20))
	require.NoError(t, err)
	require.NoError(t, zw.Close())
	raw := append([]byte("s"), b.Bytes()...)
	for most, ok := range map[int64]bool{-1: true, 4 << 20: true, 1 << 19: false, 0: false} {
		budget := packet.NewBudget(most)
		var got string
		_, err := packet.DecodeBody(raw, 1, &got, packet.Limits{Budget: budget})
		require.Equal(t, ok, err == nil, "%v", err)
		if !ok {
			require.ErrorIs(t, err, packet.ErrBudget)
		}
		require.Zero(t, budget.Used())
	}
}

func TestBudget(t *testing.T) {
	b := packet.NewBudget(100)
	require.True(t, b.Take(60))
	require.False(t, b.Take(41))
	require.True(t, b.Take(40))
	require.EqualValues(t, 100, b.Used())
	require.False(t, b.Take(1))
	b.Give(100)
	require.Zero(t, b.Used())
	var none *packet.Budget
	require.Equal(t, none, packet.NewBudget(-1))
	require.True(t, none.Take(1<<60))
	none.Give(1 << 60)
	require.Zero(t, none.Used())
}

// Nesting is limited for messages of protobuf as for JSON.
func TestDepth(t *testing.T) {
	nested := func(depth int) []byte {
		v := structpb.NewNullValue()
		for range depth {
			v = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{v}})
		}
		b, err := codec.Append(mustCodec(t, codec.NameProtobuf), []byte("p"), v)
		require.NoError(t, err)
		return b
	}
	for depth, ok := range map[int]bool{1: true, 400: true, 600: false, 5000: false} { // two messages each
		_, err := packet.DecodeBody(nested(depth), 0, new(structpb.Value), packet.Limits{})
		require.Equal(t, ok, err == nil, "%d: %v", depth, err)
	}
	_, err := packet.DecodeBody(nested(5000), 0, new(structpb.Value), packet.Limits{Depth: -1})
	require.NoError(t, err)
	require.False(t, errors.Is(err, packet.ErrTooLarge))
}

func mustCodec(t *testing.T, name string) codec.Codec {
	c, err := codec.GetByName(name)
	require.NoError(t, err)
	return c
}
