package tp

import (
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
)

// A session that is idle lives, however its last packet has come: the time for a
// packet is over with the packet. On a real connection, for a reader that waits
// there does so without a buffer, and is replaced when nothing comes.
func TestIdleSessionOutlivesFrameTimeout(t *testing.T) {
	srv := newTestPeer(t, &PeerConfig{FrameTimeout: 300 * time.Millisecond})
	cli := newTestPeer(t, &PeerConfig{FrameTimeout: 300 * time.Millisecond})
	pullFn(srv, echo)
	addr := serve(t, srv)
	small, err := cli.Dial(addr)
	require.NoError(t, err)
	large, err := cli.Dial(addr)
	require.NoError(t, err)
	requireAlive(t, small)
	// More than one read takes: the packet begins, and its time runs.
	require.Nil(t, large.Pull("/fn/call", strings.Repeat("x", 1<<20), nil).Xerror)
	requireStaysOpen(t, small)
	requireAlive(t, small)
	requireAlive(t, large)
}

// So does one whose read timeout is changed in the middle of a packet.
func TestReadTimeoutIsChangedInsideAPacket(t *testing.T) {
	srv := newTestPeer(t, &PeerConfig{FrameTimeout: 300 * time.Millisecond})
	pullFn(srv, echo)
	conn, err := net.Dial("tcp", serve(t, srv))
	require.NoError(t, err)
	defer conn.Close()
	frame, err := packet.Append(nil, &packet.Packet{Header: &packet.Header{Id: "1", Type: packet.TypePull,
		Uri: "/fn/call"}, Body: "x"}, packet.Limits{})
	require.NoError(t, err)
	buf := make([]byte, 1000)
	_, err = conn.Write(frame)
	require.NoError(t, err)
	_, err = conn.Read(buf)
	require.NoError(t, err)
	var sess *Session
	srv.RangeSession(func(s *Session) bool { sess = s; return false })
	_, err = conn.Write(frame[:7])
	require.NoError(t, err)
	for range 20 { // some of it while the packet is being read
		time.Sleep(time.Millisecond)
		sess.SetReadTimeout(0)
	}
	_, err = conn.Write(frame[7:])
	require.NoError(t, err)
	_, err = conn.Read(buf)
	require.NoError(t, err)
	requireStaysOpen(t, sess)
}

// requireStaysOpen watches an idle session until its reader has been replaced.
func requireStaysOpen(t *testing.T, sess *Session) {
	t.Helper()
	select {
	case <-sess.Done():
		t.Fatal("the session was closed because it was idle")
	case <-time.After(2*quietTime + 500*time.Millisecond):
	}
}

// A connection that fails while it is being closed is closed all the same, and
// Close says so.
func TestCloseWhileAWriteFails(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	conn := &failingConn{Conn: near, closing: make(chan struct{}), goOn: make(chan struct{})}
	p := newTestPeer(t, nil)
	sess, err := p.ServeConn(conn)
	require.NoError(t, err)
	require.Nil(t, sess.Push("/x", 1)) // is written elsewhere
	<-conn.closing                     // the writer closes the connection, and the session does not know yet
	err = sess.Close()
	close(conn.goOn)
	require.NoError(t, err)
}

// failingConn cannot write. Its first Close waits for goOn; a further one is an
// error, as with a connection of the kernel's.
type failingConn struct {
	net.Conn
	closing, goOn chan struct{}
	closes        atomic.Int32
}

func (c *failingConn) Write([]byte) (int, error) { return 0, net.ErrClosed }

func (c *failingConn) Close() error {
	if c.closes.Add(1) > 1 {
		return net.ErrClosed
	}
	close(c.closing)
	<-c.goOn
	return c.Conn.Close()
}

// What is sent on a session that has closed takes nothing from the budget, and so
// nothing from the sessions that live.
func TestPushAfterCloseTakesNoBudget(t *testing.T) {
	for name, end := range map[string]func(near, far *Session) error{
		"closed here":  func(near, _ *Session) error { return near.Close() },
		"closed there": func(_, far *Session) error { return far.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv, cli := newTestPeer(t, &PeerConfig{MaxBufferedBytes: 1 << 20}), newTestPeer(t, nil)
				pullFn(srv, echo)
				good, _ := connect(t, cli, srv, pipe.Options{})
				for range 20 {
					near, far := connect(t, srv, cli, pipe.Options{})
					require.NoError(t, end(near, far))
					<-near.Done()
					synctest.Wait()
					x := near.Push("/x", strings.Repeat("x", 100_000))
					require.NotNil(t, x)
					require.Equal(t, StatusConnClosed, x.Code())
				}
				require.Zero(t, srv.memory())
				requireAlive(t, good)
			})
		})
	}
}

// Nor does what is sent between the failure of a write and the end of the session.
func TestPushWhileAWriteFailsTakesNoBudget(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	conn := &failingConn{Conn: near, closing: make(chan struct{}), goOn: make(chan struct{})}
	p := withoutCredit(newTestPeer(t, nil))
	sess, err := p.ServeConn(conn)
	require.NoError(t, err)
	require.Nil(t, sess.Push("/x", 1))
	<-conn.closing
	require.NotNil(t, sess.Push("/x", strings.Repeat("x", 1<<20)))
	close(conn.goOn)
	<-sess.Done()
	require.Zero(t, p.memory())
}
