package printable

import (
	"fmt"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
)

// Value returns any value as [Text] of at most max bytes. The text is what fmt prints for %+v, with two
// differences: a value that contains itself does not end the process, and of deep or large values Value looks
// only at as much as it prints. An error and a fmt.Stringer print themselves, and if their method panics the
// text says so.
func Value(v interface{}, max int) (s string) {
	s = "(printing panicked)" // the result if recover returns nil, as after panic(nil)
	defer func() {
		if p := recover(); p != nil {
			s = Text("(printing panicked: "+plain(p, max)+")", max)
		}
	}()
	switch x := v.(type) {
	case string:
		return Text(x, max)
	case error:
		return Text(x.Error(), max)
	case proto.Message, protoadapt.MessageV1:
		if str, ok := v.(fmt.Stringer); ok && Finite(v) {
			return Text(str.String(), max)
		}
	case fmt.Stringer:
		return Text(x.String(), max)
	}
	return plain(v, max)
}

// plain is Value without calling methods of v.
func plain(v interface{}, max int) string {
	if err, ok := v.(runtime.Error); ok {
		return Text(err.Error(), max)
	}
	p := printer{max: max}
	p.value(reflect.ValueOf(v), 0)
	return Text(p.b.String(), max)
}

// maxDepth bounds how deep a printer follows pointers and the like.
const maxDepth = 32

// printer prints values. Each value writes at least a byte, so it prints no more values than max and the
// levels above them.
type printer struct {
	b   strings.Builder
	max int
}

func (p *printer) full() bool { return p.b.Len() > p.max }

func (p *printer) text(s string) {
	p.b.WriteString(s[:min(len(s), max(p.max+1-p.b.Len(), 0))])
}

var (
	typeTime    = reflect.TypeFor[time.Time]()
	typeMessage = reflect.TypeFor[interface{ ProtoMessage() }]()
)

func (p *printer) value(v reflect.Value, depth int) {
	if p.full() {
		return
	}
	if depth > maxDepth {
		p.text(more)
		return
	}
	switch v.Kind() {
	case reflect.Invalid:
		p.text("<nil>")
	case reflect.Bool:
		p.text(strconv.FormatBool(v.Bool()))
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		p.text(strconv.FormatInt(v.Int(), 10))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		p.text(strconv.FormatUint(v.Uint(), 10))
	case reflect.Float32, reflect.Float64:
		p.text(strconv.FormatFloat(v.Float(), 'g', -1, v.Type().Bits()))
	case reflect.Complex64, reflect.Complex128:
		p.text(strconv.FormatComplex(v.Complex(), 'g', -1, v.Type().Bits()))
	case reflect.String:
		p.text(v.String())
	case reflect.Chan, reflect.Func, reflect.UnsafePointer:
		p.text("0x" + strconv.FormatUint(uint64(v.Pointer()), 16))
	case reflect.Interface:
		p.value(v.Elem(), depth+1)
	case reflect.Pointer:
		if v.IsNil() {
			p.text("<nil>")
			return
		}
		p.text("&")
		p.value(v.Elem(), depth+1)
	case reflect.Array, reflect.Slice:
		p.list(v, depth)
	case reflect.Map:
		p.entries(v, depth)
	case reflect.Struct:
		p.fields(v, depth)
	}
}

func (p *printer) list(v reflect.Value, depth int) {
	p.text("[")
	for i := 0; i < v.Len() && !p.full(); i++ {
		if i > 0 {
			p.text(" ")
		}
		p.value(v.Index(i), depth+1)
	}
	p.text("]")
}

func (p *printer) entries(v reflect.Value, depth int) {
	p.text("map[")
	between := ""
	for entry := v.MapRange(); !p.full() && entry.Next(); between = " " {
		p.text(between)
		p.value(entry.Key(), depth+1)
		p.text(":")
		p.value(entry.Value(), depth+1)
	}
	p.text("]")
}

func (p *printer) fields(v reflect.Value, depth int) {
	t := v.Type()
	if t == typeTime && v.CanInterface() {
		p.text(v.Interface().(time.Time).String())
		return
	}
	hidden := !reflect.PointerTo(t).Implements(typeMessage) // of a message they are the library's
	p.text("{")
	between := ""
	for i := 0; i < t.NumField() && !p.full(); i++ {
		if f := t.Field(i); hidden || f.IsExported() {
			p.text(between + f.Name + ":")
			p.value(v.Field(i), depth+1)
			between = " "
		}
	}
	p.text("}")
}
