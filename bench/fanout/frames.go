package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/henrylee2cn/teleport/packet"
)

const (
	// tickURI is where messages are pushed to.
	tickURI = "/tick"
	// mostFrame is how long a frame may be, in bytes, and how much of its input a member has in memory.
	mostFrame = 8 << 10
)

// frameReader receives pushes on a bare connection. Of the protocol it does what a side that only listens has
// to do: it answers pings, and the question for credit with no bound. A side that takes pushes without a
// bound may say so, see docs/protocol.md, and costs the sender least, as it grants once.
type frameReader struct {
	member   *member
	conn     net.Conn
	r        *bufio.Reader
	header   packet.HeaderView
	inflated *atomic.Pointer[inflated] // of all members
}

// inflated is a body that was decompressed. All members get the same bytes, so that one of them decompresses
// for all, and the members leave the processors to the server.
type inflated struct{ body, plain []byte }

func newFrameReader(conn net.Conn, m *member, shared *atomic.Pointer[inflated]) *frameReader {
	return &frameReader{member: m, conn: conn, r: bufio.NewReaderSize(conn, mostFrame), inflated: shared}
}

// serve reads until the connection ends, which is an error too.
func (f *frameReader) serve() error {
	for {
		if err := f.next(); err != nil {
			return err
		}
	}
}

// next reads one packet.
func (f *frameReader) next() error {
	headerEnd, _, err := f.until(0)
	if err != nil {
		return err
	}
	end, b, err := f.until(headerEnd)
	if err != nil {
		return err
	}
	h := &f.header
	if err := h.Decode(b[packet.LengthSize:headerEnd]); err != nil {
		return err
	}
	if err := f.take(h, b[headerEnd+packet.LengthSize:]); err != nil {
		return err
	}
	_, err = f.r.Discard(end)
	return err
}

// until reads a length at the place in the frame, and as many bytes behind it. It returns where these end,
// and the frame so far, which is good until more is read.
func (f *frameReader) until(at int) (end int, frame []byte, err error) {
	b, err := f.r.Peek(at + packet.LengthSize)
	if err != nil {
		return 0, nil, err
	}
	length := binary.BigEndian.Uint32(b[at:])
	if length > mostFrame-uint32(at)-packet.LengthSize {
		return 0, nil, fmt.Errorf("a length of %d in a frame that has %d bytes at most", length, mostFrame)
	}
	end = at + packet.LengthSize + int(length)
	frame, err = f.r.Peek(end)
	return end, frame, err
}

// take takes a packet, of whose body the codec's id is the first byte.
func (f *frameReader) take(h *packet.HeaderView, body []byte) error {
	switch {
	case h.Type == packet.TypePush && string(h.Uri) == tickURI:
		return f.push(h.Gzip, body)
	case h.Type == packet.TypeCredit && len(h.Id) > 0:
		return f.answer(&packet.Header{Type: packet.TypeCredit,
			Meta: map[string]string{"pulls": "none", "push_window": "none"}})
	case h.Type == packet.TypePing && len(h.Id) > 0:
		return f.answer(&packet.Header{Id: string(h.Id), Type: packet.TypeReply, StatusCode: 200})
	case h.Type == packet.TypeGoAway:
		return nil
	}
	return fmt.Errorf("a packet of type %d with the id %q and the URI %q, "+
		"where a push of %s was expected", h.Type, h.Id, h.Uri, tickURI)
}

func (f *frameReader) push(gzip int32, body []byte) error {
	if len(body) == 0 || body[0] != 's' {
		return fmt.Errorf("a body of %d bytes, which begins with %.1q, where the codec string"+
			" was expected", len(body), body)
	}
	if gzip == 0 {
		return f.member.receive(body[1:])
	}
	one := f.inflated.Load()
	if one == nil || !bytes.Equal(one.body, body) {
		one = &inflated{body: bytes.Clone(body)}
		if _, err := packet.DecodeBody(body, gzip, &one.plain, packet.Limits{}); err != nil {
			return err
		}
		f.inflated.Store(one)
	}
	return f.member.receive(one.plain)
}

func (f *frameReader) answer(h *packet.Header) error {
	b, err := packet.Append(nil, &packet.Packet{Header: h}, packet.Limits{})
	if err != nil {
		return err
	}
	_, err = f.conn.Write(b)
	return err
}
