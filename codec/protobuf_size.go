package codec

import (
	"reflect"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
)

// protoSize is what the counting has to know of a message.
type protoSize struct {
	size       int64 // of the Go struct
	fields     map[protowire.Number]*protoField
	perByte    int64                 // the most that a byte becomes, anywhere in the message
	packed     bool                  // there are repeated numbers in it
	selfNested bool                  // it may contain itself
	extensible protoreflect.FullName // its name, if there may be extensions
}

type protoField struct {
	kind    protoreflect.Kind
	message *protoSize // nil if it is none; of a map, that of its entries
	packed  bool       // numbers that may come together
	each    int64      // what one takes, beside what is in it
	first   int64      // what the first takes more; counted for each message
}

// sizeDynamic is what a message takes that has no Go struct of its own, and sizeExtension
// what a field that is not of the message itself does.
const (
	sizeDynamic   = 512
	sizeExtension = 256
	oneofWrapper  = 4 * sizeOfWord
)

var (
	protoSizes   sync.Map // of *protoSize by reflect.Type, of what is decoded as a whole
	dynamicSizes sync.Map // by protoreflect.MessageDescriptor, of messages that have no type of their own
	dynamics     atomic.Int32
)

// maxDynamics is how many of them are kept: there may be no end to them.
const maxDynamics = 1000

// protoSizeOf returns nil for what is no message.
func protoSizeOf(v interface{}) *protoSize {
	t := reflect.TypeOf(v)
	if t == nil {
		return nil
	}
	if s, ok := protoSizes.Load(t); ok {
		return s.(*protoSize)
	}
	m, err := protoMessage(v)
	if err != nil {
		return nil
	}
	if t != dynamicType {
		s, _ := protoSizes.LoadOrStore(t, makeProtoSize(m))
		return s.(*protoSize)
	}
	md := m.ProtoReflect().Descriptor()
	if s, ok := dynamicSizes.Load(md); ok {
		return s.(*protoSize)
	}
	s := makeProtoSize(m)
	if dynamics.Add(1) <= maxDynamics {
		dynamicSizes.Store(md, s)
	}
	return s
}

var dynamicType = reflect.TypeFor[*dynamicpb.Message]()

func makeProtoSize(m proto.Message) *protoSize {
	maker := newProtoMaker()
	s := maker.size(m.ProtoReflect().New())
	s.perByte = maker.perByte()
	s.packed = maker.packed
	return s
}

func newProtoMaker() *protoMaker {
	return &protoMaker{made: make(map[protoreflect.FullName]*protoSize),
		open: make(map[protoreflect.FullName]bool)}
}

type protoMaker struct {
	made   map[protoreflect.FullName]*protoSize
	open   map[protoreflect.FullName]bool
	nested bool // some message contains itself
	packed bool // some message has repeated numbers
}

func (p *protoMaker) size(m protoreflect.Message) *protoSize {
	md := m.Descriptor()
	if s := p.made[md.FullName()]; s != nil {
		p.nested = p.nested || p.open[md.FullName()]
		return s
	}
	s := &protoSize{size: sizeDynamic, fields: make(map[protowire.Number]*protoField)}
	p.made[md.FullName()] = s
	p.open[md.FullName()] = true
	defer func() {
		p.open[md.FullName()] = false
		s.selfNested = p.nested
	}()
	if t := reflect.TypeOf(m.Interface()); t.Kind() == reflect.Pointer && t != dynamicType {
		s.size = allocated(int64(t.Elem().Size()))
	}
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		s.fields[fd.Number()] = p.field(fd, m.NewField(fd))
	}
	if md.ExtensionRanges().Len() > 0 {
		p.nested = true // by way of one, perhaps
		s.extensible = md.FullName()
	}
	return s
}

// field is that of the descriptor, of which empty is a value without anything in it.
func (p *protoMaker) field(fd protoreflect.FieldDescriptor, empty protoreflect.Value) *protoField {
	f := &protoField{kind: fd.Kind()}
	value := sizeOfKind(fd.Kind())
	switch {
	case fd.IsMap():
		key, of := sizeOfKind(fd.MapKey().Kind()), sizeOfKind(fd.MapValue().Kind())
		f.each = mapEntry(key, of)
		f.first = sizeOfMap + mapGroup(key, of)
		f.message = &protoSize{fields: map[protowire.Number]*protoField{
			1: {kind: fd.MapKey().Kind()}, 2: {kind: fd.MapValue().Kind()},
		}}
		if fd.MapValue().Message() != nil {
			of := p.size(empty.Map().NewValue().Message())
			f.message.fields[2].message = of
			f.each += of.size // also if the entry does not have it
		}
	case fd.IsList():
		f.each = inSlice(value)
		if fd.Message() != nil {
			f.message = p.size(empty.List().NewElement().Message())
			f.each += f.message.size
		}
		if f.packed = fd.Message() == nil && value <= sizeOfWord; f.packed {
			f.each = allocated(value)
			p.packed = true
		}
	case fd.Message() != nil:
		f.message = p.size(empty.Message())
		f.each = f.message.size
	case fd.HasPresence():
		f.each = allocated(value)
	}
	if fd.ContainingOneof() != nil {
		f.each += oneofWrapper
	}
	return f
}

var extensions sync.Map // of *protoField by protoreflect.ExtensionType

