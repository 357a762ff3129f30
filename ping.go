package tp

import (
	"context"
	"errors"
	"time"

	"github.com/henrylee2cn/teleport/packet"
)

// Ping asks the other side whether it is there, and returns how long the answer took. Every peer answers at
// once, whatever its handlers do; the answer waits for nothing but what was sent before. Ping waits no longer
// than ctx lasts. The error is an [Xerror]. A session that redials is asked by its connection of now.
func (s *Session) Ping(ctx context.Context) (time.Duration, error) {
	ctx = orNone(ctx)
	cn := s.conn.Load()
	answered := make(chan time.Duration, 1)
	cn.ping(func(took time.Duration) { answered <- took })
	select {
	case took := <-answered:
		return took, nil
	case <-ctx.Done():
		return 0, ctxXerror(ctx, "the ping was not answered")
	case <-cn.doneChan():
		return 0, newXerror(StatusConnClosed, "connection closed, the ping was not answered", s.Err())
	}
}

// GoPing is Ping without the wait: f is called with the time that the answer took, on the goroutine that
// reads the session, so that it must not wait. It is not called if no answer comes.
func (s *Session) GoPing(f func(took time.Duration)) { s.conn.Load().ping(f) }

func (cn *conn) ping(f func(took time.Duration)) {
	if cn.pings.Add(f) {
		cn.sendControl(&packet.Header{Id: measureId, Type: packet.TypePing})
	}
}

// Disconnect ends the session's connection because of the cause, as if it had broken: pulls in flight
// complete with StatusConnClosed. With [Redial] another connection is made, and without the session ends.
// PostDisconnect hooks get the cause. Nil is for a cause that says that the program has asked for it.
func (s *Session) Disconnect(cause error) {
	if cause == nil {
		cause = errors.New("the program has ended the connection")
	}
	_ = s.conn.Load().fail(cause)
}
