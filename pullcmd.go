package tp

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/goutil"

	"github.com/henrylee2cn/teleport/packet"
)

// PullCmd is one pull and what came of it. Once it is complete only PostWritePull
// hooks that still run may change it.
type PullCmd struct {
	// Xerror is nil if the pull succeeded. Otherwise its code is the status that
	// the other side answered with, or one below 200 if there was no answer.
	Xerror Xerror

	conn        *conn
	again       *resend // nil unless the session redials, so that the pull may be sent more than once
	uri         string
	args, reply interface{}
	number      uint64
	done        chan *PullCmd // GoPull delivers on it; nil for Pull
	wire        wire
	// the packets, if they do not fit into wire or somebody has asked for them
	seen atomic.Pointer[outgoing]
}

// resend is what a pull keeps, beside its arguments, so that it can be sent more than once.
type resend struct {
	ctx      context.Context
	settings []PacketSetting
	patience patience
	last     *pending // of the last attempt, while that is not finished
	entered  bool     // the last attempt was put into the table of pulls
}

func newPullCmd(s *Session, uri string, args, reply interface{}) *PullCmd {
	return &PullCmd{conn: s.conn.Load(), uri: uri, args: args, reply: reply}
}

// Session returns the session that the pull was made on.
func (cmd *PullCmd) Session() *Session { return cmd.conn.sess }

// Output returns the packet that was sent.
func (cmd *PullCmd) Output() *packet.Packet { return cmd.packets().Output() }

// Input returns the reply; its header is empty if there was none.
func (cmd *PullCmd) Input() *packet.Packet { return cmd.packets().Input() }

// Result returns what was given to Pull as reply, and Xerror.
func (cmd *PullCmd) Result() (interface{}, Xerror) { return cmd.reply, cmd.Xerror }

// Meta returns the metadata of the reply, nil if there is none.
func (cmd *PullCmd) Meta() map[string]string { return cmd.Input().Header.Meta }

// Public returns the values that the hooks of this pull and of its reply share.
func (cmd *PullCmd) Public() goutil.Map { return cmd.packets().Public() }

// Done returns the channel that GoPull delivers the command on; nil after Pull.
func (cmd *PullCmd) Done() <-chan *PullCmd { return cmd.done }

// packets returns the packets, and makes them again from wire where they are not kept.
func (cmd *PullCmd) packets() *outgoing {
	if o := cmd.seen.Load(); o != nil {
		return o
	}
	o := cmd.unpack()
	if !cmd.seen.CompareAndSwap(nil, o) { // another goroutine has asked too
		return cmd.seen.Load()
	}
	return o
}

func (cmd *PullCmd) unpack() *outgoing {
	o := newOutgoing(cmd.conn, context.Background(), time.Time{})
	cmd.wire.packets(o, cmd.number, cmd.uri, cmd.args)
	if cmd.wire.inHeader > 0 && cmd.Xerror == nil {
		o.in.packet.Body = cmd.reply
	}
	return o
}
