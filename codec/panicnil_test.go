package codec_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/codec"
)

// nilPanicker panics with nil whatever is asked of it.
type nilPanicker struct{}

func (nilPanicker) MarshalJSON() ([]byte, error) { panic(nil) }
func (*nilPanicker) UnmarshalJSON([]byte) error  { panic(nil) }

// With GODEBUG=panicnil=1 recover returns nil for panic(nil), which is a panic all the
// same.
func TestPanicWithNilIsAnError(t *testing.T) {
	t.Setenv("GODEBUG", "panicnil=1")
	c, err := codec.GetByName(codec.NameJSON)
	require.NoError(t, err)
	out, err := codec.Append(c, []byte("before"), nilPanicker{})
	require.Error(t, err)
	require.Equal(t, "before", string(out))
	require.Error(t, codec.Decode(c, []byte("1"), new(nilPanicker)))
}
