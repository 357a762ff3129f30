package wiretest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// patience bounds every wait, so that a failure does not hang.
const patience = 30 * time.Second

// client is one connection of the second implementation.
type client struct {
	conn  net.Conn
	r     *bufio.Reader
	pulls int     // how many pulls alive has made
	over  bool    // the test has ended the connection itself
	away  []int32 // the statuses of the frames that said that the server goes away
}

// write sends bytes as they are, in one write.
func (c *client) write(t *testing.T, b []byte) {
	t.Helper()
	require.NoError(t, c.conn.SetWriteDeadline(time.Now().Add(patience)))
	_, err := c.conn.Write(b)
	require.NoError(t, err)
}

// receive reads the next frame, past those that say that the server goes away.
func (c *client) receive(t *testing.T) frame {
	t.Helper()
	require.NoError(t, c.conn.SetReadDeadline(time.Now().Add(patience)))
	for {
		f, err := readFrame(c.r)
		require.NoError(t, err)
		if !c.isGoAway(t, f) {
			return f
		}
	}
}

// isGoAway notes a frame that says that the server goes away: it has a status and
// nothing else. A server says so at most twice, the second time with the status 200.
func (c *client) isGoAway(t *testing.T, f frame) bool {
	t.Helper()
	if f.header.Type != typeGoAway {
		return false
	}
	require.Equal(t, header{Type: typeGoAway, StatusCode: f.header.StatusCode}, f.header)
	require.Empty(t, f.body)
	c.away = append(c.away, f.header.StatusCode)
	require.Contains(t, [][]int32{{0}, {0, 200}}, c.away)
	return true
}

// ask sends a packet and reads the next frame.
func (c *client) ask(t *testing.T, f frame) frame {
	t.Helper()
	c.write(t, f.encode())
	return c.receive(t)
}

// alive makes a good pull. The next frame must be its reply, so that nothing
// has been sent that the test has not read.
func (c *client) alive(t *testing.T) {
	t.Helper()
	c.pulls++
	id := fmt.Sprintf("alive %d", c.pulls)
	pull := textPull(id, id)
	reply := c.ask(t, pull)
	requireReply(t, pull, reply)
	require.Equal(t, id, string(reply.plain(t)))
}

// requireCut requires that the other side ends the connection and sends
// nothing before.
func (c *client) requireCut(t *testing.T) {
	t.Helper()
	require.NoError(t, c.conn.SetReadDeadline(time.Now().Add(patience)))
	b, err := io.ReadAll(c.r)
	require.Empty(t, b, "sent before the end of the connection")
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the connection was not closed")
	c.close()
}

// requireEnd requires that the other side ends the connection in good order
// and sends nothing before but that it goes away.
func (c *client) requireEnd(t *testing.T) {
	t.Helper()
	require.NoError(t, c.conn.SetReadDeadline(time.Now().Add(patience)))
	for {
		f, err := readFrame(c.r)
		if err != nil {
			require.Equal(t, io.EOF, err)
			break
		}
		require.True(t, c.isGoAway(t, f), "%+v was sent but never asked for", f)
	}
	c.close()
}

func (c *client) close() {
	c.over = true
	_ = c.conn.Close() // nothing is lost that a test has not checked
}

// textPull is a pull of /echo/text, which answers with the same text.
func textPull(id, text string) frame {
	return frame{
		headerCodec: idProtobuf,
		header:      header{ID: id, Type: typePull, URI: "/echo/text"},
	}.withBody(idString, []byte(text))
}

// answer is the reply of status 200 to a pull, without a body.
func answer(pull frame) frame {
	return frame{
		headerCodec: pull.headerCodec,
		header:      header{ID: pull.header.ID, Type: typeReply, StatusCode: 200, Gzip: pull.header.Gzip},
	}
}

// requireReply requires that f is the reply of status 200 to the pull.
func requireReply(t *testing.T, pull, f frame) {
	t.Helper()
	require.Equal(t, typeReply, f.header.Type)
	require.Equal(t, pull.header.ID, f.header.ID)
	require.Equal(t, int32(200), f.header.StatusCode, f.header.Status)
	require.Equal(t, string(pull.headerCodec), string(f.headerCodec))
	if len(pull.body) > 0 && len(f.body) > 0 {
		require.Equal(t, string(pull.body[:1]), string(f.body[:1]))
		// Whether it is compressed is up to who asks, and how much to who answers.
		require.Equal(t, pull.header.Gzip != 0, f.header.Gzip != 0)
	}
}

// requireFailed requires that f is a reply to the pull with the status code,
// without a body.
func requireFailed(t *testing.T, pull, f frame, code int32) {
	t.Helper()
	require.Equal(t, typeReply, f.header.Type)
	require.Equal(t, pull.header.ID, f.header.ID)
	require.Equal(t, code, f.header.StatusCode, f.header.Status)
	require.Equal(t, string(pull.headerCodec), string(f.headerCodec))
	require.Empty(t, f.body)
}

// receiveChan waits for a value.
func receiveChan[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		require.FailNow(t, "nothing came")
		panic("not reached")
	}
}
