package tp

import (
	"context"
	"fmt"
	"io"
	"iter"
	"reflect"
)

// Stream is a call with many values in both directions: a feed, a watch, a chat, an upload. Send is the type
// of the values that this side sends, and Recv that of the values of the other side. Either side of a session
// may open a stream, with [OpenStream]; the other side has a handler for it, see [HandleStream].
//
// Values arrive in the order in which they were sent, each once. Each direction has flow control of its own:
// a side that does not receive stops its own sender, and nothing else of the session. At most 256 KiB wait to
// be received, or 4 MiB when the receiver keeps up with a sender that has to wait for it; one value may be
// larger.
//
// A stream ends when its handler returns: what the handler returns is the status, and what was sent before
// that is received before it. It ends earlier when one side gives it up, when its context or deadline ends,
// and with the connection; a session that redials does not resume it.
//
// Send and Recv may be called at the same time, each by one goroutine at a time. All other methods are safe
// for concurrent use.
type Stream[Send, Recv any] struct {
	core *streamCore
	// made makes what a value is received into; nil for a new Recv. sent and received return the message that
	// a value points to; nil for values that are none.
	made           func() interface{}
	sent, received func(arg interface{}) interface{}
}

func newStream[Send, Recv any](core *streamCore) *Stream[Send, Recv] {
	s := &Stream[Send, Recv]{core: core, sent: target[Send](), received: target[Recv]()}
	if s.received != nil {
		s.made = newArg[Recv]()
	}
	return s
}

// HandleStream registers a function that serves streams at the path, which stands behind that of the router's
// group. In is the type of the values that the handler receives, and Out that of those it sends; they are
// encoded as the bodies of pulls are, but for []byte, which goes as it is. The function is called on a
// goroutine of its own for each stream, and the stream is over when it returns: nil is the good end, and an
// [Xerror] what the other side's Recv returns. The context's Context ends when the other side gives up, with
// its deadline, and with the connection.
//
// Plugins' hooks of pulls run for the stream's beginning, those of replies for its end, and those of
// [PreWriteValuePlugin] and [PostReadValuePlugin] for each value. It panics if the path cannot be a route's
// or is taken by a pull or another stream.
func HandleStream[In, Out any](r *PullRouter, path string, fn func(ctx PullCtx, s *Stream[Out, In]) Xerror,
	plugins ...Plugin) {
	if fn == nil {
		panic(fmt.Sprintf("tp: HandleStream(%q): the function is nil.", path))
	}
	r.handle("HandleStream", path, plugins, &Handler{
		pull:      true,
		stream:    true,
		argType:   reflect.TypeFor[In](),
		replyType: reflect.TypeFor[Out](),
		code:      codeOf(fn),
		call: func(c *call, _ interface{}) (interface{}, Xerror) {
			return nil, c.serve(isBytes[Out](), func(core *streamCore) Xerror {
				return fn(c, newStream[Out, In](core))
			})
		},
	})
}

// SetUnknownStream sets what serves the streams under this router's path that have no route, unless a group
// further inside has such a handler too. Values pass as they stand on the wire. A handler that was set before
// is replaced.
func (r *PullRouter) SetUnknownStream(fn func(ctx UnknownPullCtx, s *Stream[RawValue, RawValue]) Xerror,
	plugins ...Plugin) {
	if fn == nil {
		panic("tp: PullRouter.SetUnknownStream: the handler is nil.")
	}
	h := &Handler{pull: true, stream: true, code: codeOf(fn)}
	h.call = func(c *call, _ interface{}) (interface{}, Xerror) {
		c.keep()
		return nil, c.serve(false, func(core *streamCore) Xerror {
			return fn(c, newStream[RawValue, RawValue](core))
		})
	}
	r.setUnknown("SetUnknownStream", h, plugins)
}

// OpenStream opens a stream to the URI by the session. Out is the type of the values that this side sends,
// and In that of those it receives. It waits until the other side has said whether it knows streams, the
// first time on a connection, and not until the handler runs: that the URI is unknown (404), or that too many
// streams are open (429), is what Recv returns.
//
// The stream lasts no longer than ctx. Its deadline travels to the handler; PeerConfig.DefaultPullTimeout
// does not hold for streams. A stream that is not read to its end should be closed, see [Stream.Close]:
// otherwise it lasts as long as its handler and ctx do. WithGzip compresses each value, and WithMeta goes to
// the handler.
//
// The error is an [Xerror]: StatusUnsupportedType if the other side does not know streams, and otherwise as
// for [Session.PullContext].
func OpenStream[Out, In any](ctx context.Context, by Caller, uri string,
	setting ...PacketSetting) (*Stream[Out, In], error) {
	core, x := by.openStream(ctx, uri, setting, isBytes[Out]())
	if x != nil {
		return nil, x
	}
	return newStream[Out, In](core), nil
}