// extension returns nil for one that is not known, which stays as it is.
func extension(of protoreflect.FullName, number protowire.Number) *protoField {
	xt, err := protoregistry.GlobalTypes.FindExtensionByNumber(of, number)
	if err != nil {
		return nil
	}
	if f, ok := extensions.Load(xt); ok {
		return f.(*protoField)
	}
	f := newProtoMaker().field(xt.TypeDescriptor(), xt.New())
	f.each += sizeExtension
	extensions.Store(xt, f)
	return f
}

func sizeOfKind(k protoreflect.Kind) int64 {
	switch k {
	case protoreflect.BoolKind:
		return 1
	case protoreflect.StringKind:
		return sizeOfString
	case protoreflect.BytesKind:
		return sizeOfSlice
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Uint32Kind, protoreflect.Fixed32Kind,
		protoreflect.Sfixed32Kind,
		protoreflect.FloatKind, protoreflect.EnumKind:
		return 4
	}
	return sizeOfWord
}

// perByte is the most that a byte becomes of what the message is made of.
func (p *protoMaker) perByte() int64 {
	most := int64(0)
	for _, s := range p.made {
		if s.extensible != "" {
			most = max(most, sizeExtension/4)
		}
		for _, f := range s.fields {
			switch {
			case f.kind == protoreflect.StringKind, f.kind == protoreflect.BytesKind, f.message != nil:
				most = max(most, (f.each+f.first+1)/2) // a tag and a length
			default:
				most = max(most, f.each) // packed ones are a byte each
			}
		}
	}
	return most + 3 // for a text in an object of its own, and what is unknown and kept
}

func (protobufCodec) DecodedBound(data []byte, v interface{}) int64 {
	s := protoSizeOf(v)
	if s == nil {
		return int64(len(data))
	}
	n := boundOf(s.size, s.perByte, len(data))
	if s.packed {
		// Numbers that come together, in pieces of three bytes, are copied with all that
		// have come before.
		n = boundOf(n, sizeOfWord*int64(len(data))/18+1, len(data))
	}
	return n
}

func (protobufCodec) DecodedSize(data []byte, v interface{}, most int64) int64 {
	s := protoSizeOf(v)
	if s == nil {
		return int64(len(data))
	}
	c := protoCounter{n: s.size, most: most}
	c.message(s, data, 0, 0)
	return c.n
}

type protoCounter struct{ n, most int64 }

// message counts what the bytes become, as far as they are a message. It returns how many
// they are, to the end of a group if they are in one, negative if they are none.
func (c *protoCounter) message(s *protoSize, b []byte, group protowire.Number, depth int) int {
	if depth > protowire.DefaultRecursionLimit || c.n > c.most {
		return -1
	}
	var begun map[*protoField]int64 // how many there have been, of what it matters for
	all := len(b)
	for len(b) > 0 && c.n <= c.most {
		number, wire, n := protowire.ConsumeTag(b)
		if n < 0 {
			return n
		}
		b = b[n:]
		if wire == protowire.EndGroupType {
			if number != group {
				return -1
			}
			return all - len(b)
		}
		f := s.fields[number]
		if f == nil && s.extensible != "" {
			f = extension(s.extensible, number)
		}
		if f == nil || wire == protowire.StartGroupType && f.message == nil {
			tag := n
			if n = protowire.ConsumeFieldValue(number, wire, b); n < 0 {
				return n
			}
			c.n += 2 * int64(tag+n) // it is kept
			b = b[n:]
			continue
		}
		if f.first > 0 || f.packed {
			if begun == nil {
				begun = make(map[*protoField]int64)
			}
			if begun[f] == 0 {
				c.n += f.first
			}
			begun[f]++
		}
		if f.packed && wire == protowire.BytesType {
			if n = c.numbers(f, b, begun); n < 0 {
				return n
			}
			b = b[n:]
			continue
		}
		if n = c.field(f, number, wire, b, depth); n < 0 {
			return n
		}
		b = b[n:]
	}
	if group != 0 {
		return -1
	}
	return all
}

// field counts one occurrence of a field, behind its tag.
func (c *protoCounter) field(f *protoField, number protowire.Number, wire protowire.Type, b []byte,
	depth int) int {
	if wire == protowire.StartGroupType {
		c.n += f.each
		return c.message(f.message, b, number, depth+1)
	}
	if wire != protowire.BytesType {
		c.n += f.each
		return protowire.ConsumeFieldValue(number, wire, b)
	}
	v, n := protowire.ConsumeBytes(b)
	if n < 0 {
		return n
	}
	c.n += f.each
	if f.message != nil {
		if c.message(f.message, v, 0, depth+1) < 0 {
			return -1
		}
		return n
	}
	c.n += allocated(int64(len(v)))
	return n
}

// numbers counts some that come together: those that have come before are copied.
func (c *protoCounter) numbers(f *protoField, b []byte, begun map[*protoField]int64) int {
	v, n := protowire.ConsumeBytes(b)
	if n < 0 {
		return n
	}
	begun[f] += packed(f.kind, v)
	c.n += f.each * begun[f]
	return n
}

// packed returns how many values of a kind the bytes are.
func packed(k protoreflect.Kind, b []byte) (n int64) {
	switch k {
	case protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind, protoreflect.FloatKind:
		return int64(len(b) / 4)
	case protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind, protoreflect.DoubleKind:
		return int64(len(b) / 8)
	}
	for _, c := range b {
		if c < 0x80 {
			n++
		}
	}
	return n
}
