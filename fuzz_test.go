package tp

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
)

// FuzzSession sends whatever it is given to a peer, as one stream behind a good
// pull. Nothing panics, and when the stream ends so does the session.
func FuzzSession(f *testing.F) {
	panicked := make(panicLog, 1000)
	level := LogLevel()
	SetLogger(panicked)
	SetLogLevel(LevelError)
	f.Cleanup(func() { SetLogger(nil); SetLogLevel(level) })
	frame := func(typ int32, uri string, gzip int32, body interface{}) []byte {
		b, err := packet.Append(nil, &packet.Packet{
			Header: &packet.Header{Id: "1", Type: typ, Uri: uri, Gzip: gzip}, Body: body, BodyCodec: "json",
		}, packet.Limits{})
		require.NoError(f, err)
		return b
	}
	pull := frame(packet.TypePull, "/fn/call", 0, "first")
	for _, second := range [][]byte{
		frame(packet.TypePull, "/fn/call", 5, []int{1, 2}),
		frame(packet.TypePull, "/nowhere?a", 0, nil),
		frame(packet.TypePush, "/fn_push/call", 0, 1),
		frame(packet.TypePush, "/%2e", 0, 1),
		frame(packet.TypeReply, "", 0, 1),
		frame(9, "/x", 0, strings.Repeat("[", 100)),
		{0, 0, 0, 0}, {0, 0, 0, 1, 'p', 0xff, 0xff, 0xff, 0xff},
	} {
		f.Add(second)
		f.Add(append(pull[:len(pull):len(pull)], second...))
		f.Add(second[:len(second)-1])
	}
	srv := NewPeer(&PeerConfig{MaxBodyBytes: 1 << 16, MaxInflatedBytes: 1 << 16, MaxBufferedBytes: 1 << 20})
	f.Cleanup(func() { _ = srv.Close() })
	pullFn(srv, echo)
	pushFn(srv, func(PushCtx, interface{}) {})
	srv.PullRouter.SetUnknown(func(ctx UnknownPullCtx, body *[]byte) (interface{}, Xerror) {
		var v interface{}
		_, _ = ctx.Unmarshal(*body, &v, true)
		_ = ctx.Query()
		return v, nil
	})
	f.Fuzz(func(t *testing.T, stream []byte) {
		conn, far := pipe.New(pipe.Options{Buffer: len(stream) + 1<<20})
		sess, err := srv.ServeConn(conn)
		require.NoError(t, err)
		_, err = far.Write(pull)
		require.NoError(t, err)
		_, err = far.Read(make([]byte, 1))
		require.NoError(t, err, "the first pull is answered")
		_, err = far.Write(stream)
		if err == nil {
			require.NoError(t, far.Close())
		}
		<-sess.Done()
		select {
		case line := <-panicked:
			t.Error(line)
		default:
		}
	})
}

// panicLog is a Logger that keeps what it is told of panics.
type panicLog chan string

func (panicLog) Enabled(context.Context, slog.Level) bool { return true }

func (l panicLog) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "panic") {
		select {
		case l <- r.Message:
		default:
		}
	}
	return nil
}
