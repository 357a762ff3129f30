package wiretest

import (
	"encoding/json"
	"fmt"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
)

// chunks reads one byte at a time.
type chunks struct{ b []byte }

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(1, len(p))], c.b)
	c.b = c.b[n:]
	return n, nil
}

// TestPipeline sends 500 pulls of all kinds in one write.
func TestPipeline(t *testing.T) {
	_, c := start(t)
	const n = 500
	cases := bodyCases()
	pulls := map[string]frame{}
	bodies := map[string]bodyCase{}
	var stream []byte
	for i := range n {
		bc := cases[i%len(cases)]
		headerCodec := idProtobuf
		if i%2 == 1 {
			headerCodec = idJSON
		}
		id := fmt.Sprint(i)
		pulls[id] = frame{
			headerCodec: headerCodec,
			header:      header{ID: id, Type: typePull, URI: bc.echo, Gzip: gzipLevels[i%5]},
		}.withBody(bc.codecID, bc.plain)
		bodies[id] = bc
		stream = append(stream, pulls[id].encode()...)
	}
	c.write(t, stream)
	for range n {
		reply := c.receive(t)
		id := reply.header.ID
		require.Contains(t, pulls, id, "answered twice, or never asked")
		requireReply(t, pulls[id], reply)
		bodies[id].requireSameBody(t, reply)
		delete(pulls, id)
	}
	c.alive(t)
}

// TestByteByByte sends each byte in a write of its own.
func TestByteByByte(t *testing.T) {
	_, c := start(t)
	for _, headerCodec := range headerCodecs() {
		pull := textPull("slow", "byte by byte")
		pull.headerCodec = headerCodec
		for _, b := range pull.encode() {
			c.write(t, []byte{b})
		}
		reply := c.receive(t)
		requireReply(t, pull, reply)
		require.Equal(t, "byte by byte", string(reply.plain(t)))
	}
	c.alive(t)
}

// TestCutInTwo sends two frames in one write, the second only in part. The rest
// follows when the first has been answered.
func TestCutInTwo(t *testing.T) {
	_, c := start(t)
	first, second := textPull("first", "1"), textPull("second", "2")
	a, b := first.encode(), second.encode()
	for cut := range b {
		c.write(t, append(a[:len(a):len(a)], b[:cut]...))
		requireReply(t, first, c.receive(t))
		c.write(t, b[cut:])
		reply := c.receive(t)
		requireReply(t, second, reply)
		require.Equal(t, "2", string(reply.plain(t)))
	}
	c.alive(t)
}

// TestCutOff ends the connection inside a push, at every offset. Nothing is
// handled and no other session notices.
func TestCutOff(t *testing.T) {
	s, other := start(t)
	b := frame{
		headerCodec: idProtobuf,
		header:      header{ID: "cut", Type: typePush, URI: "/note/text"},
	}.withBody(idString, []byte("text")).encode()
	for cut := range b {
		c := s.dial(t)
		c.write(t, b[:cut])
		c.close()
		other.alive(t)
	}
}

// TestBodyLimit: a body of the limit's length passes, one more byte does not,
// and the frame after it is read.
func TestBodyLimit(t *testing.T) {
	s, c := start(t)
	f := frame{
		headerCodec: idProtobuf,
		header:      header{ID: "long", Type: typePull, URI: "/echo/length"},
		body:        make([]byte, maxBody, maxBody+1),
	}
	f.body[0] = idString
	reply := c.ask(t, f)
	require.Equal(t, "long", reply.header.ID)
	require.Equal(t, int32(200), reply.header.StatusCode, reply.header.Status)
	var n int
	require.NoError(t, json.Unmarshal(reply.plain(t), &n))
	require.Equal(t, maxBody-1, n)
	c.alive(t)

	f.body = append(f.body, 0)
	for _, headerCodec := range headerCodecs() {
		f.headerCodec = headerCodec
		requireFailed(t, f, c.ask(t, f), 413)
		c.alive(t)
	}

	// What is short on the wire may be long behind it.
	bomb := f
	bomb.header.Gzip = 9
	bomb = bomb.withBody(idString, f.body)
	require.Less(t, len(bomb.body), maxBody)
	requireFailed(t, bomb, c.ask(t, bomb), 413)
	c.alive(t)

	// A push and a reply to nothing are passed over.
	for _, typ := range []int32{typePush, typeReply} {
		f.header.Type, f.header.URI = typ, "/note/text"
		c.write(t, f.encode())
		c.alive(t)
	}

	// A length that is impossible to keep is not taken on trust either.
	liar := s.dial(t)
	liar.write(t, append(rawFrame(idProtobuf, protobufHeader(f.header),
		nil)[:5+len(protobufHeader(f.header))], 0xff, 0xff, 0xff, 0xff, idString, 'x'))
	liar.close()
	c.alive(t)
}
