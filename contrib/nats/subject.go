package nats

import (
	"crypto/sha256"
	"encoding/base64"
	"strings"
)

// The subjects of a service, behind "tp" and the service's name as a token:
//
//	s.NAME, i.NAME    pulls and pushes to a session by its id or its identity; a queue of the hubs that
//	                  have it, of which one gets the message
//	g.NAME            pushes to a group without a history
//	h.CLASS.NAME      pushes to a group with one, to JetStream
//	n.CLASS.NAME      the same from JetStream, with their numbers
//	hubs              what all hubs of the service hear
//	r.HUB.NUMBER      replies to one hub
type subjects struct{ prefix string }

func subjectsOf(service string) subjects { return subjects{"tp." + token(service) + "."} }

func (s subjects) name(k nameKey) string     { return s.prefix + string(k.kind) + "." + token(k.name) }
func (s subjects) group(name string) string  { return s.prefix + "g." + token(name) }
func (s subjects) hubs() string              { return s.prefix + "hubs" }
func (s subjects) replies(hub string) string { return s.prefix + "r." + hub + "." }
func (s subjects) history(class, name string) string {
	return s.prefix + "h." + class + "." + token(name)
}
func (s subjects) kept(class, name string) string { return s.prefix + "n." + class + "." + token(name) }

// maxToken is how long a token may be: that of a longer name is a hash. Subjects have no limit of their own
// but the broker's for a line of the protocol, 4 KB.
const maxToken = 120

// token makes one token of a subject of any text, another one for each text. What is not a letter of
// ASCII, a digit, a hyphen or an underscore is written as an equals sign and two digits: neither a dot nor
// a wildcard in a name leads to another subject.
func token(name string) string {
	var b strings.Builder
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
			b.WriteByte(c)
		default:
			const digits = "0123456789abcdef"
			b.Write([]byte{'=', digits[c>>4], digits[c&15]})
		}
		if b.Len() > maxToken {
			sum := sha256.Sum256([]byte(name))
			return "~" + base64.RawURLEncoding.EncodeToString(sum[:])
		}
	}
	if name == "" {
		return "="
	}
	return b.String()
}
