package tp

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// An id is read exactly if it is what appendPullId writes for a number above 0,
// so no two texts are one pull.
func TestParsePullId(t *testing.T) {
	texts := []string{
		"", "0", "00", "01", "+1", "-1", " 1", "1 ", "1_0", "0x1", "1e3", "1.0", "a", "1a", "a1", "١", "\x00",
		"1\x00", "/", ":", "1/", "1:",
		"1", "9", "10", "12345678901234567890",
		strconv.FormatUint(math.MaxUint64, 10), "18446744073709551616", "18446744073709551620",
		"18446744073709551619", "18446744073709551610",
		"99999999999999999999", "27670116110564327424", "36893488147419103232", "184467440737095516150",
		"184467440737095516160",
		"018446744073709551615", strings.Repeat("9", 21), strings.Repeat("1", 20), strings.Repeat("1", 21),
		strings.Repeat("0", 20), strings.Repeat("1", 1000),
		"9223372036854775807", "9223372036854775808", "1844674407370955161", "1844674407370955162",
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		n := rnd.Uint64() >> rnd.IntN(64)
		text := []byte(strconv.FormatUint(n, 10))
		texts = append(texts, string(text))
		text[rnd.IntN(len(text))] = byte(rnd.IntN(256))
		texts = append(texts, string(text), fmt.Sprint(n, rnd.IntN(10)))
	}
	for _, text := range texts {
		want, err := strconv.ParseUint(text, 10, 64)
		canonical := err == nil && want > 0 && strconv.FormatUint(want, 10) == text
		got, ok := parsePullId([]byte(text))
		require.Equal(t, canonical, ok, "%q", text)
		if ok {
			require.Equal(t, want, got, "%q", text)
			require.Equal(t, text, string(appendPullId(nil, got)))
		}
	}
}
