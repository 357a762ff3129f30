package tp

import (
	"google.golang.org/protobuf/proto"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/packet"
)

// WithDetails returns x with details for machines: a value that travels as the body of
// the reply, in the reply's codec, beside the status. The caller finds it with
// [Details]. It belongs to the error from then on. If it does not encode the error goes
// without it.
func WithDetails(x Xerror, details interface{}) Xerror {
	return &xerror{code: x.Code(), text: x.Text(), cause: x, notRun: NotRun(x), details: details, after: afterOf(x), forwarded: isForwarded(x)}
}

// Details decodes the details of an error into v, a pointer, and reports whether it has
// any. It looks through wrapped errors, of an error that wraps several at the first Xerror.
// It may be called more than once, and from many goroutines. The details of an error that
// came from the other side are held as they came, beside the peer's MaxBufferedBytes, and
// decoded within its other limits.
func Details(err error, v interface{}) (found bool, _ error) {
	x := withDetails(err)
	if x == nil {
		return false, nil
	}
	raw, ok := x.details.(packet.RawBody)
	if !ok { // it has not travelled
		name := codec.NameJSON
		if _, is := x.details.(proto.Message); is {
			name = codec.NameProtobuf
		}
		c, err := codec.GetByName(name)
		if err != nil {
			return true, err
		}
		raw, err = codec.Append(c, packet.RawBody{c.Id()}, x.details)
		if err != nil {
			return true, err
		}
	}
	var limits packet.Limits
	if x.limits != nil {
		limits = *x.limits
	}
	_, err = packet.DecodeBody(raw, x.gzip, v, limits)
	return true, err
}

// withDetails returns the error with details that err is, or wraps; nil if there is none.
func withDetails(err error) *xerror {
	return firstXerror(err, func(x *xerror) bool { return x.details != nil })
}

// isForwarded reports whether WithNotRun has made the error.
func isForwarded(err error) bool {
	return firstXerror(err, func(x *xerror) bool { return x.forwarded }) != nil
}

// detailsOf returns the body of a reply that is the error, and its compression.
func detailsOf(err error) (body interface{}, gzip int32) {
	if x := withDetails(err); x != nil {
		return x.details, x.gzip
	}
	return nil, 0
}
