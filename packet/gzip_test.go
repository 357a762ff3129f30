package packet_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"math"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/packet"
)

func gzipped(level int32, body interface{}) *packet.Packet {
	p := push(body)
	p.Header.Id = "1"
	p.Header.Gzip = level
	return p
}

// deflate compresses with the standard library, at its default level.
func deflate(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(data)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.Bytes()
}

func TestCheckGzip(t *testing.T) {
	for level := int32(-2); level <= 9; level++ {
		require.NoError(t, packet.CheckGzip(level))
	}
	for _, level := range []int32{-3, 10, math.MinInt32, math.MaxInt32} {
		require.ErrorIs(t, packet.CheckGzip(level), packet.ErrGzip)
	}
}

func TestGzipAtEveryLevel(t *testing.T) {
	bodies := map[string]string{
		"empty":        "",
		"short":        "x",
		"repetitive":   strings.Repeat("over and over ", 10000),
		"incompressed": noise(100000),
	}
	for name, want := range bodies {
		t.Run(name, func(t *testing.T) {
			for level := int32(-2); level <= 9; level++ {
				p := gzipped(level, want)
				p.BodyCodec = "string"
				b, err := packet.Append([]byte("front"), p, packet.Limits{})
				require.NoError(t, err)
				if level == 0 {
					require.Equal(t, int64(1+len(want)), p.BodyLength)
				} else if name == "repetitive" && level != gzip.HuffmanOnly {
					require.Less(t, p.BodyLength, int64(len(want)/20))
				}
				var got packet.Packet
				var body string
				_, err = packet.Parse(b[len("front"):], &got,
					func(*packet.Header) interface{} { return &body }, packet.Limits{})
				require.NoError(t, err)
				require.Equal(t, level, got.Header.Gzip)
				require.Equal(t, "string", got.BodyCodec)
				require.True(t, want == body, "level %d", level)

				if level != 0 { // any other implementation reads it
					raw := b[len(b)-int(p.BodyLength):]
					r, err := gzip.NewReader(bytes.NewReader(raw[1:]))
					require.NoError(t, err)
					plain, err := io.ReadAll(r)
					require.NoError(t, err)
					require.True(t, want == string(plain))
				}
			}
		})
	}
}

// noise is text that does not compress, always the same.
func noise(n int) string {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return string(b)
}

// A writer and a reader are used again, by whoever comes next.
func TestGzipOnManyGoroutines(t *testing.T) {
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 50 {
				want := strings.Repeat(string(rune('a'+g)), i*100)
				p := gzipped(int32(i%12-2), want)
				b, err := packet.Append(nil, p, packet.Limits{})
				assert.NoError(t, err)
				var body string
				_, err = packet.Parse(b, new(packet.Packet),
					func(*packet.Header) interface{} { return &body }, packet.Limits{})
				assert.NoError(t, err)
				assert.True(t, want == body)
				_, err = packet.DecodeBody([]byte("jnonsense"), 1, &body, packet.Limits{})
				assert.ErrorIs(t, err, packet.ErrGzip)
			}
		})
	}
	wg.Wait()
}

// requireBrokenGzip requires that a body of this stream is refused as one.
func requireBrokenGzip(t *testing.T, stream []byte) {
	t.Helper()
	body := "untouched"
	name, err := packet.DecodeBody(append([]byte{'s'}, stream...), 5, &body, packet.Limits{})
	require.ErrorIs(t, err, packet.ErrGzip, "%x", stream)
	require.NotErrorIs(t, err, io.EOF, "which would say that the connection ended")
	require.NotErrorIs(t, err, packet.ErrHeader)
	require.Equal(t, "string", name)
	require.Equal(t, "untouched", body)
}

func TestGzipCutOffAnywhere(t *testing.T) {
	for _, text := range []string{"", "short", strings.Repeat("a long one ", 500), noise(1000)} {
		stream := deflate(t, []byte(text))
		for n := range stream {
			requireBrokenGzip(t, stream[:n])
		}
	}
}

func TestGzipThatIsWrong(t *testing.T) {
	good := deflate(t, []byte("some text of some length, some of it twice"))
	change := func(i int) []byte {
		b := bytes.Clone(good)
		b[(i+len(b))%len(b)] ^= 0xFF
		return b
	}
	for name, stream := range map[string][]byte{
		"plain":          []byte("some text"),
		"magic":          change(0),
		"method":         change(2),
		"data":           change(12),
		"checksum":       change(-8),
		"length":         change(-1),
		"more behind":    append(bytes.Clone(good), "more"...),
		"half behind":    append(bytes.Clone(good), good[:5]...),
		"zeros behind":   append(bytes.Clone(good), 0, 0, 0),
		"flate, no gzip": good[10:],
	} {
		t.Run(name, func(t *testing.T) { requireBrokenGzip(t, stream) })
	}
}

