package tp

import (
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// other is the other end of a session of p's, in a test's hands. It swallows what comes, and
// tells of it.
func other(t *testing.T, p *Peer, on func(sock *socket.Socket, p *packet.Packet)) *Session {
	conn, far := pipe.New(pipe.Options{})
	sess, err := p.ServeConn(conn)
	require.NoError(t, err)
	t.Cleanup(func() { _ = far.Close() })
	go func() {
		sock := socket.New(far, socket.Options{})
		for {
			var got packet.Packet
			if err := sock.ReadPacket(&got, nil); err != nil {
				return
			}
			on(sock, &got)
		}
	}()
	return sess
}

// A side that takes everything and says nothing, as a process that is stopped, is given up
// after two times KeepAlive, but only while a reply is waited for.
func TestKeepAliveGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, nil)
		var pings atomic.Int32
		sess := other(t, p, func(_ *socket.Socket, got *packet.Packet) {
			if got.Header.Type == packet.TypePing {
				pings.Add(1)
			}
		})
		time.Sleep(time.Hour)
		require.Zero(t, pings.Load(), "nothing is waited for")
		require.Equal(t, 1, p.CountSession())
		start := time.Now()
		x := sess.Pull("/a", 1, nil).Xerror
		require.Equal(t, StatusConnClosed, x.Code())
		require.ErrorContains(t, x, "nothing has come for 30s")
		require.False(t, NotRun(x))
		require.InDelta(t, 30*time.Second, time.Since(start), float64(8*time.Second))
		require.EqualValues(t, 1, pings.Load())
		<-sess.Done()
		synctest.Wait()
		require.False(t, p.keeper.Running() && len(p.sessions.waiting()) > 0)
	})
}

// Whatever comes is an answer: that of a peer which knows the question, that of one which
// does not, and any other packet.
func TestKeepAliveIsAnswered(t *testing.T) {
	for name, answer := range map[string]*packet.Packet{
		"ping": {Header: &packet.Header{Id: pingId, Type: packet.TypeReply, StatusCode: StatusOK}},
		"old peer": {Header: &packet.Header{Id: pingId, Type: packet.TypeReply,
			StatusCode: StatusUnsupportedType}},
		"else":      {Header: &packet.Header{Type: packet.TypePush, Uri: "/x"}},
		"no answer": nil,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newTestPeer(t, nil)
				pings := 0
				var pull string
				sess := other(t, p, func(sock *socket.Socket, got *packet.Packet) {
					switch got.Header.Type {
					case packet.TypePull:
						pull = got.Header.Id
					case packet.TypePing:
						require.Equal(t, pingId, got.Header.Id)
						if pings++; answer == nil {
							return
						}
						if pings == 100 {
							answer = &packet.Packet{Header: &packet.Header{Id: pull, Type: packet.TypeReply,
								StatusCode: StatusOK}}
						}
						require.NoError(t, sock.WritePacket(answer))
					}
				})
				x := sess.Pull("/a", 1, nil).Xerror
				require.Equal(t, answer == nil, x != nil, "%v", x)
			})
		})
	}
}

// Between two peers a handler may take as long as it likes, and so may the reading of what
// is asked for: as long as output that waits grows less the other side is there.
func TestKeepAliveOfSlowHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
		HandlePull(srv.PullRouter, "/slow", func(PullCtx, *int) (string, Xerror) {
			time.Sleep(5 * time.Hour)
			return "done", nil
		})
		sess, _ := connect(t, cli, srv, pipe.Options{})
		var got string
		require.Nil(t, sess.Pull("/slow", 1, &got).Xerror)
		require.Equal(t, "done", got)

		conn, far := pipe.New(pipe.Options{Buffer: 1000})
		slow, err := cli.ServeConn(conn)
		require.NoError(t, err)
		defer far.Close()
		slow.SetWriteTimeout(0)
		ended := make(chan Xerror, 1)
		go func() { ended <- slow.Pull("/a", make([]byte, 3_000_000), nil).Xerror }()
		for range 100 {
			time.Sleep(7 * time.Second)
			_, err := io.CopyN(io.Discard, far, 30_000)
			require.NoError(t, err)
		}
		require.Empty(t, ended)
		require.Equal(t, StatusConnClosed, (<-ended).Code(), "it reads no more")
	})
}

// Hooks of a pull may take longer than there is anything else that the connection is watched for.
func TestKeepAliveOfAPullWithSlowHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cli := newTestPeer(t, nil, hookPlugin("slow", "PreWritePull", func(interface{}) error {
			time.Sleep(time.Hour)
			return nil
		}))
		conn, far := pipe.New(pipe.Options{Buffer: 1000})
		defer far.Close()
		sess, err := cli.ServeConn(conn)
		require.NoError(t, err)
		require.Equal(t, StatusConnClosed, sess.Pull("/a", 1, nil).Xerror.Code(), "nobody answers")
	})
}

func TestKeepAliveCanBeTurnedOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, &PeerConfig{KeepAlive: -1, DefaultPullTimeout: time.Hour})
		sess := other(t, p, func(_ *socket.Socket, got *packet.Packet) {
			require.Equal(t, packet.TypePull, got.Header.Type)
		})
		require.Equal(t, StatusDeadlineExceeded, sess.Pull("/a", 1, nil).Xerror.Code())
		requireOpen(t, sess)
	})
}

func requireOpen(t *testing.T, sess *Session) {
	t.Helper()
	select {
	case <-sess.Done():
		t.Fatal("the session has ended")
	default:
	}
}

// Who asks without end whether this side is there, and reads no answer, is cut.
func TestQuestionsThatNobodyReadsTheAnswersOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, &PeerConfig{MaxSessionOutput: 100_000, DefaultWriteTimeout: -1})
		s := newStranger(t, p, 1000)
		frame, err := packet.Append(nil, &packet.Packet{Header: &packet.Header{Id: "1",
			Type: packet.TypePing}}, packet.Limits{})
		require.NoError(t, err)
		for range 100_000 {
			if _, err = s.Write(frame); err != nil {
				break
			}
		}
		require.Error(t, err)
		<-s.sess.Done()
	})
}

// A session that redials does so when its side is silent.
func TestKeepAliveAndRedial(t *testing.T) {
	srv := newTestPeer(t, nil)
	HandlePull(srv.PullRouter, "/a", func(_ PullCtx, n *int) (int, Xerror) { return *n, nil })
	addr := serve(t, srv)
	silent := newSilent(t)
	cli := newTestPeer(t, &PeerConfig{KeepAlive: 40 * time.Millisecond,
		Redial: &Redial{MinBackoff: time.Millisecond}})
	sess, err := cli.Dial(silent + "," + addr)
	require.NoError(t, err)
	require.Equal(t, StatusConnClosed, sess.Pull("/a", 1, nil).Xerror.Code())
	var got int
	require.Eventually(t, func() bool { return sess.Pull("/a", 7, &got).Xerror == nil }, 20*time.Second,
		time.Millisecond)
	require.Equal(t, 7, got)
}

// newSilent listens, takes what comes, and says nothing. It returns its address.
func newSilent(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(io.Discard, conn)
				_ = conn.Close()
			}()
		}
	}()
	return ln.Addr().String()
}
