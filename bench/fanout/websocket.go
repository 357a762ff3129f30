package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/centrifugal/protocol"
	"google.golang.org/protobuf/encoding/protowire"
)

// websocketPath is where centrifuge listens; its query chooses protobuf.
const websocketPath = "/connection/websocket?cf_protocol=protobuf"

// websocketReader receives publications of centrifuge by a websocket connection. It knows as much of both
// protocols as that takes, so that it costs little.
type websocketReader struct {
	member *member
	conn   net.Conn
	r      *bufio.Reader
	buf    []byte
	joined bool // the answer to the command has come
}

// Kinds of frames of a websocket connection, in their first byte, and its other bits.
const (
	frameContinues = 0
	frameBinary    = 2
	frameClose     = 8
	framePing      = 9
	framePong      = 10
	frameFinal     = 0x80
	frameMasked    = 0x80 // in the second byte
)

// openWebsocket asks for a websocket connection, makes the command by which the server has the member join,
// and waits for its answer.
func openWebsocket(conn net.Conn, m *member) (*websocketReader, error) {
	w := &websocketReader{member: m, conn: conn, r: bufio.NewReaderSize(conn, mostFrame)}
	_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\n"+
		"Connection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", websocketPath,
		conn.RemoteAddr())
	if err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(w.r, nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, fmt.Errorf("the answer to the request for a websocket connection is %s",
			resp.Status)
	}
	command, err := protocol.NewProtobufCommandEncoder().Encode(&protocol.Command{Id: 1,
		Connect: &protocol.ConnectRequest{}})
	if err != nil {
		return nil, err
	}
	if err := w.write(frameBinary, command); err != nil {
		return nil, err
	}
	for !w.joined {
		if err := w.next(); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// serve reads until the connection ends, which is an error too.
func (w *websocketReader) serve() error {
	for {
		if err := w.next(); err != nil {
			return err
		}
	}
}

// next takes one message.
func (w *websocketReader) next() error {
	kind, message, err := w.message()
	if err != nil {
		return err
	}
	switch kind {
	case frameBinary:
		return w.replies(message)
	case framePing:
		return w.write(framePong, message)
	case frameClose:
		if len(message) >= 2 {
			return fmt.Errorf("the server has closed the connection: %d %s",
				binary.BigEndian.Uint16(message), message[2:])
		}
		return errors.New("the server has closed the connection")
	}
	return fmt.Errorf("a frame of kind %d", kind)
}

// write writes a short frame. Clients have to mask what they write; a mask of zeros changes nothing.
func (w *websocketReader) write(kind byte, payload []byte) error {
	if len(payload) > 125 {
		return fmt.Errorf("a frame of %d bytes, where 125 fit", len(payload))
	}
	frame := append([]byte{frameFinal | kind, frameMasked | byte(len(payload)), 0, 0, 0, 0}, payload...)
	_, err := w.conn.Write(frame)
	return err
}

// message reads one message, which may be in several frames. It is good until the next one.
func (w *websocketReader) message() (kind byte, message []byte, err error) {
	w.buf = w.buf[:0]
	for first := true; ; first = false {
		head, err := w.r.Peek(2)
		if err != nil {
			return 0, nil, err
		}
		final, k, length := head[0]&frameFinal != 0, head[0]&0x0f, uint64(head[1])
		if (k == frameContinues) == first {
			return 0, nil, fmt.Errorf("a frame of kind %d in the wrong place", k)
		}
		if first {
			kind = k
		}
		w.r.Discard(2)
		switch length {
		case 126:
			length, err = w.length(2)
		case 127:
			length, err = w.length(8)
		}
		if err != nil {
			return 0, nil, err
		}
		if length > 1<<20 {
			return 0, nil, fmt.Errorf("a frame of %d bytes", length)
		}
		from := len(w.buf)
		w.buf = append(w.buf, make([]byte, length)...)
		if _, err := io.ReadFull(w.r, w.buf[from:]); err != nil {
			return 0, nil, err
		}
		if final {
			return kind, w.buf, nil
		}
	}
}

// length reads a length of so many bytes.
func (w *websocketReader) length(size int) (length uint64, err error) {
	b, err := w.r.Peek(size)
	if err != nil {
		return 0, err
	}
	for _, c := range b {
		length = length<<8 | uint64(c)
	}
	_, err = w.r.Discard(size)
	return length, err
}

// replies takes the replies of a message, each of which has its length before it.
func (w *websocketReader) replies(b []byte) error {
	for len(b) > 0 {
		reply, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if len(reply) == 0 { // a ping, which is answered by an empty command
			if err := w.write(frameBinary, []byte{0}); err != nil {
				return err
			}
			continue
		}
		if err := w.reply(reply); err != nil {
			return err
		}
	}
	return nil
}

// Numbers of fields of the protocol of centrifuge.
const (
	replyPush       protowire.Number = 4
	replyConnect    protowire.Number = 5
	pushPublication protowire.Number = 4
	publicationData protowire.Number = 4
)

func (w *websocketReader) reply(b []byte) error {
	if data, ok := fieldAt(b, replyPush, pushPublication, publicationData); ok {
		return w.member.receive(data)
	}
	if _, ok := fieldAt(b, replyConnect); ok && !w.joined {
		w.joined = true
		return nil
	}
	return fmt.Errorf("a reply that is no publication: %x", b)
}

// fieldAt returns the field of b to which the numbers lead, by messages that are in each other.
func fieldAt(b []byte, numbers ...protowire.Number) (field []byte, ok bool) {
	for len(b) > 0 {
		number, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, false
		}
		b = b[n:]
		if typ != protowire.BytesType || number != numbers[0] {
			if n = protowire.ConsumeFieldValue(number, typ, b); n < 0 {
				return nil, false
			}
			b = b[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return nil, false
		}
		if len(numbers) == 1 {
			return value, true
		}
		return fieldAt(value, numbers[1:]...)
	}
	return nil, false
}
