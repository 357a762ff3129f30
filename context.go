package tp

import (
	"context"
	"net"
	"net/url"
	"time"

	"github.com/henrylee2cn/goutil"

	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// Ctx is what every hook and handler knows about its packet. It belongs to one call, and stays valid after
// the call for as long as the program holds it.
type Ctx interface {
	// Peer is the local peer.
	Peer() *Peer
	// Session is the session that the packet came or goes by.
	Session() *Session
	// Ip is the other side's address and port.
	Ip() string
	// Context ends with the call: when its handler has returned and the reply is sent,
	// when the caller's deadline passes or the caller gives up, and when the
	// connection ends; context.Cause says which. A pull that is made with this context
	// has what is left of the call's time. Of a packet that this side sends, Context is
	// the one that the program has given.
	Context() context.Context
	// Public holds values of this call alone, which its hooks and its handler share. At
	// first it is a copy of the session's; what is stored here no other call sees: values
	// for all calls belong into Session().Public(). A reply shares its pull's. The methods
	// of the map are Load, Store, LoadOrStore, Delete, Range, Random, Clear and Len, and
	// safe for concurrent use.
	Public() goutil.Map
}

// ListenCtx is what PostListen hooks know.
type ListenCtx interface {
	// Peer is the peer that is about to serve. Its Addrs has this listener already.
	Peer() *Peer
	// Addr is the listener's actual address, with the port that the system has chosen. Where it listens on
	// all addresses of the machine, the IP is 0.0.0.0 or ::.
	Addr() net.Addr
	// Context ends when the hook's time is over, and when the peer begins to close.
	Context() context.Context
}

// ShutdownCtx is what PreShutdown hooks know.
type ShutdownCtx interface {
	// Peer is the peer that ends.
	Peer() *Peer
	// Context ends when nobody waits for the hook any longer.
	Context() context.Context
}

// ReadCtx is what hooks see of a packet that is read.
type ReadCtx interface {
	Ctx
	// Input is the packet as far as it has been read: the header from
	// PostReadHeader on, the body from PostReadBody on. Until the handler runs
	// hooks may change it.
	Input() *packet.Packet
}

// RoutedCtx is what PreReadBody and PostReadBody hooks see of a call that came; to them the reply of a pull
// that this side has made is no RoutedCtx:
//
//	if call, ok := ctx.(tp.RoutedCtx); ok {
//		waited := time.Since(call.Received())
//	}
type RoutedCtx interface {
	ReadCtx
	// Route is the path of the registration that the call was routed to, or the prefix of the unknown
	// handler with "*" behind it. There are as many as were registered, whatever others call.
	Route() string
	// Received is when all of the call had come. What has passed since then the call has waited for a
	// handler, or for the processor.
	Received() time.Time
}

// CallCtx is what hooks see of a call that is over.
type CallCtx interface {
	ReadCtx
	// Output is the reply; a push has an empty packet.
	Output() *packet.Packet
	// Status is the status of the reply, and of a push what became of it: StatusOK, or the error for
	// which it was not handled.
	Status() (code int32, text string)
	// Route is that of a RoutedCtx; empty if the call was refused before it had one.
	Route() string
}

// PullCallCtx is what hooks see of a pull that this side has made and that is over.
type PullCallCtx interface {
	ReadCtx
	// Output is the pull.
	Output() *packet.Packet
	// Failure is the pull's error; nil if there is none.
	Failure() Xerror
}

// WriteCtx is what hooks see of a packet that is sent.
type WriteCtx interface {
	Ctx
	// Output is the packet. Before it is encoded hooks may change it; its lengths
	// are set after that.
	Output() *packet.Packet
}

// PushCtx is what a push handler knows. A push controller embeds it.
type PushCtx interface {
	Ctx
	// Uri is the packet's URI: the path, unescaped, and ?query as it came, if there
	// was one.
	Uri() string
	// Path is the URI's path.
	Path() string
	// Meta is the metadata that came with the packet, see [WithMeta]; nil if there is
	// none. The map is the call's own.
	Meta() map[string]string
	// Query is the URI's query; pairs that are malformed are left out. The map is
	// the call's own.
	Query() url.Values
}

// PullCtx is what a pull handler knows. A pull controller embeds it.
type PullCtx interface {
	PushCtx
	// SetBodyCodec chooses the codec of the reply's body; without it the reply
	// has the pull's codec.
	SetBodyCodec(name string)
	// SetMeta sends a pair of metadata with the reply, errors included; see
	// [PullCmd.Meta].
	SetMeta(key, value string)
	// SetGzip chooses the compression of the reply's body, see [WithGzip];
	// without it the reply has the pull's.
	SetGzip(level int32)
}

// UnknownPushCtx is what a handler of unknown pushes knows.
type UnknownPushCtx interface {
	PushCtx
	// Input is the packet. Its body is nil until Unmarshal assigns it.
	Input() *packet.Packet
	// Unmarshal decodes b, a raw body with its codec id first, as the handler got
	// it, into v, and returns the codec's name. With true v also becomes the
	// input's body, so that the log shows it decoded.
	Unmarshal(b []byte, v interface{}, assignToInput ...bool) (codecName string, err error)
}

// UnknownPullCtx is what a handler of unknown pulls knows.
type UnknownPullCtx interface {
	PullCtx
	// Input is the packet. Its body is nil until Unmarshal assigns it.
	Input() *packet.Packet
	// Unmarshal decodes b, a raw body with its codec id first, as the handler got
	// it, into v, and returns the codec's name. With true v also becomes the
	// input's body, so that the log shows it decoded.
	Unmarshal(b []byte, v interface{}, assignToInput ...bool) (codecName string, err error)
}

// ForeSession is a session whose handshake is under way: PostDial and PostAccept
// hooks may exchange packets with the other side before anything is routed, for
// example to authenticate. It is valid until the hook returns.
type ForeSession interface {
	// Peer is the local peer.
	Peer() *Peer
	// Session is the session, for hooks that keep it. Until the handshake is over nothing may be pulled
	// or pushed on it.
	Session() *Session
	// Id is the session's id so far.
	Id() string
	// ChangeId gives the session another id; see [Session.ChangeId].
	ChangeId(id string) error
	// ReplaceId takes an id over from a live session; see [Session.ReplaceId].
	ReplaceId(id string) error
	// RemoteIp is the other side's address and port.
	RemoteIp() string
	// Socket is what there is to know of the connection below, see [Session.Socket].
	Socket() socket.View
	// Public is the session's values, see [Session.Public].
	Public() goutil.Map
	// Send sends a packet. Codecs that are not set are the peer's defaults, and a push
	// without an id is given one that says that it is a part of a handshake.
	Send(p *packet.Packet) error
	// Receive reads the next packet and decodes its body into body, a pointer; a
	// nil body is skipped. If the other side does not want the connection the error is
	// the Xerror that its PostAccept hook has returned. A packet that is none of a
	// handshake, a pull of a client that has no PostDial hook for example, is an Xerror
	// too, with StatusUnauthorized; the pull is answered with what the hook returns.
	Receive(body interface{}) (*packet.Packet, error)
	// ReadTimeout and the three methods below are those of Session.
	ReadTimeout() time.Duration
	SetReadTimeout(d time.Duration)
	WriteTimeout() time.Duration
	SetWriteTimeout(d time.Duration)
	// Close ends the session.
	Close() error
}
