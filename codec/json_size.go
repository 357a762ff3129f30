package codec

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// How much a JSON text becomes follows from the Go type and from its tokens: an element of
// an array is a T in a slice, at least, however short it is.

// jsonSize is what the counting has to know of a type.
type jsonSize struct {
	kind   reflect.Kind
	size   int64 // of a value itself, which is in what is around it
	own    bool  // the type decodes itself
	bytes  bool  // a slice that may come as base64
	elem   *jsonSize
	key    int64 // the size of a map's keys
	fields map[string]jsonField
	// perByte is the most that a byte becomes, anywhere in a value that is decoded as a whole.
	perByte int64
}

// jsonField is a field as a member of an object finds it.
type jsonField struct {
	*jsonSize
	behind int64 // embedded structs that come with it
}

// sizeOwn is what a byte becomes in a type that decodes itself: a guess.
const sizeOwn = 4

var jsonSizes sync.Map // of *jsonSize by reflect.Type, of what is decoded as a whole

func jsonSizeOf(t reflect.Type) *jsonSize {
	if s, ok := jsonSizes.Load(t); ok {
		return s.(*jsonSize)
	}
	m := sizeMaker{made: make(map[reflect.Type]*jsonSize)}
	made := m.size(t)
	made.perByte = m.perByte()
	s, _ := jsonSizes.LoadOrStore(t, made)
	return s.(*jsonSize)
}

// sizeMaker makes the sizes of a type and of all that it is made of.
type sizeMaker struct {
	made  map[reflect.Type]*jsonSize
	order []*jsonSize
}

func (m *sizeMaker) size(t reflect.Type) *jsonSize {
	if s, ok := m.made[t]; ok {
		return s
	}
	s := &jsonSize{kind: t.Kind(), size: int64(t.Size())}
	m.made[t] = s
	m.order = append(m.order, s)
	if t != timeType && decodesItself(t) {
		s.own = true
		return s
	}
	switch t.Kind() {
	case reflect.Pointer, reflect.Array:
		s.elem = m.size(t.Elem())
	case reflect.Slice:
		s.bytes = t.Elem().Kind() == reflect.Uint8
		s.elem = m.size(t.Elem())
	case reflect.Map:
		s.key = int64(t.Key().Size())
		s.elem = m.size(t.Elem())
	case reflect.Struct:
		if t != timeType {
			s.fields = make(map[string]jsonField)
			m.addFields(s.fields, t, 0, map[reflect.Type]bool{})
		}
	}
	return s
}

// addFields adds those of t, a struct that is embedded in others which come with behind
// bytes. Fields of outer structs come before those of inner ones, as in Go.
func (m *sizeMaker) addFields(to map[string]jsonField, t reflect.Type, behind int64,
	path map[reflect.Type]bool) {
	if path[t] {
		return
	}
	path[t] = true
	defer delete(path, t)
	type inner struct {
		t      reflect.Type
		behind int64
	}
	var embedded []inner
	for i := range t.NumField() {
		f := t.Field(i)
		if !isEncoded(f) {
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" {
			of, more := f.Type, behind
			if of.Kind() == reflect.Pointer {
				of = of.Elem()
				more += allocated(int64(of.Size()))
			}
			if of.Kind() == reflect.Struct {
				embedded = append(embedded, inner{of, more})
				continue
			}
		}
		if name == "" {
			name = f.Name
		}
		if name = foldName(name); to[name].jsonSize == nil {
			to[name] = jsonField{m.size(f.Type), behind}
		}
	}
	for _, e := range embedded {
		m.addFields(to, e.t, e.behind, path)
	}
}

func decodesItself(t reflect.Type) bool {
	for _, m := range []reflect.Type{unmarshalerType, textUnmarshalerType} {
		if t.Kind() != reflect.Interface && (t.Implements(m) || reflect.PointerTo(t).Implements(m)) {
			return true
		}
	}
	return false
}

// foldName makes names the same that differ in case only.
func foldName(s string) string {
	return strings.Map(func(r rune) rune {
		for {
			next := unicode.SimpleFold(r)
			if next <= r {
				return next
			}
			r = next
		}
	}, s)
}

