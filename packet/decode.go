package packet

import (
	"fmt"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/internal/bufpool"
)

// DecodeBody decodes raw, a body as it stands on the wire with its codec id
// first, into v, and returns the codec's name. gzip is the header's. A *RawBody
// takes a copy of raw, whatever the codec. No body, and a nil v, decode nothing.
//
// It keeps no part of raw. Errors wrap codec.ErrUnknown, [ErrGzip],
// [ErrTooLarge], [ErrBudget] or are the codec's own.
func DecodeBody(raw []byte, gzip int32, v interface{}, lim Limits) (string, error) {
	name, cost, err := DecodeCharged(raw, gzip, v, lim)
	lim.Budget.Give(cost)
	return name, err
}

// DecodeCharged is DecodeBody for callers that keep v for some time. It takes the memory that v may need from
// the limits' budget, and returns as cost how many bytes that are. The caller gives them back when v is not
// used any more. Cost is never less than what v takes, and 0 after an error. How much a value takes is known
// for codecs that implement [codec.Sizer]; for others it is the length of the body.
func DecodeCharged(raw []byte, gzip int32, v interface{}, lim Limits) (name string, cost int64, err error) {
	if r, ok := v.(*RawBody); ok && r != nil {
		if !lim.Budget.Take(int64(len(raw))) {
			return "", 0, fmt.Errorf("packet: a body of %d bytes: %w", len(raw), ErrBudget)
		}
		*r = append((*r)[:0:0], raw...)
		if name, err = r.Codec(); err != nil {
			name = ""
		}
		return name, int64(len(raw)), nil
	}
	if len(raw) == 0 {
		return "", 0, nil
	}
	c, err := codec.GetById(raw[0])
	if err != nil {
		return "", 0, fmt.Errorf("packet: body: %w", err)
	}
	if v == nil {
		return c.Name(), 0, nil
	}
	data := raw[1:]
	if gzip != 0 {
		if err := CheckGzip(gzip); err != nil {
			return c.Name(), 0, err
		}
		plain := bufpool.Get()
		defer bufpool.Put(plain)
		var inflated int64
		plain.B, inflated, err = appendGunzip(plain.B, data, lim.inflated(), lim.Budget)
		defer lim.Budget.Give(inflated)
		if err != nil {
			return c.Name(), 0, err
		}
		data = plain.B
	}
	if cost, err = lim.charge(c, data, v); err != nil {
		return c.Name(), 0, err
	}
	if err = codec.DecodeDepth(c, data, v, lim.depth()); err != nil {
		lim.Budget.Give(cost)
		cost = 0
	}
	return c.Name(), cost, err
}

// notCounted is how many bytes a body may become at most without being looked at before it is decoded.
// Looking at it takes a third of the time of decoding.
const notCounted = 1 << 20

// charge takes from the budget what data may become when it is decoded into v. It looks at the body only if
// the most that a body of this length can become is too much.
func (l Limits) charge(c codec.Codec, data []byte, v interface{}) (int64, error) {
	most := l.decoded()
	if l.Budget == nil && l.Decoded < 0 {
		return 0, nil
	}
	if bound := codec.DecodedBound(c, data, v); bound <= min(most, notCounted) && l.Budget.try(bound) {
		return bound, nil
	}
	size := codec.DecodedSize(c, data, v, most)
	if size > most {
		return 0, fmt.Errorf("packet: %w: the decoded body would exceed the limit of %d bytes", ErrTooLarge,
			most)
	}
	if !l.Budget.Take(size) && !l.Budget.TakeAlone(size) {
		return 0, fmt.Errorf("packet: decoding a body to %d bytes: %w", size, ErrBudget)
	}
	return size, nil
}
