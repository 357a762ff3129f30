package codec

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"

	"github.com/henrylee2cn/teleport/internal/bufpool"
)

// Name and wire id of the protobuf codec.
const (
	NameProtobuf = "protobuf"
	IdProtobuf   = 'p'
)

// protobufCodec takes messages of both Go APIs: google.golang.org/protobuf, and
// the older github.com/golang/protobuf with its three-method interface.
type protobufCodec struct{}

func (protobufCodec) Id() byte     { return IdProtobuf }
func (protobufCodec) Name() string { return NameProtobuf }

func protoMessage(v interface{}) (proto.Message, error) {
	switch m := v.(type) {
	case proto.Message:
		return m, nil
	case protoadapt.MessageV1:
		return protoadapt.MessageV2Of(m), nil
	}
	return nil, fmt.Errorf("not a protobuf message")
}

func (c protobufCodec) Marshal(v interface{}) ([]byte, error) {
	return c.AppendMarshal(nil, v)
}

func (protobufCodec) AppendMarshal(dst []byte, v interface{}) ([]byte, error) {
	m, err := protoMessage(v)
	if err != nil {
		return dst, err
	}
	dst = bufpool.Grow(dst, proto.Size(m))
	return proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(dst, m)
}

func (c protobufCodec) Unmarshal(data []byte, v interface{}) error {
	return c.UnmarshalDepth(data, v, 0)
}

func (protobufCodec) UnmarshalDepth(data []byte, v interface{}, depth int) error {
	m, err := protoMessage(v)
	if err != nil {
		return err
	}
	// As proto.Unmarshal does, by a shorter way.
	proto.Reset(m)
	return proto.UnmarshalOptions{Merge: true, RecursionLimit: depth}.Unmarshal(data, m)
}
