package tp

import (
	"math"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/packet"
)

// packed is what the packets of a pull hold beside what its command has anyway,
// if all goes as it mostly does.
type packed struct {
	outHeader, inHeader    uint16 // lengths; inHeader is 0 if there was no reply
	outBody, inBody        uint32
	headerCodec, bodyCodec byte // of both packets
	outGzip, inGzip        int8
}

// packOutput packs a packet that is encoded. It reports false if that does not
// fit.
func (cmd *PullCmd) packOutput(out *packet.Packet) bool {
	headerCodec, err := codec.GetByName(out.HeaderCodec)
	if err != nil {
		return false
	}
	bodyCodec, err := codec.GetByName(out.BodyCodec)
	if err != nil || out.HeaderLength > math.MaxUint16 || out.Header.Timeout > math.MaxUint32 || len(out.Header.Meta) > 0 {
		return false
	}
	cmd.timeout = uint32(out.Header.Timeout)
	p := &cmd.packed
	p.headerCodec, p.bodyCodec = headerCodec.Id(), bodyCodec.Id()
	p.outHeader, p.outBody = uint16(out.HeaderLength), uint32(out.BodyLength)
	p.outGzip = int8(out.Header.Gzip)
	return true
}

// packInput packs a reply, whose body will have the pull's codec. It reports false
// if that does not fit.
func (cmd *PullCmd) packInput(v *packet.HeaderView, body int64) bool {
	p := &cmd.packed
	if v.StatusCode != StatusOK || len(v.Status) > 0 || len(v.Uri) > 0 || len(v.Meta) > 0 || body == 0 ||
		v.Length > math.MaxUint16 || packet.CheckGzip(v.Gzip) != nil {
		return false
	}
	if headerCodec, err := codec.GetById(p.headerCodec); err != nil || headerCodec.Name() != v.Codec {
		return false
	}
	p.inHeader, p.inBody = uint16(v.Length), uint32(body)
	p.inGzip = int8(v.Gzip)
	return true
}

// unpacked returns the flight, made again if need be.
func (cmd *PullCmd) unpacked() *flight {
	if f := cmd.flight.Load(); f != nil && !f.bare {
		return f
	}
	f := new(flight)
	f.show(cmd.link)
	f.unpack(cmd)
	if cmd.packed.inHeader > 0 && cmd.Xerror == nil {
		f.in.Body = cmd.reply
	}
	if !cmd.flight.CompareAndSwap(nil, f) { // somebody else has asked too
		if other := cmd.flight.Load(); other != nil && !other.bare {
			return other
		}
	}
	return f
}

// unpack makes the packets of what is packed.
func (f *flight) unpack(cmd *PullCmd) {
	p := &cmd.packed
	headerCodec, _ := codec.GetById(p.headerCodec) // they were there before
	bodyCodec, _ := codec.GetById(p.bodyCodec)
	f.ctx.numberId(cmd.id)
	f.outHdr = packet.Header{Id: f.id, Type: packet.TypePull, Uri: cmd.uri, Gzip: int32(p.outGzip), Timeout: int64(cmd.timeout)}
	f.out = packet.Packet{
		HeaderCodec: headerCodec.Name(), BodyCodec: bodyCodec.Name(), Header: &f.outHdr, Body: cmd.args,
		HeaderLength: int64(p.outHeader), BodyLength: int64(p.outBody), Length: int64(p.outHeader) + int64(p.outBody),
	}
	if p.inHeader == 0 {
		return
	}
	f.inHdr = packet.Header{Id: f.id, Type: packet.TypeReply, Gzip: int32(p.inGzip), StatusCode: StatusOK}
	f.in = packet.Packet{
		HeaderCodec: headerCodec.Name(), BodyCodec: bodyCodec.Name(), Header: &f.inHdr,
		HeaderLength: int64(p.inHeader), BodyLength: int64(p.inBody), Length: int64(p.inHeader) + int64(p.inBody),
	}
}
