package tp

import (
	"fmt"
	"math"
	"time"

	"github.com/henrylee2cn/teleport/packet"
)

// A PacketSetting changes one thing about one packet that is sent, against the
// peer's defaults. The zero value changes nothing.
type PacketSetting struct {
	kind  settingKind
	name  string
	value string // of settingMeta
	level int32
	meta  *map[string]string // of settingReplyMeta
	every time.Duration      // of settingEvery
	other interface{}        // of settingExcept: a *Session
}

type settingKind uint8

const (
	settingNone settingKind = iota
	settingHeaderCodec
	settingBodyCodec
	settingGzip
	settingMeta
	settingReplyMeta
	settingFailFast
	settingLatest
	settingEvery
	settingDropOldest
	settingDisconnect
	settingExcept
	settingKey
	settingIdempotent
)

// WithHeaderCodec encodes the packet's header, and its reply's, with the named
// codec.
func WithHeaderCodec(name string) PacketSetting {
	return PacketSetting{kind: settingHeaderCodec, name: name}
}

// WithBodyCodec encodes the packet's body, and its reply's unless the handler
// chooses another, with the named codec.
func WithBodyCodec(name string) PacketSetting {
	return PacketSetting{kind: settingBodyCodec, name: name}
}

// WithGzip compresses the packet's body, and its reply's unless the handler
// chooses another level: 1 to 9, -1 for the default level, -2 for Huffman
// coding only, 0 for none. With a [packet.RawBody] nothing is compressed and the
// level only says what the bytes are.
func WithGzip(level int32) PacketSetting {
	return PacketSetting{kind: settingGzip, level: level}
}

// WithMeta sends a pair of metadata in the packet's header: what the other side has to
// know beside the body, a trace's id or a token for example. The handler finds it with
// [PushCtx]'s Meta. All pairs together count as a part of the header, whose size is
// bounded; both texts are UTF-8. Of two pairs with one key the last holds.
func WithMeta(key, value string) PacketSetting {
	return PacketSetting{kind: settingMeta, name: key, value: value}
}

// WithReplyMeta sets m to the metadata of the reply, see [PullCtx]'s SetMeta, when the pull is
// complete: also that of an error, and nil if there is none. It is for [Call] and [Method],
// which return no [PullCmd]; a push has no reply. The map that m points to must not be used until then.
func WithReplyMeta(m *map[string]string) PacketSetting {
	return PacketSetting{kind: settingReplyMeta, meta: m}
}

// WithFailFast has a pull fail at once, with StatusOverloaded and as not run, where it would have to wait
// because as many pulls of the session are unanswered as the other side takes. Without it the pull waits,
// see [Session.PullContext]. It has no effect on a push, for which there is [Session.TryPush].
func WithFailFast() PacketSetting { return PacketSetting{kind: settingFailFast} }

// Latest says what a push to a group is a new value of, the position of one player for example. Where an
// older push with the same key waits, for a member that is slow or for the end of a tick, the new one
// replaces it; for a slow member it takes the old one's place in the order. Keys count within a group. An
// empty key panics. A member counts as slow when it has not handled as much as its
// [PeerConfig].MaxSessionInput, 8 MiB: until then values travel, and wait there. A client of positions
// sets that to less, 256 KiB for example. Latest is for [Group.Push] and [Peer.Broadcast] only, and has
// no effect on other packets.
func Latest(key string) PacketSetting {
	if key == "" {
		panic("tp: Latest: the key is empty.")
	}
	return PacketSetting{kind: settingLatest, name: key}
}

// Every lets pushes to a group with the same key go once in d: the first goes at once, and of those that
// come within d the last one goes when d is over. The key is that of [Latest]; without one all pushes to
// the URI have one key. A push that is held back counts as queued, and as replaced when a later one takes
// its place. The d of the first push with a key counts. No more than a megabyte is held back, and for
// 65,536 keys: others go at once. What a [Peer.Broadcast] holds back goes to the sessions that the filter
// of the last one has chosen. A d that is not greater than 0 panics. Every is for [Group.Push] and
// [Peer.Broadcast] only, and has no effect on other packets.
func Every(d time.Duration) PacketSetting {
	if d <= 0 {
		panic(fmt.Sprintf("tp: Every(%v): a duration greater than 0 was expected.", d))
	}
	return PacketSetting{kind: settingEvery, every: d}
}

// DropOldest has at most n of the group's pushes with this setting wait for a slow member: another one
// drops the oldest of them. Pushes without the setting are neither counted nor dropped for that. An n of
// less than 1 panics. DropOldest is for [Group.Push] and [Peer.Broadcast] only, and has no effect on
// other packets.
func DropOldest(n int) PacketSetting {
	if n < 1 || n > math.MaxInt32 {
		panic(fmt.Sprintf("tp: DropOldest(%d): a number from 1 to %d was expected.", n, math.MaxInt32))
	}
	return PacketSetting{kind: settingDropOldest, level: int32(n)}
}

// Disconnect cuts off a member of the group that is slow: its connection ends if the push would have to
// wait behind others that wait already, and of which the member has taken none for d. A d of 0 cuts off a
// member for which anything waits, which happens to healthy ones too when many pushes are made at once. A
// negative d panics. Disconnect is for [Group.Push] and [Peer.Broadcast] only, and has no effect on other
// packets.
func Disconnect(d time.Duration) PacketSetting {
	if d < 0 {
		panic(fmt.Sprintf("tp: Disconnect(%v): a duration that is not negative was expected.", d))
	}
	return PacketSetting{kind: settingDisconnect, every: d}
}

func applySettings(p *packet.Packet, settings []PacketSetting) {
	for _, s := range settings {
		switch s.kind {
		case settingHeaderCodec:
			p.HeaderCodec = s.name
		case settingBodyCodec:
			p.BodyCodec = s.name
		case settingGzip:
			p.Header.Gzip = s.level
		case settingMeta:
			if p.Header.Meta == nil {
				p.Header.Meta = make(map[string]string)
			}
			p.Header.Meta[s.name] = s.value
		}
	}
}
