package tp

import (
	"time"

	"github.com/henrylee2cn/teleport/packet"
)

// What a program needs that takes calls to sessions in another way than by a connection of this peer: over
// a message broker to another process, whose peer has the session. Package contrib/nats is one.

// Carry makes the packet of a pull or a push to the URI, with the peer's defaults, the settings and the
// peer's limits, and sends it nowhere. The packet's Body is a [packet.RawBody], encoded, and compressed if
// the settings or the defaults say so, and belongs to the caller; its header has no id, and the type 0. The
// peer that has the session sends it on as it is:
//
//	sess.Push(p.Header.Uri, p.Body, tp.WithHeaderCodec(p.HeaderCodec), tp.WithGzip(p.Header.Gzip), ...)
//
// No hooks run: those of the peer that sends the packet to a session do. The error is that of a pull which
// does not encode, and [NotRun] is true of it. What the settings say of the delivery of a push to many,
// [SpreadOf] tells.
func (p *Peer) Carry(uri string, args interface{}, setting ...PacketSetting) (*packet.Packet, Xerror) {
	out := new(ownPacket)
	out.fill(&p.cfg, 0, uri, args, setting)
	b, err := packet.Append(nil, &out.packet, p.limits)
	if err != nil {
		return nil, doesNotEncode(err)
	}
	out.packet.Body = packet.RawBody(b[int64(len(b))-out.packet.BodyLength:])
	return &out.packet, nil
}

// TakeReply takes the reply to a packet of [Peer.Carry] as [Session.Pull] takes one by a connection: p has
// the reply's header and, as a [packet.RawBody] or nil, its body. With the status 200 the body is decoded
// into reply, a pointer or nil. With any other the error is the one that was replied, with its details, and
// what [NotRun] and [Retryable] say of it. Of the settings [WithReplyMeta] counts; the others are those
// that Carry was called with. A reply that nothing can be decoded into is an error too: check it before the
// pull with [CheckReply].
func (p *Peer) TakeReply(in *packet.Packet, reply interface{}, setting ...PacketSetting) Xerror {
	for _, s := range setting {
		if s.kind == settingReplyMeta && s.meta != nil {
			*s.meta = in.Header.Meta
		}
	}
	body, _ := in.Body.(packet.RawBody)
	if in.Header.StatusCode != StatusOK {
		x := repliedStatus(in.Header)
		if len(body) > 0 {
			x.details, x.gzip, x.limits = body, in.Header.Gzip, &p.limits
		}
		return x
	}
	if x := CheckReply(reply); x != nil {
		return x
	}
	if _, err := packet.DecodeBody(body, in.Header.Gzip, reply, p.limits); err != nil {
		return replyXerror(err)
	}
	return nil
}

// CheckReply returns the error of a pull whose reply is to be decoded into something that is no pointer, or
// a nil one; nil if reply is a pointer or nil.
func CheckReply(reply interface{}) Xerror { return replyArgument(reply) }

// Spread is what settings say of the delivery of a push to many sessions, see [Group.Push]: for programs
// that have several peers push, each to its own sessions. The zero value says nothing.
type Spread struct {
	Latest     string        // the key of Latest; empty for none
	Every      time.Duration // of Every; 0 for none
	DropOldest int           // of DropOldest; 0 for none
	Disconnect bool          // whether there is a Disconnect, and its duration
	After      time.Duration
	Except     []*Session // of Except
}

// SpreadOf returns what the settings say of the delivery. Of two settings of one kind the last holds, but
// for [Except], of which all do.
func SpreadOf(setting ...PacketSetting) (sp Spread) {
	for _, s := range setting {
		switch s.kind {
		case settingLatest:
			sp.Latest = s.name
		case settingEvery:
			sp.Every = s.every
		case settingDropOldest:
			sp.DropOldest = int(s.level)
		case settingDisconnect:
			sp.Disconnect, sp.After = true, s.every
		case settingExcept:
			if sess, _ := s.other.(*Session); sess != nil {
				sp.Except = append(sp.Except, sess)
			}
		}
	}
	return sp
}

// Settings returns settings that say the same. It panics where [Every], [DropOldest] or [Disconnect]
// would.
func (sp Spread) Settings() (list []PacketSetting) {
	if sp.Latest != "" {
		list = append(list, Latest(sp.Latest))
	}
	if sp.Every != 0 {
		list = append(list, Every(sp.Every))
	}
	if sp.DropOldest != 0 {
		list = append(list, DropOldest(sp.DropOldest))
	}
	if sp.Disconnect {
		list = append(list, Disconnect(sp.After))
	}
	for _, sess := range sp.Except {
		list = append(list, Except(sess))
	}
	return list
}