// perByte is the most that a byte becomes of what the type is made of, which is all that
// was made. A byte is part of one token only.
func (m *sizeMaker) perByte() int64 {
	most := int64(3) // a text, in an object of its own
	for _, s := range m.order {
		switch {
		case s.own:
			most = max(most, sizeOwn)
		case s.kind == reflect.Slice: // 1,
			most = max(most, inSlice(s.elem.size)/2+s.elem.token(), allocated(s.elem.size)+s.elem.token())
		case s.kind == reflect.Map: // "":1
			most = max(most, (sizeOfMap+mapGroup(s.key, s.elem.size)+mapEntry(s.key, s.elem.size)+
				s.elem.token())/4)
		case s.kind == reflect.Struct: // "a":1
			for _, f := range s.fields {
				most = max(most, (f.behind+f.token())/4)
			}
		case s.kind == reflect.Pointer:
			most = max(most, s.token())
		case s.kind == reflect.Interface:
			most = max(most, anyPerByte)
		}
	}
	return most
}

// token is what the shortest value takes beside what is around it.
func (s *jsonSize) token() (n int64) {
	for depth := 0; s.kind == reflect.Pointer && !s.own && depth < maxNesting; depth++ {
		n += allocated(s.elem.size)
		s = s.elem
	}
	if s.kind == reflect.Interface {
		n += sizeOfSlice
	}
	return n
}

// What values are that are decoded into an interface{}.
const (
	anyArray   = sizeOfSlice + sizeOfWord
	anyElement = 2 * 2 * sizeOfWord
	anyNumber  = sizeOfWord
	anyText    = sizeOfString
	anyPerByte = (sizeOfMap + slotsOfGroup*(1+2*sizeOfString) + 2*sizeOfWord + anyArray) / 4 // {"":[]}
)

func (jsonCodec) DecodedBound(data []byte, v interface{}) int64 {
	t := reflect.TypeOf(v)
	if t == nil {
		return 0
	}
	s := jsonSizeOf(t)
	return boundOf(s.base(), s.perByte, len(data))
}

// base is what a pointer to a value takes that was made to be decoded into.
func (s *jsonSize) base() int64 {
	if s.elem == nil {
		return 0
	}
	return s.elem.size
}

func (jsonCodec) DecodedSize(data []byte, v interface{}, most int64) int64 {
	t := reflect.TypeOf(v)
	if t == nil {
		return 0
	}
	s := jsonSizeOf(t)
	c := jsonCounter{data: data, n: s.base(), most: most}
	if s.kind == reflect.Pointer && !s.own {
		s = s.elem
	}
	c.value(s, 0)
	return c.n
}

// jsonCounter counts what a text becomes. It follows the text as long as that may be
// decoded, and ends where it is no JSON.
type jsonCounter struct {
	data    []byte
	at      int
	n, most int64
}

// next returns the next byte that is no space, without passing over it; 0 at the end.
func (c *jsonCounter) next() byte {
	for ; c.at < len(c.data); c.at++ {
		switch b := c.data[c.at]; b {
		case ' ', '\t', '\n', '\r':
		default:
			return b
		}
	}
	return 0
}

// value counts a value of the type, whose own size has been counted. It reports whether to
// go on. A nil type is that of what is not decoded.
func (c *jsonCounter) value(s *jsonSize, depth int) bool {
	if depth > maxNesting || c.n > c.most {
		return false
	}
	if s == nil {
		return c.skip()
	}
	if s.own {
		from := c.at
		ok := c.skip()
		c.n += sizeOwn * int64(c.at-from)
		return ok
	}
	switch s.kind {
	case reflect.Pointer:
		if c.next() != 'n' {
			c.n += allocated(s.elem.size)
		}
		return c.value(s.elem, depth+1)
	case reflect.Interface:
		return c.anything(depth)
	case reflect.Array:
		if c.next() == '[' {
			return c.array(s.elem, 0, depth)
		}
	case reflect.Slice:
		switch c.next() {
		case '[':
			return c.array(s.elem, inSlice(s.elem.size), depth)
		case '"':
			return c.text(s.bytes)
		}
	case reflect.Map:
		if c.next() == '{' {
			return c.object(s, depth)
		}
	case reflect.Struct:
		if c.next() == '{' && s.fields != nil {
			return c.object(s, depth)
		}
	case reflect.String:
		if c.next() == '"' {
			return c.text(true)
		}
	}
	return c.skip()
}

// array counts elements that take each bytes beside what is in them.
func (c *jsonCounter) array(elem *jsonSize, each int64, depth int) bool {
	c.at++
	if c.next() == ']' {
		c.at++
		return true
	}
	for {
		c.n += each
		if !c.value(elem, depth+1) {
			return false
		}
		switch c.next() {
		case ',':
			c.at++
		case ']':
			c.at++
			return true
		default:
			return false
		}
	}
}

