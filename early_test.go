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

// A pull that waits for room is not in flight: a reply that the other side sends
// without having seen it, for it can guess ids, does not end it. What is written of
// it in the end is its own, and nothing of what has been pulled meanwhile on other
// connections.
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
		require.Zero(t, sess.link.Load().pulls.len(), "it waits, and is not in flight")
		reply, err := packet.Append(nil, &packet.Packet{
			HeaderCodec: "protobuf", BodyCodec: "json", Body: 1,
			Header: &packet.Header{Id: "1", Type: packet.TypeReply, StatusCode: StatusOK},
		}, packet.Limits{})
		require.NoError(t, err)
		_, err = hostile.Write(reply)
		require.NoError(t, err)
		synctest.Wait()
		require.Empty(t, done, "there was nothing to answer")

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
