package socket_test

import (
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// FuzzReadPacket reads a stream packet by packet, as the bytes come, and compares
// with package packet, which has them all at once.
func FuzzReadPacket(f *testing.F) {
	gzipped := message("3", "some text, some text, some text")
	gzipped.Header.Gzip = 9
	good := append(frame(f, message("1", "text")), frame(f, gzipped)...)
	good = append(good, frame(f, &packet.Packet{HeaderCodec: "json", Header: &packet.Header{Id: "2"},
		Body: 1})...)
	for chunk := range uint8(4) {
		f.Add(good, chunk)
		f.Add(good[:len(good)-1], chunk)
		f.Add([]byte(nil), chunk)
		f.Add([]byte("\x00\x00\x00\x00"), chunk)
		f.Add([]byte("\x00\x00\x00\x01p\x00\x01\x00\x00sx"), chunk)
		f.Add(append([]byte("\x00\x00\x00\x01p\x00\x00\x00\x02\xeex\x00\x00\x00\x02p\x00\x00\x00\x00\x00"),
			good...), chunk)
		f.Add(append(frame(f, message("4", string(make([]byte, 2000)))), good...), chunk)
	}
	limits := packet.Limits{Header: 500, Body: 1000, Inflated: 1000}
	newBody := func(*packet.Header) interface{} { return new(interface{}) }
	f.Fuzz(func(t *testing.T, stream []byte, chunk uint8) {
		ca, cb := pipe.New(pipe.Options{Chunk: int(chunk), Buffer: len(stream) + 1})
		send(t, ca, stream)
		require.NoError(t, ca.Close())
		b := socket.New(cb, socket.Options{Limits: limits})
		defer b.Close()
		for rest := stream; ; {
			var got, want packet.Packet
			err := b.ReadPacket(&got, newBody)
			n, wantErr := packet.Parse(rest, &want, newBody, limits)
			if n > 0 && want.Header.Type == packet.TypePart { // which FuzzParts is for
				return
			}
			switch {
			case n == 0 && errors.Is(wantErr, packet.ErrTooLarge) && !errors.Is(wantErr, packet.ErrHeader):
				// A body that is too large, and cut off besides.
				require.ErrorIs(t, err, packet.ErrTooLarge)
				require.False(t, socket.Fatal(err))
				err = b.ReadPacket(&got, newBody)
				require.ErrorIs(t, err, io.ErrUnexpectedEOF)
				require.True(t, socket.Fatal(err))
				return
			case n == 0:
				require.Error(t, wantErr)
				require.True(t, socket.Fatal(err), "%v", err)
				require.Equal(t, len(rest) == 0, err == io.EOF, "%v", err)
				return
			case wantErr != nil:
				require.Error(t, err)
				require.Equal(t, wantErr.Error(), err.Error())
				require.False(t, socket.Fatal(err), "%v", err)
				require.Equal(t, want.Header, got.Header)
			default:
				require.NoError(t, err)
				require.Equal(t, want, got)
			}
			rest = rest[n:]
		}
	})
}
