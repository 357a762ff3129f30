package codec

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"unicode/utf8"

	jsoniter "github.com/json-iterator/go"
)

// Name and wire id of the json codec.
const (
	NameJSON = "json"
	IdJSON   = 'j'
)

// jsonCodec means what encoding/json means: the same values, and an error where that has
// one. It differs in what only costs time on a wire: HTML characters are not escaped, and
// map keys need not be sorted.
//
// jsoniter does the work where it does the same, in less time: for the types and texts that
// are plain, see [jsonShape] and plainText. encoding/json does the rest.
type jsonCodec struct{}

// fastJSON is jsoniter without HTML escaping and without sorted keys.
var fastJSON = jsoniter.Config{}.Froze()

func (jsonCodec) Id() byte     { return IdJSON }
func (jsonCodec) Name() string { return NameJSON }

func (c jsonCodec) Marshal(v interface{}) ([]byte, error) {
	return c.AppendMarshal(nil, v)
}

func (jsonCodec) AppendMarshal(dst []byte, v interface{}) ([]byte, error) {
	shape := jsonShapeOf(reflect.TypeOf(v))
	if shape.encode == plain {
		// What fails here fails there too, and there with an error that is known.
		if b, err := appendFast(dst, v); err == nil && utf8.Valid(b[len(dst):]) {
			return b, nil
		}
	}
	if shape.deep {
		if err := checkNesting(reflect.ValueOf(v), maxNesting); err != nil {
			return dst, err
		}
	}
	return appendStandard(dst, v)
}

// appendStandard encodes v in an array with a last element that says that all of v was
// encoded: encoding/json takes a panic with nil for a success.
func appendStandard(dst []byte, v interface{}) ([]byte, error) {
	w := appender{b: dst}
	e := json.NewEncoder(&w)
	e.SetEscapeHTML(false)
	if err := e.Encode([2]interface{}{v, &w}); err != nil {
		return dst, jsonEncodingError(err)
	}
	if !w.all {
		return dst, errors.New("a method of it has panicked with nil")
	}
	return w.b, nil
}

type appender struct {
	b   []byte
	all bool
}

// MarshalJSON is that of the last element.
func (a *appender) MarshalJSON() ([]byte, error) {
	a.all = true
	return []byte("0"), nil
}

// Write is called once, with the array and a newline.
func (a *appender) Write(b []byte) (int, error) {
	if a.all {
		a.b = append(a.b, b[len("["):len(b)-len(",0]\n")]...)
	}
	return len(b), nil
}

// appendFast writes into dst itself: the stream is lent dst as its buffer and gives it back,
// so that the pool never sees the caller's memory.
func appendFast(dst []byte, v interface{}) ([]byte, error) {
	s := fastJSON.BorrowStream(nil)
	own := s.Buffer()
	s.SetBuffer(dst)
	defer func() {
		s.SetBuffer(own[:0])
		s.Error = nil
		fastJSON.ReturnStream(s)
	}()
	s.WriteVal(v)
	return s.Buffer(), s.Error
}

func (jsonCodec) Unmarshal(data []byte, v interface{}) error {
	if shape := jsonShapeOf(reflect.TypeOf(v)); shape.decode == plain && plainText(data, shape) {
		if fastJSON.Unmarshal(data, v) == nil {
			return nil
		}
		// It is encoding/json that says whether that is an error, and which.
	}
	if err := json.Unmarshal(data, v); err != nil {
		return jsonDecodingError(err)
	}
	return nil
}

func (c jsonCodec) UnmarshalDepth(data []byte, v interface{}, depth int) error {
	if tooDeep(data, depth) {
		return fmt.Errorf("nested deeper than %d", depth)
	}
	return c.Unmarshal(data, v)
}

