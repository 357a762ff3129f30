package wiretest

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
)

// This file is the whole of the second implementation. It shares nothing with
// the packages under test but the description of the format:
//
//	HeaderLength uint32 | HeaderCodecId uint8 | Header | BodyLength uint32 | BodyCodecId uint8 | Body

// Codec ids.
const (
	idJSON     = byte('j')
	idProtobuf = byte('p')
	idString   = byte('s')
)

// Packet types.
const (
	typePull   = int32(1)
	typeReply  = int32(2)
	typeGoAway = int32(5)
	typePush   = int32(3)
)

// Default limits of a peer.
const (
	maxHeader = 64 << 10
	maxBody   = 16 << 20
)

// gzipLevels are all values of the header's gzip that mean something.
var gzipLevels = []int32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, -1, -2}

// header is the header of a packet.
type header struct {
	ID         string `json:"id,omitempty"`
	Type       int32  `json:"type,omitempty"`
	URI        string `json:"uri,omitempty"`
	Gzip       int32  `json:"gzip,omitempty"`
	StatusCode int32  `json:"status_code,omitempty"`
	Status     string `json:"status,omitempty"`
	Load       int32  `json:"load,omitempty"`
	QueueDelay int32  `json:"queue_delay,omitempty"`
}

// frame is one packet.
type frame struct {
	headerCodec byte
	header      header
	rawHeader   []byte // the header's bytes; set when the frame was read
	body        []byte // the codec id, then the body as it is on the wire; nil for none
}

// encode returns the frame's bytes.
func (f frame) encode() []byte {
	var h []byte
	switch f.headerCodec {
	case idJSON:
		h, _ = json.Marshal(f.header) // a struct of strings and numbers cannot fail
	case idProtobuf:
		h = protobufHeader(f.header)
	default:
		panic(fmt.Sprintf("no header codec %q", f.headerCodec))
	}
	return rawFrame(f.headerCodec, h, f.body)
}

// rawFrame frames a header and a body of any bytes. The body begins with its
// codec id; an empty one means no body.
func rawFrame(headerCodec byte, h, body []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(1+len(h)))
	b = append(b, headerCodec)
	b = append(b, h...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	return append(b, body...)
}

func protobufHeader(h header) []byte {
	var b []byte
	str := func(n protowire.Number, s string) {
		if s != "" {
			b = protowire.AppendTag(b, n, protowire.BytesType)
			b = protowire.AppendString(b, s)
		}
	}
	num := func(n protowire.Number, v int32) {
		if v != 0 {
			b = protowire.AppendTag(b, n, protowire.VarintType)
			b = protowire.AppendVarint(b, uint64(int64(v)))
		}
	}
	str(1, h.ID)
	num(2, h.Type)
	str(3, h.URI)
	num(4, h.Gzip)
	num(5, h.StatusCode)
	str(6, h.Status)
	num(10, h.Load)
	num(11, h.QueueDelay)
	return b
}

func parseProtobufHeader(b []byte) (header, error) {
	var h header
	strs := map[protowire.Number]*string{1: &h.ID, 3: &h.URI, 6: &h.Status}
	nums := map[protowire.Number]*int32{2: &h.Type, 4: &h.Gzip, 5: &h.StatusCode, 10: &h.Load,
		11: &h.QueueDelay}
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return h, protowire.ParseError(n)
		}
		b = b[n:]
		switch {
		case strs[num] != nil && typ == protowire.BytesType:
			*strs[num], n = protowire.ConsumeString(b)
		case nums[num] != nil && typ == protowire.VarintType:
			var v uint64
			v, n = protowire.ConsumeVarint(b)
			*nums[num] = int32(v)
		case num <= 6:
			return h, fmt.Errorf("field %d has wire type %d", num, typ)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return h, protowire.ParseError(n)
		}
		b = b[n:]
	}
	return h, nil
}

// readFrame reads one frame. The error is io.EOF where the stream ends between
// two frames.
func readFrame(r io.Reader) (frame, error) {
	var f frame
	headerLength, err := readLength(r, maxHeader)
	if err != nil {
		return f, err
	}
	if headerLength == 0 {
		return f, errors.New("header length is 0")
	}
	b := make([]byte, headerLength)
	if _, err := io.ReadFull(r, b); err != nil {
		return f, fmt.Errorf("header: %w", noEOF(err))
	}
	f.headerCodec, f.rawHeader = b[0], b[1:]
	switch f.headerCodec {
	case idJSON:
		err = json.Unmarshal(f.rawHeader, &f.header)
	case idProtobuf:
		f.header, err = parseProtobufHeader(f.rawHeader)
	default:
		err = errors.New("unknown codec")
	}
	if err != nil {
		return f, fmt.Errorf("header %q in codec %q: %w", f.rawHeader, f.headerCodec, err)
	}
	bodyLength, err := readLength(r, maxBody)
	if err != nil {
		return f, fmt.Errorf("body length: %w", noEOF(err))
	}
	if bodyLength > 0 {
		f.body = make([]byte, bodyLength)
		if _, err := io.ReadFull(r, f.body); err != nil {
			return f, fmt.Errorf("body: %w", noEOF(err))
		}
	}
	return f, nil
}

func readLength(r io.Reader, limit uint32) (uint32, error) {
	var b [4]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, err
	}
	n := binary.BigEndian.Uint32(b[:])
	if n > limit {
		return 0, fmt.Errorf("length %d exceeds %d", n, limit)
	}
	return n, nil
}

// noEOF keeps an end inside a frame apart from one between frames.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// withBody returns the frame with a body, compressed as its header says.
func (f frame) withBody(codecID byte, plain []byte) frame {
	if f.header.Gzip != 0 {
		plain = compress(int(f.header.Gzip), plain)
	}
	f.body = append([]byte{codecID}, plain...)
	return f
}

// plain returns the frame's body without its codec id, decompressed.
func (f frame) plain(t *testing.T) []byte {
	t.Helper()
	require.NotEmpty(t, f.body, "a body is expected")
	if f.header.Gzip == 0 {
		return f.body[1:]
	}
	r, err := gzip.NewReader(bytes.NewReader(f.body[1:]))
	require.NoError(t, err)
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	return b
}

func compress(level int, plain []byte) []byte {
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, level)
	if err != nil {
		panic(err) // only a mistake in a test can ask for a level that there is not
	}
	// Neither can fail on a bytes.Buffer.
	_, _ = w.Write(plain)
	_ = w.Close()
	return buf.Bytes()
}

// stringValue encodes the message {string value = 1;}.
func stringValue(s string) []byte {
	b := protowire.AppendTag(nil, 1, protowire.BytesType)
	return protowire.AppendString(b, s)
}

// parseStringValue decodes the message {string value = 1;}.
func parseStringValue(t *testing.T, b []byte) string {
	t.Helper()
	var s string
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		require.NoError(t, protowire.ParseError(min(n, 0)))
		require.Equal(t, protowire.Number(1), num)
		require.Equal(t, protowire.BytesType, typ)
		b = b[n:]
		s, n = protowire.ConsumeString(b)
		require.NoError(t, protowire.ParseError(min(n, 0)))
		b = b[n:]
	}
	return s
}
