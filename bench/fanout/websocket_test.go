package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/centrifugal/protocol"
	"google.golang.org/protobuf/encoding/protowire"
)

// A websocket frame of the server's.
func wsFrame(first byte, payload []byte) []byte {
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, byte(n))
	case n < 1<<16:
		b = append(b, 126, byte(n>>8), byte(n))
	default:
		b = append(b, 127, 0, 0, 0, 0, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	return append(b, payload...)
}

// upgraded is the answer to a request for a websocket connection.
const upgraded = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

// readerOf is for tests of what comes after the handshake.
func readerOf(in io.Reader) (*websocketReader, *conn) {
	c := &conn{in: in}
	return &websocketReader{member: &member{tally: newTally()}, conn: c, r: bufio.NewReaderSize(c, mostFrame),
		joined: true}, c
}

// reply encodes a reply, with its length before it.
func reply(t *testing.T, r *protocol.Reply) []byte {
	t.Helper()
	b := make([]byte, r.SizeCF())
	_, err := r.MarshalToSizedBufferCF(b)
	requireError(t, err, "")
	return protowire.AppendBytes(nil, b)
}

func publication(t *testing.T, number uint64) []byte {
	t.Helper()
	return reply(t, &protocol.Reply{Push: &protocol.Push{Channel: channel,
		Pub: &protocol.Publication{Data: message(number)}}})
}

func TestWebsocketMessages(t *testing.T) {
	const binary = frameFinal | frameBinary
	one, two := publication(t, 0), publication(t, 1)
	both := append(bytes.Clone(one), two...)
	var many []byte
	for n := range uint64(70) { // more than 64 KiB, so that the length has eight bytes
		many = append(many, publication(t, n)...)
	}
	for _, c := range []struct {
		name    string
		in      [][]byte
		counted int64
		answers []byte
		err     string
	}{
		{"messages", [][]byte{wsFrame(binary, one), wsFrame(binary, two)}, 2, nil, "EOF"},
		{"two in a frame", [][]byte{wsFrame(binary, both)}, 2, nil, "EOF"},
		{"many in a frame", [][]byte{wsFrame(binary, many)}, 70, nil, "EOF"},
		{"one in three frames", [][]byte{wsFrame(frameBinary, both[:100]),
			wsFrame(frameContinues, both[100:101]), wsFrame(frameFinal|frameContinues, both[101:])}, 2,
			nil, "EOF"},
		{"a ping of websocket", [][]byte{wsFrame(frameFinal|framePing, []byte("hi")),
			wsFrame(binary, one)}, 1,
			append([]byte{frameFinal | framePong, frameMasked | 2, 0, 0, 0, 0}, "hi"...), "EOF"},
		{"a ping of centrifuge", [][]byte{wsFrame(binary, []byte{0})}, 0,
			[]byte{binary, frameMasked | 1, 0, 0, 0, 0, 0}, "EOF"},
		{"one is lost", [][]byte{wsFrame(binary, two)}, 0, nil, "message 1 came where 0"},
		{"one comes twice", [][]byte{wsFrame(binary, one), wsFrame(binary, one)}, 1, nil,
			"message 0 came where 1"},
		{"no message", [][]byte{wsFrame(binary, []byte("\x02xy"))}, 0, nil, "a reply that is no publication"},
		{"a broken message", [][]byte{wsFrame(binary, one[:50])}, 0, nil, "unexpected EOF"},
		{"an end in words", [][]byte{wsFrame(frameFinal|frameClose, []byte("\x0b\xb8slow"))}, 0, nil,
			"closed the connection: 3000 slow"},
		{"an end", [][]byte{wsFrame(frameFinal|frameClose, nil)}, 0, nil, "closed the connection"},
		{"text", [][]byte{wsFrame(frameFinal|1, one)}, 0, nil, "a frame of kind 1"},
		{"the rest of nothing", [][]byte{wsFrame(frameFinal|frameContinues, one)}, 0, nil,
			"in the wrong place"},
		{"two beginnings", [][]byte{wsFrame(frameBinary, one), wsFrame(binary, two)}, 0, nil,
			"in the wrong place"},
		{"too long", [][]byte{{binary, 127, 0, 0, 0, 1, 0, 0, 0, 0}}, 0, nil, "a frame of 4294967296 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			requireServed(t, bytes.Join(c.in, nil), c.err, c.counted, c.answers,
				func(in io.Reader) (func() error, *member, *conn) {
					w, conn := readerOf(in)
					return w.serve, w.member, conn
				})
		})
	}
	whole := wsFrame(binary, one)
	for n := range whole { // cut off anywhere
		w, _ := readerOf(bytes.NewReader(whole[:n]))
		if err := w.serve(); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) ||
			w.member.tally.delivered.Load() != 0 {
			t.Fatalf("after %d bytes: %v, %d deliveries", n, err, w.member.tally.delivered.Load())
		}
	}
}

func TestWebsocketOpens(t *testing.T) {
	joined := wsFrame(frameFinal|frameBinary, reply(t, &protocol.Reply{Id: 1,
		Connect: &protocol.ConnectResult{Client: "c"}}))
	refused := wsFrame(frameFinal|frameBinary, reply(t, &protocol.Reply{Id: 1,
		Error: &protocol.Error{Code: 101, Message: "no"}}))
	for _, c := range []struct{ name, in, err string }{
		{"it joins", upgraded + string(joined), ""},
		{"no websocket", "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "403 Forbidden"},
		{"no HTTP", "nonsense\r\n\r\n", "malformed HTTP"},
		{"it is refused", upgraded + string(refused), "a reply that is no publication"},
		{"it hears nothing", upgraded, "EOF"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := openWebsocket(&conn{in: strings.NewReader(c.in)}, &member{tally: newTally()})
			requireError(t, err, c.err)
		})
	}
}
