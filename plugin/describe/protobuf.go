package describe

import (
	"fmt"
	"reflect"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

var (
	messageType   = reflect.TypeFor[proto.Message]()
	messageV1Type = reflect.TypeFor[protoadapt.MessageV1]()
)

// messageOf returns the descriptor of the protobuf message that a type, or a pointer to it, is; nil if it
// is none. The methods of the type may panic, which is an error.
func messageOf(t reflect.Type) (desc protoreflect.MessageDescriptor, err error) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	pointer := reflect.PointerTo(t)
	if t.Kind() != reflect.Struct || !pointer.Implements(messageType) && !pointer.Implements(messageV1Type) {
		return nil, nil
	}
	returned := false
	defer func() {
		if !returned {
			desc, err = nil, fmt.Errorf("the message has no descriptor: its methods panic with %v", recover())
		}
	}()
	switch m := reflect.New(t).Interface().(type) {
	case proto.Message:
		desc = m.ProtoReflect().Descriptor()
	case protoadapt.MessageV1:
		desc = protoadapt.MessageV2Of(m).ProtoReflect().Descriptor()
	}
	returned = true
	return desc, nil
}

// file is a protobuf file, encoded as a field of a FileDescriptorSet.
type file struct {
	path    string
	imports []string
	encoded []byte
}

// files has the protobuf files of messages.
type files map[string]*file

// add adds the file, and all that it imports. It returns the path.
func (fs files) add(fd protoreflect.FileDescriptor) (string, error) {
	path := fd.Path()
	if fs[path] != nil || fd.IsPlaceholder() {
		return path, nil
	}
	one := &descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{
		protodesc.ToFileDescriptorProto(fd)}}
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(one)
	if err != nil {
		return "", fmt.Errorf("the descriptor of %s does not encode: %w", path, err)
	}
	f := &file{path: path, encoded: encoded}
	fs[path] = f
	imports := fd.Imports()
	for i := range imports.Len() {
		path, err := fs.add(imports.Get(i).FileDescriptor)
		if err != nil {
			return "", err
		}
		f.imports = append(f.imports, path)
	}
	slices.Sort(f.imports)
	return path, nil
}

// collect appends the file, behind those that it imports, unless it is there.
func (fs files) collect(path string, seen map[string]bool, all []*file) []*file {
	f := fs[path]
	if f == nil || seen[path] {
		return all
	}
	seen[path] = true
	for _, i := range f.imports {
		all = fs.collect(i, seen, all)
	}
	return append(all, f)
}
