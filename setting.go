package tp

import "github.com/henrylee2cn/teleport/packet"

// A PacketSetting changes one thing about one packet that is sent, against the
// peer's defaults. The zero value changes nothing.
type PacketSetting struct {
	kind  settingKind
	name  string
	value string // of settingMeta
	level int32
	meta  *map[string]string // of settingReplyMeta
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
// because as many pulls of the session are unanswered as the other side takes. Without it the pull waits, see
// [Session.PullContext]. It has no effect on a push, for which there is [Session.TryPush].
func WithFailFast() PacketSetting { return PacketSetting{kind: settingFailFast} }

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
