package packet

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
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
	Timeout    int64  `json:"timeout,omitempty"`

	Meta   map[string]string `json:"meta,omitempty"`
	NotRun bool              `json:"not_run,omitempty"`

	Load       int32 `json:"load,omitempty"`
	QueueDelay int32 `json:"queue_delay,omitempty"`
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
	fieldTimeout    protowire.Number = 7
	fieldMeta       protowire.Number = 8
	fieldNotRun     protowire.Number = 9
	fieldLoad       protowire.Number = 10
	fieldQueueDelay protowire.Number = 11

	// Those of an entry of meta.
	fieldKey   protowire.Number = 1
	fieldValue protowire.Number = 2
)

// AppendHeader appends h, without its codec id, in the named codec. json and
// protobuf are written as PROTOCOL says; another registered codec is handed the
// *Header itself. On an error dst comes back as it was.
func AppendHeader(dst []byte, c codec.Codec, h *Header) ([]byte, error) {
	for _, s := range [...]string{h.Id, h.Uri, h.Status} {
		if !utf8.ValidString(s) {
			return dst, fmt.Errorf("packet: encoding header: %w in the id, the URI or the status", errUTF8)
		}
	}
	if len(h.Meta) > 0 {
		if err := checkMeta(h.Meta); err != nil {
			return dst, err
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

// maxMeta bounds the pairs of metadata in a header: in memory each takes much more than
// its texts.
const maxMeta = 256

var errMeta = fmt.Errorf("more than %d pairs of metadata", maxMeta)

func checkMeta(meta map[string]string) error {
	if len(meta) > maxMeta {
		return fmt.Errorf("packet: encoding header: %w", errMeta)
	}
	for k, v := range meta {
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return fmt.Errorf("packet: encoding header: %w in %.100q", errUTF8, k)
		}
	}
	return nil
}

// DecodeHeader decodes b, a header without its codec id, into h, replacing all
// of it. It keeps no part of b. The error wraps [ErrHeader].
func DecodeHeader(id byte, b []byte, h *Header) error {
	*h = Header{}
	var err error
	switch id {
	case codec.IdProtobuf:
		var v HeaderView
		err = v.decodeProto(b)
		v.CopyTo(h)
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

// A HeaderView is a header whose texts are, where the codec allows it, still
// those bytes that it was decoded from, so that nothing is allocated for it. It
// is for readers that look at a header once and keep little of it; it is valid
// as long as nobody changes the bytes, and is not safe for concurrent use.
type HeaderView struct {
	// Codec is the name of the header's codec.
	Codec string
	// Length counts the header and its codec id, in bytes.
	Length int64

	// These are the fields of [Header].
	Id, Uri, Status        []byte
	Type, Gzip, StatusCode int32
	Load, QueueDelay       int32
	NotRun                 bool
	Timeout                int64
	// Meta is a map of its own, nil if there is nothing in it.
	Meta map[string]string
}

// Decode decodes b, the codec id and the header behind it, replacing all of v.
// The error wraps [ErrHeader].
func (v *HeaderView) Decode(b []byte) error {
	if len(b) == 0 {
		return fmt.Errorf("packet: %w: no codec id", ErrHeader)
	}
	*v = HeaderView{Length: int64(len(b))}
	if b[0] == codec.IdProtobuf {
		v.Codec = codec.NameProtobuf
		if err := v.decodeProto(b[1:]); err != nil {
			return fmt.Errorf("packet: %w: %w", ErrHeader, err)
		}
		return nil
	}
	c, err := codec.GetById(b[0])
	if err != nil {
		return fmt.Errorf("packet: %w: %w", ErrHeader, err)
	}
	v.Codec = c.Name()
	var h Header
	err = DecodeHeader(b[0], b[1:], &h)
	v.Id, v.Uri, v.Status = []byte(h.Id), []byte(h.Uri), []byte(h.Status)
	v.Type, v.Gzip, v.StatusCode, v.Timeout, v.NotRun, v.Meta = h.Type, h.Gzip, h.StatusCode, h.Timeout,
		h.NotRun, h.Meta
	v.Load, v.QueueDelay = h.Load, h.QueueDelay
	return err
}

// CopyTo makes h the same header, with texts of its own that are cut from one
// allocation.
func (v *HeaderView) CopyTo(h *Header) {
	*h = Header{Type: v.Type, Gzip: v.Gzip, StatusCode: v.StatusCode, Timeout: v.Timeout, NotRun: v.NotRun,
		Meta: v.Meta, Load: v.Load, QueueDelay: v.QueueDelay}
	n := len(v.Id) + len(v.Uri) + len(v.Status)
	if n == 0 {
		return
	}
	var b strings.Builder
	b.Grow(n)
	b.Write(v.Id)
	b.Write(v.Uri)
	b.Write(v.Status)
	s := b.String()
	h.Id, s = s[:len(v.Id)], s[len(v.Id):]
	h.Uri, h.Status = s[:len(v.Uri)], s[len(v.Uri):]
}

// CheckHeaderCodec returns an error unless the named codec can carry a header.
func CheckHeaderCodec(name string) error {
	c, err := codec.GetByName(name)
	if err != nil {
		return err
	}
	want := Header{Id: "1", Type: TypePull, Uri: "/a", Gzip: 5, StatusCode: 200, Status: "OK",
		Timeout: 1500, NotRun: true, Meta: map[string]string{"k": "v"}, Load: 3, QueueDelay: 250}
	b, err := AppendHeader(nil, c, &want)
	if err != nil {
		return err
	}
	var got Header
	if err := DecodeHeader(c.Id(), b, &got); err != nil {
		return err
	}
	if !reflect.DeepEqual(got, want) {
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
	if len(h.Meta) > maxMeta {
		return errMeta
	}
	if fast == nil {
		return nil
	}
	*h = Header{}
	// The errors below say nothing of what was received, where a token may be.
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(b, &fields); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return fmt.Errorf("no valid JSON at byte %d of %d", syntax.Offset, len(b))
		}
		return errors.New("no JSON object")
	}
	for name, to := range map[string]interface{}{
		"id": &h.Id, "type": &h.Type, "uri": &h.Uri, "gzip": &h.Gzip, "status_code": &h.StatusCode,
		"status":  &h.Status,
		"timeout": &h.Timeout, "meta": &h.Meta, "not_run": &h.NotRun,
		"load": &h.Load, "queue_delay": &h.QueueDelay,
	} {
		if v, ok := fields[name]; ok && json.Unmarshal(v, to) != nil {
			return fmt.Errorf("the value of %q is not a %T", name, reflect.ValueOf(to).Elem().Interface())
		}
	}
	if len(h.Meta) > maxMeta {
		return errMeta
	}
	return nil
}

func appendProtoHeader(dst []byte, h *Header) []byte {
	dst = appendString(dst, fieldId, h.Id)
	dst = appendInt32(dst, fieldType, h.Type)
	dst = appendString(dst, fieldUri, h.Uri)
	dst = appendInt32(dst, fieldGzip, h.Gzip)
	dst = appendInt32(dst, fieldStatusCode, h.StatusCode)
	dst = appendString(dst, fieldStatus, h.Status)
	if h.Timeout != 0 {
		dst = append(dst, byte(fieldTimeout)<<3|byte(protowire.VarintType))
		dst = protowire.AppendVarint(dst, uint64(h.Timeout))
	}
	if len(h.Meta) > 0 {
		dst = appendMeta(dst, h.Meta)
	}
	if h.NotRun {
		dst = append(dst, byte(fieldNotRun)<<3|byte(protowire.VarintType), 1)
	}
	dst = appendInt32(dst, fieldLoad, h.Load)
	return appendInt32(dst, fieldQueueDelay, h.QueueDelay)
}

// appendMeta writes the entries in the order of their keys.
func appendMeta(dst []byte, meta map[string]string) []byte {
	for _, k := range slices.Sorted(maps.Keys(meta)) {
		v := meta[k]
		n := protowire.SizeTag(fieldKey) + protowire.SizeBytes(len(k)) + protowire.SizeTag(fieldValue) +
			protowire.SizeBytes(len(v))
		dst = protowire.AppendTag(dst, fieldMeta, protowire.BytesType)
		dst = protowire.AppendVarint(dst, uint64(n))
		dst = protowire.AppendTag(dst, fieldKey, protowire.BytesType)
		dst = protowire.AppendString(dst, k)
		dst = protowire.AppendTag(dst, fieldValue, protowire.BytesType)
		dst = protowire.AppendString(dst, v)
	}
	return dst
}

// addMeta decodes one entry, in which what is absent is empty.
func (v *HeaderView) addMeta(b []byte) error {
	var key, value []byte
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if num > protowire.MaxValidNumber {
			return errFieldNumber
		}
		b = b[n:]
		if (num == fieldKey || num == fieldValue) && typ == protowire.BytesType {
			var text []byte
			if text, n = protowire.ConsumeBytes(b); n < 0 {
				return protowire.ParseError(n)
			}
			if !utf8.Valid(text) {
				return fmt.Errorf("%w in field %d", errUTF8, fieldMeta)
			}
			if num == fieldKey {
				key = text
			} else {
				value = text
			}
		} else if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
	}
	if v.Meta == nil {
		v.Meta = make(map[string]string)
	}
	if len(v.Meta) >= maxMeta {
		return errMeta
	}
	v.Meta[string(key)] = string(value)
	return nil
}

func appendString(dst []byte, num protowire.Number, s string) []byte {
	if s == "" {
		return dst
	}
	if len(s) < 0x80 { // tag and length are a byte each
		dst = append(dst, byte(num)<<3|byte(protowire.BytesType), byte(len(s)))
		return append(dst, s...)
	}
	dst = protowire.AppendTag(dst, num, protowire.BytesType)
	return protowire.AppendString(dst, s)
}

func appendInt32(dst []byte, num protowire.Number, n int32) []byte {
	if n == 0 {
		return dst
	}
	dst = append(dst, byte(num)<<3|byte(protowire.VarintType))
	if 0 < n && n < 0x80 {
		return append(dst, byte(n))
	}
	return protowire.AppendVarint(dst, uint64(int64(n)))
}

// decodeProto does what generated code does for header.proto.
func (v *HeaderView) decodeProto(b []byte) error {
	for len(b) > 0 {
		num, typ, n := protowire.Number(b[0]>>3), protowire.Type(b[0]&7), 1
		if b[0] >= 0x80 || num == 0 { // a tag of several bytes, or none
			if num, typ, n = protowire.ConsumeTag(b); n < 0 {
				return protowire.ParseError(n)
			}
			if num > protowire.MaxValidNumber { // ConsumeTag lets these pass
				return errFieldNumber
			}
		}
		b = b[n:]
		var text *[]byte
		var number *int32
		switch num {
		case fieldId:
			text = &v.Id
		case fieldType:
			number = &v.Type
		case fieldUri:
			text = &v.Uri
		case fieldGzip:
			number = &v.Gzip
		case fieldStatusCode:
			number = &v.StatusCode
		case fieldStatus:
			text = &v.Status
		case fieldLoad:
			number = &v.Load
		case fieldQueueDelay:
			number = &v.QueueDelay
		}
		switch {
		case text != nil && typ == protowire.BytesType:
			if *text, n = protowire.ConsumeBytes(b); n < 0 {
				return protowire.ParseError(n)
			}
			if !utf8.Valid(*text) {
				return fmt.Errorf("%w in field %d", errUTF8, num)
			}
		case (num == fieldNotRun || num == fieldTimeout) && typ == protowire.VarintType:
			var x uint64
			if x, n = protowire.ConsumeVarint(b); n < 0 {
				return protowire.ParseError(n)
			}
			if num == fieldNotRun {
				v.NotRun = x != 0
			} else {
				v.Timeout = int64(x)
			}
		case num == fieldMeta && typ == protowire.BytesType:
			var entry []byte
			if entry, n = protowire.ConsumeBytes(b); n < 0 {
				return protowire.ParseError(n)
			}
			if err := v.addMeta(entry); err != nil {
				return err
			}
		case number != nil && typ == protowire.VarintType:
			var x uint64
			if x, n = protowire.ConsumeVarint(b); n < 0 {
				return protowire.ParseError(n)
			}
			*number = int32(x)
		default: // a field of another version, or a known one of another type
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return protowire.ParseError(n)
			}
		}
		b = b[n:]
	}
	return nil
}
