package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/henrylee2cn/teleport/packet"
)

// conn is a connection that reads from one and writes to the other.
type conn struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (c *conn) Read(b []byte) (int, error)  { return c.in.Read(b) }
func (c *conn) Write(b []byte) (int, error) { return c.out.Write(b) }
func (c *conn) RemoteAddr() net.Addr        { return &net.TCPAddr{} }

// frame is a packet with the header, the string body, if it is not nil, behind it.
func frame(t *testing.T, h packet.Header, body []byte) []byte {
	t.Helper()
	p := &packet.Packet{Header: &h}
	if body != nil {
		p.Body, p.BodyCodec = body, "string"
	}
	b, err := packet.Append(nil, p, packet.Limits{})
	requireError(t, err, "")
	return b
}

func tick(t *testing.T, number uint64, gzip int32) []byte {
	t.Helper()
	return frame(t, packet.Header{Type: packet.TypePush, Uri: tickURI, Gzip: gzip}, message(number))
}

// newFrames returns a member that reads the bytes.
func newFrames(in io.Reader) (*frameReader, *conn) {
	c := &conn{in: in}
	return newFrameReader(c, &member{tally: newTally()}, new(atomic.Pointer[inflated])), c
}

// requireServed requires that a member which reads the bytes, all at once and one at a time, ends with the
// error, has counted so many deliveries, and has answered so.
func requireServed(t *testing.T, in []byte, text string, counted int64, answers []byte,
	reader func(in io.Reader) (serve func() error, m *member, c *conn)) {
	t.Helper()
	for _, r := range []io.Reader{bytes.NewReader(in), iotest.OneByteReader(bytes.NewReader(in))} {
		serve, m, c := reader(r)
		requireError(t, serve(), text)
		if n := m.tally.delivered.Load(); n != counted {
			t.Errorf("%d deliveries were counted of %d", n, counted)
		}
		if !bytes.Equal(c.out.Bytes(), answers) {
			t.Errorf("the answers are %x, want %x", c.out.Bytes(), answers)
		}
	}
}

func TestFrames(t *testing.T) {
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		requireError(t, err, "")
		return b
	}
	question := frame(t, packet.Header{Id: "credit", Type: packet.TypeCredit,
		Meta: map[string]string{"pulls": "4096"}}, nil)
	ping := frame(t, packet.Header{Id: "p1", Type: packet.TypePing}, nil)
	unbounded := frame(t, packet.Header{Type: packet.TypeCredit,
		Meta: map[string]string{"pulls": "none", "push_window": "none"}}, nil)
	pong := frame(t, packet.Header{Id: "p1", Type: packet.TypeReply, StatusCode: 200}, nil)
	away := frame(t, packet.Header{Type: packet.TypeGoAway}, nil)
	other := frame(t, packet.Header{Type: packet.TypePush, Uri: "/other"}, message(0))
	json, err := packet.Append(nil, &packet.Packet{Body: "text",
		Header: &packet.Header{Type: packet.TypePush, Uri: tickURI}}, packet.Limits{})
	requireError(t, err, "")
	for _, c := range []struct {
		name    string
		in      [][]byte
		counted int64
		answers []byte
		err     string
	}{
		{"nothing", nil, 0, nil, "EOF"},
		{"messages", [][]byte{tick(t, 0, 0), tick(t, 1, 0), tick(t, 2, 0)}, 3, nil, "EOF"},
		{"compressed", [][]byte{tick(t, 0, -1), tick(t, 1, 9), tick(t, 2, 0)}, 3, nil, "EOF"},
		{"a question for credit", [][]byte{tick(t, 0, 0), question, tick(t, 1, 0)}, 2, unbounded, "EOF"},
		{"a ping", [][]byte{ping, tick(t, 0, 0)}, 1, pong, "EOF"},
		{"both", [][]byte{ping, question}, 0, slices.Concat(pong, unbounded), "EOF"},
		{"the server goes away", [][]byte{tick(t, 0, 0), away}, 1, nil, "EOF"},
		{"a message is lost", [][]byte{tick(t, 0, 0), tick(t, 2, 0)}, 1, nil, "message 2 came where 1"},
		{"another URI", [][]byte{other}, 0, nil, `the URI "/other", where a push of /tick was expected`},
		{"a reply", [][]byte{pong}, 0, nil, `a packet of type 2 with the id "p1"`},
		{"another codec", [][]byte{json}, 0, nil, "where the codec string was expected"},
		{"no body", [][]byte{frame(t, packet.Header{Type: packet.TypePush, Uri: tickURI}, nil)}, 0, nil,
			"a body of 0 bytes"},
		{"a header that is too long", [][]byte{unhex("00002000" + "70")}, 0, nil, "a length of 8192"},
		{"a header that is much too long", [][]byte{unhex("ffffffff" + "70")}, 0, nil,
			"a length of 4294967295"},
		{"no header", [][]byte{unhex("00000000" + "00000000")}, 0, nil, "no codec id"},
		{"a body that is too long", [][]byte{unhex("00000003" + "701003" + "ffffff00")}, 0, nil,
			"a length of 4294967040"},
	} {
		t.Run(c.name, func(t *testing.T) {
			requireServed(t, bytes.Join(c.in, nil), c.err, c.counted, c.answers,
				func(in io.Reader) (func() error, *member, *conn) {
					f, conn := newFrames(in)
					return f.serve, f.member, conn
				})
		})
	}
}

// A frame that is cut off anywhere is no delivery.
func TestFrameIsCutOff(t *testing.T) {
	whole := tick(t, 0, 0)
	for n := range whole {
		f, _ := newFrames(bytes.NewReader(whole[:n]))
		if err := f.serve(); !errors.Is(err, io.EOF) || f.member.tally.delivered.Load() != 0 {
			t.Fatalf("after %d bytes: %v, %d deliveries", n, err, f.member.tally.delivered.Load())
		}
	}
}

// Members that get the same compressed bytes share what they are decompressed, and those that get others do
// not.
func TestCompressedBodiesAreShared(t *testing.T) {
	tl, shared := newTally(), new(atomic.Pointer[inflated])
	same, other := tick(t, 0, -1), tick(t, 0, 1)
	for i, in := range [][]byte{same, same, other, same} {
		f := newFrameReader(&conn{in: bytes.NewReader(in)}, &member{tally: tl}, shared)
		requireError(t, f.serve(), "EOF")
		if n := tl.delivered.Load(); n != int64(i+1) {
			t.Fatalf("%d deliveries after %d", n, i+1)
		}
	}
	bad := bytes.Clone(same)
	bad[len(bad)-5]++ // of the sum that ends the stream
	f := newFrameReader(&conn{in: bytes.NewReader(bad)}, &member{tally: tl}, shared)
	if err := f.serve(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("bytes that are broken: %v", err)
	}
}
