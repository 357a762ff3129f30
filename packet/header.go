package packet

import (
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/henrylee2cn/teleport/codec"

	jsoniter "github.com/json-iterator/go"
)

// wireJSON is Header with the names that json headers have on the wire.
type wireJSON struct {
	Id         string `json:"id,omitempty"`
	Type       int32  `json:"type,omitempty"`
	Uri        string `json:"uri,omitempty"`
	Gzip       int32  `json:"gzip,omitempty"`
	StatusCode int32  `json:"status_code,omitempty"`
	Status     string `json:"status,omitempty"`
}

var headerJSON = jsoniter.Config{CaseSensitive: true}.Froze()

// Field numbers of header.proto.
const (
	fieldId         protowire.Number = 1
	fieldType       protowire.Number = 2
	fieldUri        protowire.Number = 3
	fieldGzip       protowire.Number = 4
	fieldStatusCode protowire.Number = 5
	fieldStatus     protowire.Number = 6
)

// AppendHeader appends h, without its codec id, in the named codec. json and
// protobuf are written as PROTOCOL says; another registered codec is handed the
// *Header itself. On an error dst comes back as it was.
func AppendHeader(dst []byte, c codec.Codec, h *Header) ([]byte, error) {
	for _, s := range [...]string{h.Id, h.Uri, h.Status} {
		if !utf8.ValidString(s) {
			return dst, fmt.Errorf("packet: encoding header: %w in %q", errUTF8, s)
		}
	}
	switch c.Id() {
	case codec.IdProtobuf:
		return appendProtoHeader(dst, h), nil
	case codec.IdJSON:
		b, err := headerJSON.Marshal((*wireJSON)(h))
		if err != nil {
			return dst, fmt.Errorf("packet: encoding header: %w", err)
		}
		return append(dst, b...), nil
	}
	return codec.Append(c, dst, h)
}

// DecodeHeader decodes b, a header without its codec id, into h, replacing all
// of it. It keeps no part of b. The error wraps [ErrHeader].
func DecodeHeader(id byte, b []byte, h *Header) error {
	*h = Header{}
	var err error
	switch id {
	case codec.IdProtobuf:
		err = decodeProtoHeader(b, h)
	case codec.IdJSON:
		err = decodeJSONHeader(b, h)
	default:
		var c codec.Codec
		if c, err = codec.GetById(id); err == nil {
			err = codec.Decode(c, b, h)
		}
	}
	if err != nil {
		return fmt.Errorf("packet: %w: %w", ErrHeader, err)
	}
	return nil
}

// CheckHeaderCodec returns an error unless the named codec can carry a header.
func CheckHeaderCodec(name string) error {
	c, err := codec.GetByName(name)
	if err != nil {
		return err
	}
	want := Header{Id: "1", Type: TypePull, Uri: "/a", Gzip: 5, StatusCode: 200, Status: "OK"}
	b, err := AppendHeader(nil, c, &want)
	if err != nil {
		return err
	}
	var got Header
	if err := DecodeHeader(c.Id(), b, &got); err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("packet: codec %s does not carry a header: %+v came back as %+v", name, want, got)
	}
	return nil
}

var (
	errUTF8        = errors.New("invalid UTF-8")
	errFieldNumber = errors.New("invalid field number")
)

// decodeJSONHeader passes over fields that it does not know, and over numbers in
// them that no Go type holds: the fast decoder refuses those, the other does not.
func decodeJSONHeader(b []byte, h *Header) error {
	if !utf8.Valid(b) {
		return errUTF8
	}
	fast := headerJSON.Unmarshal(b, (*wireJSON)(h))
	if fast == nil {
		return nil
	}
	*h = Header{}
	var fields map[string]json.RawMessage
	if json.Unmarshal(b, &fields) != nil {
		return fast
	}
	for name, to := range map[string]interface{}{
		"id": &h.Id, "type": &h.Type, "uri": &h.Uri, "gzip": &h.Gzip, "status_code": &h.StatusCode, "status": &h.Status,
	} {
		if v, ok := fields[name]; ok && json.Unmarshal(v, to) != nil {
			return fast
		}
	}
	return nil
}

func appendProtoHeader(dst []byte, h *Header) []byte {
	dst = appendString(dst, fieldId, h.Id)
	dst = appendInt32(dst, fieldType, h.Type)
	dst = appendString(dst, fieldUri, h.Uri)
	dst = appendInt32(dst, fieldGzip, h.Gzip)
	dst = appendInt32(dst, fieldStatusCode, h.StatusCode)
	return appendString(dst, fieldStatus, h.Status)
}

func appendString(dst []byte, num protowire.Number, s string) []byte {
	if s == "" {
		return dst
	}
	dst = protowire.AppendTag(dst, num, protowire.BytesType)
	return protowire.AppendString(dst, s)
}

func appendInt32(dst []byte, num protowire.Number, n int32) []byte {
	if n == 0 {
		return dst
	}
	dst = protowire.AppendTag(dst, num, protowire.VarintType)
	return protowire.AppendVarint(dst, uint64(int64(n)))
}

// decodeProtoHeader does what generated code does for header.proto, with one
// allocation for all strings: they are cut from one copy of b.
func decodeProtoHeader(b []byte, h *Header) error {
	var all string
	for at := 0; at < len(b); {
		num, typ, n := protowire.ConsumeTag(b[at:])
		if n < 0 {
			return protowire.ParseError(n)
		}
		if num > protowire.MaxValidNumber { // ConsumeTag lets these pass
			return errFieldNumber
		}
		at += n
		switch {
		case typ == protowire.BytesType && (num == fieldId || num == fieldUri || num == fieldStatus):
			v, n := protowire.ConsumeBytes(b[at:])
			if n < 0 {
				return protowire.ParseError(n)
			}
			at += n
			if !utf8.Valid(v) {
				return fmt.Errorf("%w in field %d", errUTF8, num)
			}
			if all == "" {
				all = string(b)
			}
			s := all[at-len(v) : at]
			switch num {
			case fieldId:
				h.Id = s
			case fieldUri:
				h.Uri = s
			default:
				h.Status = s
			}
		case typ == protowire.VarintType && (num == fieldType || num == fieldGzip || num == fieldStatusCode):
			v, n := protowire.ConsumeVarint(b[at:])
			if n < 0 {
				return protowire.ParseError(n)
			}
			at += n
			switch num {
			case fieldType:
				h.Type = int32(v)
			case fieldGzip:
				h.Gzip = int32(v)
			default:
				h.StatusCode = int32(v)
			}
		default: // a field of another version, or a known one of another type
			n := protowire.ConsumeFieldValue(num, typ, b[at:])
			if n < 0 {
				return protowire.ParseError(n)
			}
			at += n
		}
	}
	return nil
}
