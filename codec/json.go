package codec

import (
	jsoniter "github.com/json-iterator/go"
)

// Name and wire id of the json codec.
const (
	NameJSON = "json"
	IdJSON   = 'j'
)

// jsonAPI follows encoding/json but for what only costs time on a wire: HTML
// characters are not escaped, map keys are not sorted, and invalid UTF-8 in
// strings goes out as it is. An invalid json.RawMessage is sent as null.
var jsonAPI = jsoniter.Config{ValidateJsonRawMessage: true}.Froze()

type jsonCodec struct{}

func (jsonCodec) Id() byte     { return IdJSON }
func (jsonCodec) Name() string { return NameJSON }

func (jsonCodec) Marshal(v interface{}) ([]byte, error) {
	return jsonAPI.Marshal(v)
}

// AppendMarshal writes into dst itself: the stream is lent dst as its buffer
// and gives it back, so that the pool never sees the caller's memory.
func (jsonCodec) AppendMarshal(dst []byte, v interface{}) ([]byte, error) {
	s := jsonAPI.BorrowStream(nil)
	own := s.Buffer()
	s.SetBuffer(dst)
	defer func() {
		s.SetBuffer(own[:0])
		s.Error = nil
		jsonAPI.ReturnStream(s)
	}()
	s.WriteVal(v)
	if s.Error != nil {
		return dst, s.Error
	}
	return s.Buffer(), nil
}

func (jsonCodec) Unmarshal(data []byte, v interface{}) error {
	return jsonAPI.Unmarshal(data, v)
}