func isBytes[T any]() bool {
	_, ok := any((*T)(nil)).(*[]byte)
	return ok
}

// Send sends a value. It waits while as much was sent as the other side lets wait, and while the connection
// takes no output, but never longer than the stream lasts. Nil means that the value was handed to the
// connection. The value is not used after Send has returned.
//
// The error is the stream's end, an [Xerror]: the one that the handler has returned for example. errors.Is
// finds [ErrStreamOver] in it if the handler has returned well, and [ErrStreamClosed] after Close or
// CloseSend. A value that does not encode, or that is too large, has an Xerror, and the stream goes on.
func (s *Stream[Send, Recv]) Send(v *Send) error {
	if v == nil {
		return unrun(StatusBadRequest, fmt.Sprintf("nothing was sent: the value is a nil %T", v), nil)
	}
	if s.sent != nil {
		return s.core.send(s.sent(v))
	}
	return s.core.send(v)
}

// Recv waits for the next value. It returns io.EOF when the other side has sent its last one: when the
// handler has returned well, or CloseSend was called. Otherwise the end is an error that errors.As finds to
// be an [Xerror]: the one that the handler has returned, StatusConnClosed, StatusCanceled or
// StatusDeadlineExceeded; after Close errors.Is finds [ErrStreamClosed] in it. A value that does not decode
// has an Xerror, and the stream goes on: the next call returns the next value.
func (s *Stream[Send, Recv]) Recv() (*Recv, error) {
	if s.received != nil {
		arg := s.made()
		if err := s.core.receive(s.received(arg)); err != nil {
			return nil, err
		}
		return arg.(*Recv), nil
	}
	arg := new(Recv)
	if err := s.core.receive(arg); err != nil {
		return nil, err
	}
	return arg, nil
}

// All returns what Recv returns, for a range loop, until io.EOF. An error ends the loop after it was
// returned. To leave the loop early leaves the stream as it is.
func (s *Stream[Send, Recv]) All() iter.Seq2[*Recv, error] {
	return func(yield func(*Recv, error) bool) {
		for {
			v, err := s.Recv()
			if err == io.EOF || !yield(v, err) || err != nil {
				return
			}
		}
	}
}

// CloseSend tells the other side that no more values come, so that its Recv returns io.EOF behind the last
// one. Receiving goes on. A second call does nothing.
func (s *Stream[Send, Recv]) CloseSend() error { return s.core.closeSend() }

// CloseRecv tells the other side that this side takes no more values: its Send fails. What was not received
// is dropped, and Recv returns [ErrStreamClosed]. Sending goes on.
func (s *Stream[Send, Recv]) CloseRecv() { s.core.stopReceiving() }

// Close gives the stream up at once, unless it is over: Send and Recv return [ErrStreamClosed], those under
// way too, and what was not received is dropped. The other side is told: if this side has opened the stream
// the handler's context ends, and its Recv has StatusCanceled; in the handler, the other side's Send fails,
// and the stream is over when the handler returns. The error is always nil.
func (s *Stream[Send, Recv]) Close() error { return s.core.giveUp() }

// Context returns the stream's context. It ends when the stream is over, and also, with the cause
// [ErrPeerClosed], when this side's peer is asked to shut down: the stream still works then, and should come
// to its end. Peer.Shutdown waits for that, as long as its own context allows.
func (s *Stream[Send, Recv]) Context() context.Context { return s.core.context() }

// Done returns a channel that is closed when the stream is over, and nothing can come any more: unlike
// Context it does not end because this side is asked to shut down. What was received before can still be had
// from Recv. A Send that fails because the stream is over finds the channel closed.
func (s *Stream[Send, Recv]) Done() <-chan struct{} { return s.core.over() }

// Meta returns the metadata that the other side has sent: in the handler that of OpenStream, and on the side
// that has opened the stream that of the end, see [PullCtx]'s SetMeta, which is nil before that.
func (s *Stream[Send, Recv]) Meta() map[string]string { return s.core.meta() }

// Session returns the session of the stream.
func (s *Stream[Send, Recv]) Session() *Session { return s.core.conn.sess }
