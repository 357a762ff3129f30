package nats

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/henrylee2cn/teleport/packet"
)

// What hubs send each other is, all of it in one payload of NATS:
//
//	't' 'p' | version | kind | number uvarint | from | name | more | frame
//
// From, name and more are a length as uvarint and so many bytes. The frame is a packet as docs/protocol.md
// of the project describes it, with the body as its maker has encoded it. Who gets another version answers
// with a message of its own version and does nothing else.
const version = 1

// maxName is how many bytes a session's id or an identity may have.
const maxName = 128 << 10

type kind byte

const (
	kindPull    kind = iota + 1 // to a session, by one of its names; Header.Timeout is what is left
	kindPush                    // to a session; answered like a pull
	kindReply                   // to both
	kindRuns                    // the pull with the number has not ended
	kindCancel                  // nobody waits for the pull with the number
	kindGroup                   // a push to a group; more is how it is delivered, see spreadText
	kindHello                   // a hub is there; more is its name, with the number 1 it was away, see hello
	kindBye                     // it is going away
	kindClaim                   // the hub has the names in more, see claims
	kindRelease                 // the hub does not have the name in more any more
	kindAsk                     // who is in the group? The number 1 asks only for how many
	kindMembers                 // the answer to kindAsk: more is members, number what is left to come
	kindCheck                   // look what the history of the group has
)

type message struct {
	kind   kind
	number uint64
	from   string // a hub's id
	name   string // a session's id, an identity or a group's name
	more   []byte
	frame  []byte // of the payload, as more is
}

func (m *message) append(b []byte) []byte {
	b = append(b, 't', 'p', version, byte(m.kind))
	b = binary.AppendUvarint(b, m.number)
	b = binary.AppendUvarint(b, uint64(len(m.from)))
	b = append(b, m.from...)
	b = binary.AppendUvarint(b, uint64(len(m.name)))
	b = append(b, m.name...)
	b = binary.AppendUvarint(b, uint64(len(m.more)))
	return append(append(b, m.more...), m.frame...)
}

// withFrame encodes the message with a packet. The error is that of packet.Append.
func (m *message) withFrame(p *packet.Packet) ([]byte, error) {
	body, _ := p.Body.(packet.RawBody)
	b := make([]byte, 0, 128+len(m.from)+len(m.name)+len(m.more)+len(p.Header.Uri)+len(body))
	return packet.Append(m.append(b), p, anySize)
}

// anySize is no limit: the broker has one for all of a message, and the peer that has made a packet had its
// own.
var anySize = packet.Limits{Header: -1, Body: -1}

// versionError is what comes from a hub of another version.
type versionError byte

func (v versionError) Error() string {
	return fmt.Sprintf("a hub speaks version %d of the hubs' protocol, this one version %d", byte(v), version)
}

var errForeign = errors.New("what came is no message of a hub")

// parse reads a message, whose more and frame are parts of b.
func parse(b []byte) (m message, err error) {
	if len(b) < 4 || b[0] != 't' || b[1] != 'p' {
		return m, errForeign
	}
	if b[2] != version {
		return m, versionError(b[2])
	}
	m.kind = kind(b[3])
	n := 0
	if m.number, n = binary.Uvarint(b[4:]); n <= 0 {
		return m, errForeign
	}
	b = b[4+n:]
	var parts [3][]byte
	for i := range parts {
		length, n := binary.Uvarint(b)
		if n <= 0 || length > uint64(len(b)-n) {
			return m, errForeign
		}
		parts[i], b = b[n:n+int(length)], b[n+int(length):]
	}
	m.from, m.name, m.more, m.frame = string(parts[0]), string(parts[1]), parts[2], b
	return m, nil
}

// packet reads the frame. Its body is a packet.RawBody with memory of its own.
func (m *message) packet() (*packet.Packet, error) {
	p, body := new(packet.Packet), new(packet.RawBody)
	n, err := packet.Parse(m.frame, p, func(*packet.Header) interface{} { return body }, anySize)
	if err != nil {
		return nil, err
	}
	if n != len(m.frame) {
		return nil, errForeign
	}
	p.Body = *body
	return p, nil
}