func TestInflatedLimit(t *testing.T) {
	const size = 5000
	raw := append([]byte{'s'}, deflate(t, make([]byte, size))...)
	for _, tc := range []struct {
		limit int64
		ok    bool
	}{
		{1, false}, {512, false}, {size - 1, false}, {size, true}, {size + 1, true}, {0, true}, {-1, true},
	} {
		var got []byte
		_, err := packet.DecodeBody(raw, 9, &got, packet.Limits{Inflated: tc.limit})
		if tc.ok {
			require.NoError(t, err, "limit %d", tc.limit)
			require.Len(t, got, size)
		} else {
			require.ErrorIs(t, err, packet.ErrTooLarge, "limit %d", tc.limit)
			require.NotErrorIs(t, err, packet.ErrGzip)
			require.Nil(t, got)
		}
	}
}

// What inflates to just the limit may be sent, as it may be received.
func TestInflatedLimitOfWhatIsSent(t *testing.T) {
	p := gzipped(5, strings.Repeat("x", 1000))
	p.BodyCodec = "string"
	_, err := packet.Append(nil, p, packet.Limits{Inflated: 1000})
	require.NoError(t, err)
	_, err = packet.Append(nil, p, packet.Limits{Inflated: 999})
	require.ErrorIs(t, err, packet.ErrTooLarge)
	p.Header.Gzip = 0
	_, err = packet.Append(nil, p, packet.Limits{Inflated: 999})
	require.NoError(t, err, "there is nothing to inflate")
}

// zeros is a stream of many small members, which together inflate to that many
// KiB of zeros.
func zeros(t testing.TB, kib int) []byte {
	return bytes.Repeat(deflate(t, make([]byte, 64<<10)), kib/64)
}

func TestInflatedLimitByDefault(t *testing.T) {
	more := append([]byte{'s'}, zeros(t, packet.DefaultMaxBody>>10)...)
	more = append(more, deflate(t, []byte("x"))...)
	var got []byte
	_, err := packet.DecodeBody(more, 9, &got, packet.Limits{})
	require.ErrorIs(t, err, packet.ErrTooLarge)
	_, err = packet.DecodeBody(more, 9, &got, packet.Limits{Inflated: -1})
	require.NoError(t, err)
	require.Equal(t, packet.DefaultMaxBody+1, len(got))
}

// A small body that inflates to a large one is given up at the limit: no memory
// is spent on the rest of it.
func TestGzipBombIsRefused(t *testing.T) {
	raw := append([]byte{'s'}, zeros(t, 64<<10)...)
	require.Less(t, len(raw), 256<<10)
	var before, after runtime.MemStats
	var got []byte
	runtime.ReadMemStats(&before)
	_, err := packet.DecodeBody(raw, 9, &got, packet.Limits{Inflated: 100 << 10})
	runtime.ReadMemStats(&after)
	require.ErrorIs(t, err, packet.ErrTooLarge)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(1<<20))
}

// FuzzGunzip compares with the standard library.
func FuzzGunzip(f *testing.F) {
	const limit = 1 << 16
	f.Add([]byte{})
	for _, text := range []string{"", "a", strings.Repeat("abc", 1000), noise(300), strings.Repeat("\x00",
		limit), strings.Repeat("\x00", limit+1)} {
		f.Add(deflate(f, []byte(text)))
	}
	for _, g := range goldens {
		if g.packet.Header.Gzip != 0 && g.into != nil {
			b := load(f, g.name)
			if at := bytes.Index(b, []byte("\x1f\x8b")); at >= 0 {
				f.Add(b[at:])
			}
		}
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		var want []byte
		r, wantErr := gzip.NewReader(bytes.NewReader(stream))
		if wantErr == nil {
			want, wantErr = io.ReadAll(io.LimitReader(r, limit+1))
		}
		var got []byte
		_, err := packet.DecodeBody(append([]byte{'s'}, stream...), 1, &got, packet.Limits{Inflated: limit})
		switch {
		case len(want) > limit: // and perhaps broken just there
			require.True(t, errors.Is(err, packet.ErrTooLarge) || errors.Is(err, packet.ErrGzip), "%v", err)
		case wantErr != nil:
			require.ErrorIs(t, err, packet.ErrGzip, "the standard library says %v", wantErr)
			require.NotErrorIs(t, err, io.EOF)
		default:
			require.NoError(t, err)
			require.True(t, bytes.Equal(want, got))
		}
	})
}
