package codec

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/henrylee2cn/teleport/internal/bufpool"
)

// Name and wire id of the protobuf codec.
const (
	NameProtobuf = "protobuf"
	IdProtobuf   = 'p'
)

var errNotProto error = &toldError{"not a protobuf message", "a protobuf message is not what is expected"}

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
	return nil, errNotProto
}

func (c protobufCodec) Marshal(v interface{}) ([]byte, error) {
	return c.AppendMarshal(nil, v)
}

func (protobufCodec) AppendMarshal(dst []byte, v interface{}) ([]byte, error) {
	m, err := protoMessage(v)
	if err != nil {
		return dst, err
	}
	if s := protoSizeOf(v); s != nil && s.selfNested {
		if err := checkProtoNesting(m.ProtoReflect(), maxNesting); err != nil {
			return dst, err
		}
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

// checkProtoNesting is checkNesting for messages.
func checkProtoNesting(m protoreflect.Message, left int) (err error) {
	if left < 0 {
		return fmt.Errorf("nested deeper than %d: does it contain itself?", maxNesting)
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, of protoreflect.Value) bool {
					err = checkProtoNesting(of.Message(), left-1)
					return err == nil
				})
			}
		case fd.Message() == nil:
		case fd.IsList():
			for i := 0; i < v.List().Len() && err == nil; i++ {
				err = checkProtoNesting(v.List().Get(i).Message(), left-1)
			}
		default:
			err = checkProtoNesting(v.Message(), left-1)
		}
		return err == nil
	})
	return err
}
