package tp

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
)

// A pull of GoPull that waits for room to be written in may be settled by a
// reply that the other side sends without having seen it. The memory that its frame
// is in must not be given to another pull before it was written:
// what goes to this side's other connections would go to that one.
func TestEarlyReplyToAWaitingGoPull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPeer(nil)
		defer p.Close()
		ca, hostile := pipe.New(pipe.Options{})
		sess, err := p.ServeConn(ca)
		require.NoError(t, err)
		cb, other := pipe.New(pipe.Options{})
		victim, err := p.ServeConn(cb)
		require.NoError(t, err)
		go func() { _, _ = io.Copy(io.Discard, other) }()

		// The hostile side does not read, so this stays queued and fills it.
		require.Nil(t, sess.Push("/large", strings.Repeat("x", 9<<20), WithBodyCodec("string")))
		done := make(chan *PullCmd, 30)
		launched := make(chan struct{})
		go func() {
			defer close(launched)
			sess.GoPull("/hostile", "its own", nil, done)
		}()
		synctest.Wait()
		require.Equal(t, 1, sess.pulls.len(), "it waits")
		reply, err := packet.Append(nil, &packet.Packet{
			HeaderCodec: "protobuf", BodyCodec: "json", Body: 1,
			Header: &packet.Header{Id: "1", Type: packet.TypeReply, StatusCode: StatusOK},
		}, packet.Limits{})
		require.NoError(t, err)
		_, err = hostile.Write(reply)
		require.NoError(t, err)
		require.Nil(t, (<-done).Xerror)

		for i := range 20 {
			victim.GoPull(fmt.Sprint("/secret/", i), "of others", nil, done)
		}
		// Now the hostile side reads what was written to it.
		seen := make(chan string, 1)
		go func() { seen <- framesAfterLarge(hostile) }()
		<-launched
		synctest.Wait()
		_ = p.Close()
		got := <-seen
		_, _ = hostile.Close(), other.Close()
		require.NotContains(t, got, "secret")
		require.Contains(t, got, "/hostile")
	})
}

// framesAfterLarge reads to the end and returns what follows the large push.
func framesAfterLarge(c net.Conn) string {
	all, _ := io.ReadAll(bufio.NewReader(c))
	return string(all[bytes.LastIndexByte(all, 'x')+1:])
}
