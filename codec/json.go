package codec

import (
	"bytes"
	"fmt"

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

func (c jsonCodec) UnmarshalDepth(data []byte, v interface{}, depth int) error {
	if tooDeep(data, depth) {
		return fmt.Errorf("nested deeper than %d", depth)
	}
	return c.Unmarshal(data, v)
}

// tooDeep reports whether more than depth arrays and objects in data are open at
// once. It need not be JSON.
func tooDeep(data []byte, depth int) bool {
	// Nearly always there are not even so many of them.
	if len(data) <= depth || bytes.Count(data, []byte("["))+bytes.Count(data, []byte("{")) <= depth {
		return false
	}
	open, text := 0, false
	for i := 0; i < len(data); i++ {
		switch b := data[i]; {
		case text && b == '\\':
			i++ // whatever is escaped does not end the text
		case b == '"':
			text = !text
		case text:
		case b == '[' || b == '{':
			if open++; open > depth {
				return true
			}
		case b == ']' || b == '}':
			open--
		}
	}
	return false
}
