// Package printable makes texts and values of any kind fit for a log: one line of a bounded length, without
// control characters that a terminal would obey.
package printable

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// more stands at the end of a text that was cut off.
const more = "..."

// Text writes control characters, other unprintable ones and invalid UTF-8 as Go escapes,
// and cuts the result off at max bytes, marked by an ellipsis. A text that Text has
// returned stays the same if it is given to Text again.
func Text(s string, max int) string {
	plain := len(s) <= max
	for i := 0; plain && i < len(s); i++ {
		plain = s[i] >= ' ' && s[i] < utf8.RuneSelf-1
	}
	if plain {
		return s
	}
	var b strings.Builder
	cut := -1 // where to end if all of it turns out too long
	for i, r := range s {
		var piece string
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], string(utf8.RuneError)):
			piece = fmt.Sprintf(`\x%02x`, s[i])
		case unicode.IsPrint(r):
			piece = string(r)
		case r == '\n':
			piece = `\n`
		case r == '\r':
			piece = `\r`
		case r == '\t':
			piece = `\t`
		case r < utf8.RuneSelf:
			piece = fmt.Sprintf(`\x%02x`, r)
		case r > 0xffff:
			piece = fmt.Sprintf(`\U%08x`, r)
		default:
			piece = fmt.Sprintf(`\u%04x`, r)
		}
		if cut < 0 && b.Len()+len(piece) > max-len(more) {
			cut = b.Len()
		}
		b.WriteString(piece)
		if b.Len() > max {
			return b.String()[:cut] + more
		}
	}
	return b.String()
}

// Bytes is Text of bytes, of which it copies no more than it prints.
func Bytes(b []byte, max int) string {
	// A rune of four bytes is the longest: more than that is never printed.
	return Text(string(b[:min(len(b), max+utf8.UTFMax)]), max)
}

// Lines is Text for a text of several lines. Line ends, and the tabs at the beginning of lines, stay.
func Lines(s string, max int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	for i, line := range lines {
		rest := strings.TrimLeft(line, "\t")
		lines[i] = line[:len(line)-len(rest)] + Text(rest, max)
	}
	return strings.Join(lines, "\n")
}
