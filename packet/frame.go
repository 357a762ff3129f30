package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/internal/bufpool"
)

// LengthSize is the size in bytes of each of the two lengths in a frame.
const LengthSize = 4

// Append appends p to dst as one frame and sets p's three lengths. An empty
// HeaderCodec stands for protobuf and an empty BodyCodec for json. Either the
// whole frame is appended or, on an error, dst comes back as it was: errors are
// codec.ErrUnknown, [ErrGzip], [ErrTooLarge] or the codec's own.
func Append(dst []byte, p *Packet, lim Limits) ([]byte, error) {
	start := len(dst)
	if p.Header == nil {
		return dst, errors.New("packet: Header is nil")
	}
	hc, err := codecByName(p.HeaderCodec, codec.NameProtobuf)
	if err != nil {
		return dst, fmt.Errorf("packet: header: %w", err)
	}
	out := append(dst, 0, 0, 0, 0, hc.Id())
	if out, err = AppendHeader(out, hc, p.Header); err != nil {
		return dst, err
	}
	hlen := int64(len(out) - start - LengthSize)
	if hlen > lim.header() {
		return dst, fmt.Errorf("packet: %w: header length %d exceeds limit %d", ErrTooLarge, hlen,
			lim.header())
	}
	binary.BigEndian.PutUint32(out[start:], uint32(hlen))

	bodyAt := len(out)
	out = append(out, 0, 0, 0, 0)
	if out, err = appendBody(out, p, lim); err != nil {
		return dst, err
	}
	blen := int64(len(out) - bodyAt - LengthSize)
	if blen > lim.body() {
		return dst, fmt.Errorf("packet: %w: body length %d exceeds limit %d", ErrTooLarge, blen, lim.body())
	}
	binary.BigEndian.PutUint32(out[bodyAt:], uint32(blen))
	p.HeaderLength, p.BodyLength, p.Length = hlen, blen, hlen+blen
	return out, nil
}

// appendBody appends the codec id and the encoded body, or nothing for none.
func appendBody(dst []byte, p *Packet, lim Limits) ([]byte, error) {
	level := p.Header.Gzip
	if err := CheckGzip(level); err != nil {
		return dst, err
	}
	switch b := p.Body.(type) {
	case nil:
		return dst, nil
	case RawBody:
		return append(bufpool.Grow(dst, len(b)), b...), nil
	case *RawBody:
		if b == nil {
			return dst, nil
		}
		return append(bufpool.Grow(dst, len(*b)), *b...), nil
	}
	c, err := codecByName(p.BodyCodec, codec.NameJSON)
	if err != nil {
		return dst, fmt.Errorf("packet: body: %w", err)
	}
	dst = append(dst, c.Id())
	if level == 0 {
		return codec.Append(c, dst, p.Body)
	}
	plain := bufpool.Get()
	defer bufpool.Put(plain)
	if plain.B, err = codec.Append(c, plain.B, p.Body); err != nil {
		return dst, err
	}
	if n := int64(len(plain.B)); n > lim.inflated() {
		return dst, fmt.Errorf("packet: %w: body length %d before compression exceeds limit %d",
			ErrTooLarge, n, lim.inflated())
	}
	return appendGzip(dst, plain.B, level)
}

func codecByName(name, def string) (codec.Codec, error) {
	if name == "" {
		name = def
	}
	return codec.GetByName(name)
}

// Parse reads the frame at the beginning of b into p, the body into what
// newBody returns for the header; a nil newBody, or nil from it, decodes no
// body. It returns how many bytes the frame takes. Where b ends too early the
// error wraps io.ErrUnexpectedEOF. Where the frame can be followed but not its
// body, the returned length is right and the next frame can be read.
func Parse(b []byte, p *Packet, newBody func(*Header) interface{}, lim Limits) (int, error) {
	short := func(what string) error {
		return fmt.Errorf("packet: %w in %s after %d bytes", io.ErrUnexpectedEOF, what, len(b))
	}
	if len(b) < LengthSize {
		return 0, short("header length")
	}
	hlen, err := lim.HeaderLength(b)
	if err != nil {
		return 0, err
	}
	bodyAt := LengthSize + hlen
	if int64(len(b)) < bodyAt {
		return 0, short("header")
	}
	if err := p.ParseHeader(b[LengthSize:bodyAt]); err != nil {
		return 0, err
	}
	if int64(len(b)) < bodyAt+LengthSize {
		return 0, short("body length")
	}
	blen, tooLarge := lim.BodyLength(b[bodyAt:])
	p.Body, p.BodyCodec, p.BodyLength, p.Length = nil, "", blen, hlen+blen
	end := bodyAt + LengthSize + blen
	if int64(len(b)) < end {
		if tooLarge != nil {
			return 0, tooLarge
		}
		return 0, short("body")
	}
	if tooLarge != nil {
		return int(end), tooLarge
	}
	return int(end), p.ParseBody(b[end-blen:end], newBody, lim)
}

// ParseHeader sets p's header, header codec and header length from b: the codec
// id and the header, without the length before them. A p.Header that is there is
// overwritten. The error wraps [ErrHeader].
func (p *Packet) ParseHeader(b []byte) error {
	var v HeaderView
	if err := v.Decode(b); err != nil {
		return err
	}
	p.SetHeader(&v)
	return nil
}

// SetHeader is ParseHeader for a header that is decoded already.
func (p *Packet) SetHeader(v *HeaderView) {
	if p.Header == nil {
		p.Header = new(Header)
	}
	v.CopyTo(p.Header)
	p.HeaderCodec = v.Codec
	p.HeaderLength = v.Length
	p.Length = p.HeaderLength + p.BodyLength
}

// ParseBody sets p's body, body codec and body length from raw: the codec id
// and the body, without the length before them.
func (p *Packet) ParseBody(raw []byte, newBody func(*Header) interface{}, lim Limits) error {
	p.BodyLength = int64(len(raw))
	p.Length = p.HeaderLength + p.BodyLength
	p.Body = nil
	if newBody != nil {
		p.Body = newBody(p.Header)
	}
	var err error
	p.BodyCodec, err = DecodeBody(raw, p.Header.Gzip, p.Body, lim)
	return err
}
