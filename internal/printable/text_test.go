package printable_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/printable"
)

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"":                     "",
		"plain text é 日本":      "plain text é 日本",
		"a\nb\r\t\x00\x1b\x7f": `a\nb\r\t\x00\x1b\x7f`,
		"\xff\xc3":             `\xff\xc3`,
		"\ufffd":               "\ufffd",
		"\u2028\U000e0001":     `\u2028\U000e0001`,
	} {
		require.Equal(t, want, printable.Text(in, 100))
	}
	for n := range 40 {
		for _, unit := range []string{"x", "é", "\n", "\xff", "\U000e0001"} {
			got := printable.Text(strings.Repeat(unit, n), 20)
			require.LessOrEqual(t, len(got), 20)
			require.True(t, utf8.ValidString(got))
			whole := printable.Text(strings.Repeat(unit, n), 1000)
			if len(whole) <= 20 {
				require.Equal(t, whole, got)
			} else {
				require.True(t, strings.HasSuffix(got, "..."))
			}
		}
	}
	long := strings.Repeat("\n", 1000)
	once := printable.Text(long, 100)
	require.Equal(t, once, printable.Text(once, 100), "what is printable is left as it is")
	require.Equal(t, once, printable.Bytes([]byte(long), 100))
}

func TestLines(t *testing.T) {
	require.Equal(t, "a\n\tb\\x1bc\nd", printable.Lines("a\n\tb\x1bc\nd\n\n", 100))
	require.Equal(t, strings.Repeat("x", 7)+"...\ny", printable.Lines(strings.Repeat("x", 50)+"\ny", 10))
}
