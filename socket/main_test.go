package socket_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// conns is a way to get two connected ends.
type conns struct {
	name string
	open func(t testing.TB) (net.Conn, net.Conn)
}

var transports = []conns{
	{"pipe", overPipe(pipe.Options{})},
	{"one byte a read", overPipe(pipe.Options{Chunk: 1})},
	{"small buffer", overPipe(pipe.Options{Buffer: 100, Chunk: 7})},
	{"tcp", overTCP},
}

func overPipe(o pipe.Options) func(testing.TB) (net.Conn, net.Conn) {
	return func(t testing.TB) (net.Conn, net.Conn) {
		a, b := pipe.New(o)
		t.Cleanup(func() { a.Close(); b.Close() })
		return a, b
	}
}

func overTCP(t testing.TB) (net.Conn, net.Conn) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	b, err := ln.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// sockets returns the two ends of a pipe with these faults.
func sockets(t testing.TB, o pipe.Options, so socket.Options) (*socket.Socket, *socket.Socket) {
	a, b := overPipe(o)(t)
	return socket.New(a, so), socket.New(b, so)
}

// message is a push with a body of text.
func message(id, body string) *packet.Packet {
	return &packet.Packet{BodyCodec: "string", Header: &packet.Header{Id: id, Type: packet.TypePush,
		Uri: "/a"}, Body: body}
}

func frame(t testing.TB, p *packet.Packet) []byte {
	t.Helper()
	b, err := packet.Append(nil, p, packet.Limits{Header: -1, Body: -1, Inflated: -1})
	require.NoError(t, err)
	return b
}

// receive reads a packet with a body of text.
func receive(s *socket.Socket) (id, body string, err error) {
	p, err := receivePacket(s, &body)
	if err != nil {
		return "", "", err
	}
	return p.Header.Id, body, nil
}

func receivePacket(s *socket.Socket, body interface{}) (*packet.Packet, error) {
	var p packet.Packet
	err := s.ReadPacket(&p, func(*packet.Header) interface{} { return body })
	return &p, err
}

func requireMessage(t *testing.T, s *socket.Socket, id, body string) {
	t.Helper()
	gotId, gotBody, err := receive(s)
	require.NoError(t, err)
	require.Equal(t, id, gotId)
	require.True(t, body == gotBody, "body of %d bytes, wanted %d", len(gotBody), len(body))
}

// requireOver requires that nothing more comes, in good order.
func requireOver(t *testing.T, s *socket.Socket) {
	t.Helper()
	_, _, err := receive(s)
	require.True(t, err == io.EOF, "%v", err)
	require.True(t, socket.Fatal(err))
}

// send writes raw bytes, which the pipe has to have room for.
func send(t *testing.T, c net.Conn, b []byte) {
	t.Helper()
	n, err := c.Write(b)
	require.NoError(t, err)
	require.Equal(t, len(b), n)
}

func requireWriteError(t *testing.T, err error, is error) {
	t.Helper()
	var we *socket.WriteError
	require.ErrorAs(t, err, &we)
	require.ErrorIs(t, err, is)
}

// gate is a connection whose writes wait to be let through.
type gate struct {
	net.Conn
	entered chan []byte // what a Write is about to write
	result  chan error  // what it returns
}

func newGate(t testing.TB) (*gate, net.Conn) {
	a, b := overPipe(pipe.Options{Buffer: 64 << 20})(t)
	return &gate{a, make(chan []byte), make(chan error)}, b
}

func (g *gate) Write(p []byte) (int, error) {
	g.entered <- bytes.Clone(p)
	if err := <-g.result; err != nil {
		return 0, err
	}
	return g.Conn.Write(p)
}

// Codecs that do not decode, with errors that look like a connection's own.
func init() {
	codec.Reg(badCodec{1, io.EOF})
	codec.Reg(badCodec{2, fmt.Errorf("wrapped: %w", io.EOF)})
	codec.Reg(badCodec{3, &net.ParseError{Type: "address", Text: "nowhere"}})
	codec.Reg(badCodec{4, net.ErrClosed})
}

type badCodec struct {
	id  byte
	err error
}

func (c badCodec) Id() byte                            { return c.id }
func (c badCodec) Name() string                        { return fmt.Sprintf("bad%d", c.id) }
func (c badCodec) Marshal(interface{}) ([]byte, error) { return nil, c.err }
func (c badCodec) Unmarshal([]byte, interface{}) error { return c.err }

var errGate = errors.New("gate: this write fails")