// plainText reports whether jsoniter reads the text as encoding/json does. Each of the
// exceptions is one where it does not. They are looked for in strings too, where they are
// none: that only costs time.
func plainText(data []byte, shape *jsonShape) bool {
	control, ascii := classes(bytes.TrimRight(data, " \t\r\n"))
	switch {
	case control: // allowed between values only, and not refused in some strings
	case bytes.Contains(data, null): // sets what it should leave alone
	case escapedText(data): // \u of half a surrogate, or of a letter that folds into another
	case oddNumber(data) || hasLongInteger(data, shape): // out of range is not always seen
	case ascii:
		return true
	default:
		return utf8.Valid(data) && !foldsIntoASCII(data) // otherwise it is replaced
	}
	return false
}

// classes reports whether there are control characters in data, and whether all is ASCII.
func classes(data []byte) (control, ascii bool) {
	const each = 0x0101010101010101
	var below, above uint64
	for ; len(data) >= 8; data = data[8:] {
		x := binary.LittleEndian.Uint64(data)
		above |= x
		// has the high bit of each byte below ' ', and perhaps of others behind one
		below |= (x - each*' ') & ^x
	}
	for _, b := range data {
		above |= uint64(b)
		if b < ' ' {
			below |= 0x80
		}
	}
	return below&(each*0x80) != 0, above&(each*0x80) == 0
}

var null = []byte("null")

func escapedText(data []byte) bool {
	for {
		i := bytes.IndexByte(data, '\\')
		if i < 0 || i+1 >= len(data) {
			return false
		}
		if data[i+1] == 'u' {
			return true
		}
		data = data[i+2:]
	}
}

// isInsideText reports whether no integer can begin behind the character.
func isInsideText(c byte) bool {
	return c == '+' || c == '/' || isDigit(c) || c|0x20 >= 'a' && c|0x20 <= 'z'
}

// oddNumber looks for numbers that begin with a plus or a point, which are none.
func oddNumber(data []byte) bool {
	for i := 0; ; i++ { // base64 has a plus in one of 64 places
		n := bytes.IndexByte(data[i:], '+')
		if n < 0 {
			break
		}
		if i += n; i == 0 || !isInsideText(data[i-1]) {
			return true
		}
	}
	for i := 0; ; i++ {
		n := bytes.IndexByte(data[i:], '.')
		if n < 0 {
			return false
		}
		i += n
		if (i == 0 || !isDigit(data[i-1])) && i+1 < len(data) && isDigit(data[i+1]) {
			return true
		}
	}
}

// hasLongInteger reports whether there are so many digits in a row somewhere that an integer of the shape may
// be out of its range. Of so many one is at a multiple of their number.
func hasLongInteger(data []byte, shape *jsonShape) bool {
	n := shape.digits
	if n == 0 {
		return false
	}
	for at := n - 1; at < len(data); at += n {
		if !isDigit(data[at]) {
			continue
		}
		first, last := at, at
		for first > 0 && isDigit(data[first-1]) {
			first--
		}
		for last+1 < len(data) && isDigit(data[last+1]) {
			last++
		}
		long := last - first + 1
		if long < n || first > 0 && isInsideText(data[first-1]) {
			continue
		}
		if long >= maxDigits || !shape.wide[fieldBefore(data[:first])] {
			return true
		}
	}
	return false
}

// fieldBefore returns the name, in small letters, of the field whose value begins behind the text; empty
// where that is not clear.
func fieldBefore(text []byte) string {
	text = bytes.TrimSuffix(text, []byte("-"))
	name, ok := bytes.CutSuffix(text, []byte(`":`))
	if !ok {
		return ""
	}
	return strings.ToLower(string(name[bytes.LastIndexByte(name, '"')+1:]))
}

func isDigit(b byte) bool { return '0' <= b && b <= '9' }

// foldsIntoASCII looks for the two letters beyond ASCII that are the same as one of ASCII
// when case is ignored, as it is in field names.
func foldsIntoASCII(data []byte) bool {
	return bytes.Contains(data, []byte("\u017f")) || bytes.Contains(data, []byte("\u212a"))
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