// object counts the members of a map or of a struct.
func (c *jsonCounter) object(s *jsonSize, depth int) bool {
	isMap := s.kind == reflect.Map
	if isMap {
		c.n += sizeOfMap
	}
	return c.members(func(i int, name []byte) bool {
		if isMap {
			if i == 0 {
				c.n += mapGroup(s.key, s.elem.size)
			}
			c.n += mapEntry(s.key, s.elem.size) + allocated(int64(len(name)))
			return c.value(s.elem, depth+1)
		}
		f := s.field(name)
		c.n += f.behind
		return c.value(f.jsonSize, depth+1)
	})
}

// field finds a field by its name in the text, without the quotes.
func (s *jsonSize) field(name []byte) jsonField {
	var upper [64]byte
	if len(name) <= len(upper) { // nearly always
		usual := true
		for i, b := range name {
			if b >= utf8.RuneSelf || b == '\\' {
				usual = false
				break
			}
			if 'a' <= b && b <= 'z' {
				b -= 'a' - 'A'
			}
			upper[i] = b
		}
		if usual {
			return s.fields[string(upper[:len(name)])]
		}
	}
	text := string(name)
	if bytes.IndexByte(name, '\\') >= 0 {
		_ = json.Unmarshal([]byte(`"`+text+`"`), &text)
	}
	return s.fields[foldName(text)]
}

// members calls f for each member of an object, with its number and the name as it stands
// there. f passes over the value.
func (c *jsonCounter) members(f func(i int, name []byte) bool) bool {
	c.at++
	if c.next() == '}' {
		c.at++
		return true
	}
	for i := 0; ; i++ {
		if c.next() != '"' {
			return false
		}
		from := c.at + 1
		if !c.string() {
			return false
		}
		name := c.data[from : c.at-1]
		if c.next() != ':' {
			return false
		}
		c.at++
		if !f(i, name) {
			return false
		}
		switch c.next() {
		case ',':
			c.at++
		case '}':
			c.at++
			return true
		default:
			return false
		}
	}
}

// anything counts what is decoded into an interface{}.
func (c *jsonCounter) anything(depth int) bool {
	if depth > maxNesting || c.n > c.most {
		return false
	}
	switch c.next() {
	case '"':
		c.n += anyText
		return c.text(true)
	case '[':
		c.n += anyArray
		return c.array(anySize, anyElement, depth)
	case '{':
		c.n += sizeOfMap
		return c.members(func(i int, name []byte) bool {
			if i == 0 {
				c.n += mapGroup(sizeOfString, sizeOfString)
			}
			c.n += mapEntry(sizeOfString, sizeOfString) + allocated(int64(len(name)))
			return c.anything(depth + 1)
		})
	}
	c.n += anyNumber
	return c.skip()
}

var anySize = &jsonSize{kind: reflect.Interface}

// text counts a string, if it is kept.
func (c *jsonCounter) text(kept bool) bool {
	from := c.at
	ok := c.string()
	if kept {
		c.n += allocated(int64(c.at - from - 2))
	}
	return ok
}

// string passes over a string, which is next.
func (c *jsonCounter) string() bool {
	for c.at++; ; c.at++ {
		n := bytes.IndexByte(c.data[c.at:], '"')
		if n < 0 {
			c.at = len(c.data)
			return false
		}
		if c.at += n; !c.escaped() {
			c.at++
			return true
		}
	}
}

// escaped reports whether the byte is behind an odd number of backslashes.
func (c *jsonCounter) escaped() bool {
	i := c.at
	for i > 0 && c.data[i-1] == '\\' {
		i--
	}
	return (c.at-i)%2 == 1
}

// skip passes over a value.
func (c *jsonCounter) skip() bool {
	for open := 0; ; {
		switch c.next() {
		case 0:
			return false
		case '"':
			if !c.string() {
				return false
			}
		case '[', '{':
			open++
			c.at++
			continue
		case ']', '}':
			if open--; open < 0 {
				return false
			}
			c.at++
		case ',', ':':
			if open == 0 {
				return false
			}
			c.at++
			continue
		default:
			c.word()
		}
		if open == 0 {
			return true
		}
	}
}

// word passes over a number, true, false or null.
func (c *jsonCounter) word() {
	for c.at++; c.at < len(c.data); c.at++ {
		switch c.data[c.at] {
		case ' ', '\t', '\n', '\r', ',', ':', ']', '}', '[', '{', '"':
			return
		}
	}
}
