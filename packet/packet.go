// Package packet is the unit that crosses a connection, and its exact bytes.
//
// A frame on the wire, all numbers big-endian:
//
//	HeaderLength uint32 | HeaderCodecId uint8 | Header | BodyLength uint32 | BodyCodecId uint8 | Body
//
// The package works on byte slices alone and does no I/O: [Append] makes a
// frame, [Parse] reads one, and the smaller functions beside them let a reader
// take a frame apart as its bytes arrive. Package socket does that over a
// net.Conn.
package packet

import "github.com/henrylee2cn/teleport/codec"

// Packet types, the values of Header.Type.
const (
	TypePull  int32 = 1 // a request that waits for a reply
	TypeReply int32 = 2 // the answer to a pull, carrying the pull's id
	TypePush  int32 = 3 // one way
	// TypeCancel says that nobody waits any more for the reply to the pull with its
	// id. It has no body. Who does not know it ignores it.
	TypeCancel int32 = 4
	// TypeGoAway, from a side that shuts down, asks the other to begin nothing more
	// on this connection; with the status code 200 it says that every pull that was
	// run has been answered. It has no id and no body. Who does not know it ignores
	// it.
	TypeGoAway int32 = 5
	// TypePing asks whether the other side is there: it is answered by a reply with its
	// id, at once, and by nothing if it has none. It has no body. Who does not know it
	// answers as well, with StatusUnsupportedType.
	TypePing int32 = 6
	// TypeCredit says what the other side may send. It has no body; its metadata has the numbers. With the id
	// of a stream it is about the values of that, without an id about pulls and pushes, and the id "credit"
	// asks. A peer that does not know it answers with StatusUnsupportedType if it has an id.
	TypeCredit int32 = 7
	// TypeOpen opens a stream. It is a pull in everything but that values follow in both directions; its
	// body is the id of a codec alone. The reply ends the stream. Who does not know it answers with
	// StatusUnsupportedType.
	TypeOpen int32 = 8
	// TypeValue is one value of a stream, with the stream's id, from the side that has opened the stream, and
	// TypeAnswer one from the other side. Without a body it says that no more values come from there.
	TypeValue  int32 = 10
	TypeAnswer int32 = 11
	// TypePart is a part of a packet that is too large to be sent as a whole while others wait. It is sent to
	// peers that have said that they know it. See package socket, which takes packets apart and puts them
	// together.
	TypePart int32 = 12
)

// Packet is one message. Its fields may be read and set freely by the goroutine that owns
// it; it is not safe for concurrent use.
type Packet struct {
	// HeaderCodec is the name of the header's codec; empty stands for protobuf.
	HeaderCodec string `json:"header_codec"`
	// BodyCodec is the name of the body's codec; empty stands for json.
	BodyCodec string `json:"body_codec"`
	// Header says what the packet is. It must not be nil in a packet that is sent.
	Header *Header `json:"header"`
	// Body is the value to encode, or the pointer that was decoded into. A nil
	// Body is sent as no body at all, and a [RawBody] as the bytes it holds.
	Body interface{} `json:"body"`
	// HeaderLength counts the header and its codec id, in bytes on the wire. It
	// is set when the packet is encoded or decoded, like the two below.
	HeaderLength int64 `json:"header_length"`
	// BodyLength counts the body, compressed if it was, and its codec id.
	BodyLength int64 `json:"body_length"`
	// Length is HeaderLength + BodyLength.
	Length int64 `json:"length"`
}

// Header is what routes a packet.
type Header struct {
	// Id tells the packets in flight of one sender on one session apart. A reply
	// carries its pull's id.
	Id string
	// Type says what the packet is, TypePull for example.
	Type int32
	// Uri is the path, and optionally ?query, that a pull or a push goes to.
	Uri string
	// Gzip is the level that the body was compressed with: 1 to 9, -1 the
	// default level, -2 Huffman coding only, 0 not compressed.
	Gzip int32
	// StatusCode is a reply's outcome: 200 is OK and every other value, 0 too,
	// an error.
	StatusCode int32
	// Status is a reply's status text.
	Status string
	// Timeout, in a pull, is for how many milliseconds the caller will wait for the
	// reply, counted by each side from when it sends the pull or receives it; 0 is
	// without end.
	Timeout int64 `json:",omitempty"`
	// Meta is what the two sides have to say about the packet beside its body; it
	// counts as a part of the header, and has at most 256 pairs. Nil and an empty map are
	// the same.
	Meta map[string]string `json:",omitempty"`
	// NotRun, in a reply that is an error, says that no handler has run: the pull
	// can be made again without being made twice.
	NotRun bool `json:",omitempty"`
	// Load, in a pull, asks for the load of the other side if it is not 0. In the reply to such a pull it is
	// how many calls run or wait there, 1 at least, and 0 if the other side does not tell. It is a hint: the
	// other side may say what it likes, negative numbers too.
	Load int32 `json:",omitempty"`
	// QueueDelay, in the reply to a pull that asks for the load, is for how many microseconds calls have
	// lately waited there before their handlers began. It is as much a hint as Load.
	QueueDelay int32 `json:",omitempty"`
}

// RawBody is a body exactly as it stands on the wire: its codec id first, then
// the encoded bytes, compressed if the header's Gzip says so. As the Body of a
// packet it is sent untouched; a *RawBody takes a received body untouched. Empty
// means no body.
type RawBody []byte

// Codec returns the name of the codec that made the body, or an error that
// wraps [codec.ErrUnknown]. No body has the name "".
func (b RawBody) Codec() (string, error) {
	if len(b) == 0 {
		return "", nil
	}
	c, err := codec.GetById(b[0])
	if err != nil {
		return "", err
	}
	return c.Name(), nil
}
