package socket

import (
	"context"

	"github.com/henrylee2cn/teleport/internal/bufpool"
	"github.com/henrylee2cn/teleport/packet"
)

// A Frame is an encoded packet that waits to be written. It is used once: by Send or Drop.
type Frame struct {
	b      []byte
	buf    *bufpool.Buffer // the buffer that holds b; nil if b is in the caller's memory
	w      *writer
	permit bool  // a permit to encode ends when the frame is queued
	cost   int64 // bytes taken from the budget, for a large frame that will be queued without a copy

	// reserved is the room that a frame has which will go in parts; 0 for others. See Lane for the others.
	reserved int64
	lane     *Lane
	tag      uint64
	behind   bool
}

// Drop gives up a frame that will not be written.
func (f Frame) Drop() {
	f.free()
	if f.permit {
		f.w.endPermit()
	}
	if f.reserved > 0 {
		f.w.unreserve(f.reserved)
	}
}

// free gives the frame's memory back.
func (f Frame) free() {
	bufpool.Put(f.buf)
	if f.cost > 0 {
		f.w.budget.Give(f.cost)
	}
}

// A Permit allows one packet to be encoded. It is for packets of which very many may be ready at once:
// encoded they would take memory while they wait. There is one for each processor, from when Permit
// returns it until the frame that was encoded with it is used. The zero value is none.
type Permit struct {
	ctx context.Context
	w   *writer
}

// Permit waits, no longer than ctx lasts, for a permit to encode: for room in the output, for the write
// timeout at most, and until there is one. Encode must follow, on the same goroutine. The error is a
// [*WriteError]; it wraps ctx's if that was done meanwhile.
func (s *Socket) Permit(ctx context.Context) (Permit, error) {
	if err := s.w.takePermit(ctx); err != nil {
		return Permit{}, err
	}
	return Permit{ctx, &s.w}, nil
}

// Encode is the first half of WritePacket, for callers that have something to do between encoding, which may
// fail, and sending. It sets p's lengths and does not touch the connection. The frame is made in mem if that
// has room, which is faster for small packets; the caller must leave mem alone until the frame is used. A nil
// mem is none.
//
// With a permit it waits where a large packet finds no memory in the budget, or no room: as long as the
// permit's context lasts, and for memory for the write timeout at most. While it waits it has no encoded
// packet, and while it waits for room no permit. The permit ends with the frame, or with an error. Without a
// permit it does not wait: the error is then a [*WriteError] that wraps [ErrOutputFull].
func (s *Socket) Encode(permit Permit, mem []byte, p *packet.Packet) (Frame, error) {
	if permit.w != nil {
		return s.encodeWithin(permit.ctx, mem, p, true)
	}
	f, err := s.encode(mem, p)
	if err != nil {
		return f, err
	}
	if s.w.reserve(&f) {
		if s.w.pay(&f) {
			return f, nil
		}
		s.w.unreserve(f.reserved)
		err = errNoMemory
	} else {
		err = ErrOutputFull
	}
	f.free()
	return Frame{}, &WriteError{Err: err, Unsent: true}
}

// encode encodes the packet without taking memory from the budget.
func (s *Socket) encode(mem []byte, p *packet.Packet) (Frame, error) {
	f := Frame{w: &s.w}
	if mem == nil {
		f.buf = bufpool.Get()
		mem = f.buf.B
	}
	b, err := packet.Append(mem[:0], p, s.limits)
	switch {
	case err != nil:
		bufpool.Put(f.buf)
		return Frame{}, err
	case f.buf != nil:
		f.buf.B = b
	case cap(b) != cap(mem):
		f.buf = &bufpool.Buffer{B: b}
	case len(b) >= ownFrame: // it will be queued as it is
		f.buf = bufpool.GetSize(len(b))
		f.buf.B = append(f.buf.B, b...)
		b = f.buf.B
	}
	f.b = b
	if len(b) > wholeBody && s.w.room != nil && !s.w.cuts.Load() {
		s.w.room.LargePacket()
	}
	return f, nil
}

// encodeWithin encodes a packet and waits for what it needs, see Encode. Permit says that the caller has one.
func (s *Socket) encodeWithin(ctx context.Context, mem []byte, p *packet.Packet, permit bool) (Frame, error) {
	w := &s.w
	var room int64 // that is reserved
	encoded, has := false, permit
	defer func() {
		if encoded {
			return
		}
		if has { // a method of the body's may have called runtime.Goexit
			w.endPermit()
		}
		w.unreserve(room)
	}()
	for {
		f, err := s.encode(mem, p)
		if err != nil {
			return Frame{}, err
		}
		f.reserved = room
		placed := w.reserve(&f)
		room = f.reserved
		if placed && w.pay(&f) {
			encoded = true
			f.permit = permit
			return f, nil
		}
		n := int64(len(f.b))
		memory := int64(cap(f.b))
		f.free()
		if placed {
			if err := w.awaitMemory(ctx, memory); err != nil {
				return Frame{}, &WriteError{Err: err, Unsent: true}
			}
			continue
		}
		if has {
			has = false
			w.endPermit()
		}
		if err := w.awaitPlace(ctx, n); err != nil {
			return Frame{}, &WriteError{Err: err, Unsent: true}
		}
		room = n
		if permit {
			if err := w.takePermit(ctx); err != nil {
				return Frame{}, err
			}
			has = true
		}
	}
}
