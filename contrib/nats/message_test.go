package nats

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/packet"
)

// The token of a name is one token of a subject, and that of no other name.
func TestToken(t *testing.T) {
	seen := map[string]string{}
	for _, name := range []string{"", "=", "a", "A", "a.b", "a=2eb", "a=2Eb", "*", ">", " ", "\x00", "é", "~",
		strings.Repeat("x", 120), strings.Repeat("x", 121), strings.Repeat("x", 122), strings.Repeat(".",
			41)} {
		tok := token(name)
		require.NotEmpty(t, tok)
		require.NotContains(t, tok, ".")
		require.False(t, strings.ContainsAny(tok, " *>\t\r\n\x00"), "%q", tok)
		require.LessOrEqual(t, len(tok), maxToken)
		require.NotContains(t, seen, tok, "%q", name)
		seen[tok] = name
	}
}

// A message is read as it was written, and whatever else comes is an error.
func FuzzParse(f *testing.F) {
	m := &message{kind: kindGroup, number: 1 << 40, from: "hub", name: "room", more: []byte("more")}
	b, err := m.withFrame(&packet.Packet{Header: &packet.Header{Type: packet.TypePush, Uri: "/a"},
		Body: packet.RawBody("j1")})
	require.NoError(f, err)
	f.Add(b)
	f.Add([]byte("tp\x01\x09\x00\x01h\x00\x05sxxxx"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		if err != nil {
			return
		}
		again, err := parse(m.append(nil))
		require.NoError(t, err)
		require.Equal(t, m.name, again.name)
		require.Equal(t, string(m.more), string(again.more))
		require.Equal(t, string(m.frame), string(again.frame))
		if p, err := m.packet(); err == nil {
			again, err := (&message{kind: m.kind}).withFrame(p)
			require.NoError(t, err)
			_, err = parse(again)
			require.NoError(t, err)
		}
		_, _ = spreadSettings(m.more)
		for claims, ok := m.more, true; ok; {
			_, _, claims, ok = nextClaim(claims)
		}
	})
}
