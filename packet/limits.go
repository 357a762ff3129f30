package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Default limits, in bytes.
const (
	DefaultMaxHeader = 64 << 10
	DefaultMaxBody   = 16 << 20
	// DefaultMaxDecoded is the default limit of the memory that a decoded body takes.
	DefaultMaxDecoded = 64 << 20
)

// DefaultMaxDepth is the default limit of how deep a body may be nested.
const DefaultMaxDepth = 1000

// Errors that errors.Is finds in what this package returns.
var (
	// ErrHeader: the frame cannot be followed, because a length is impossible or
	// the header does not decode. The connection is of no further use.
	ErrHeader = errors.New("bad header")
	// ErrTooLarge: a header or body exceeds its limit.
	ErrTooLarge = errors.New("too large")
	// ErrGzip: the level is not a valid one, or the stream is broken.
	ErrGzip = errors.New("bad gzip")
	// ErrBudget: the memory that a [Budget] allows is in use.
	ErrBudget = errors.New("the memory budget is used up")
)

// Limits bounds what is accepted from the other side, and what is sent to it.
// In each field 0 means the default and a negative number no limit but the
// format's own of 4 GiB, or the 2 GiB that an int holds where it has 32 bits.
type Limits struct {
	// Header bounds HeaderLength.
	Header int64
	// Body bounds BodyLength, as it stands on the wire.
	Body int64
	// Inflated bounds a body after decompression.
	Inflated int64
	// Decoded bounds the memory that a decoded body takes, where its codec can tell: see
	// [codec.Sizer].
	Decoded int64
	// Depth bounds how deep a body may be nested, where its codec can tell: see
	// [codec.DepthLimiter].
	Depth int
	// Budget, if there is one, is asked for memory for bodies that are received, on the
	// wire, decompressed and decoded.
	Budget *Budget
}

// largest is what a length can be: what its four bytes hold, or what an int does, with some
// room for what is around it.
const largest = min(math.MaxUint32, math.MaxInt-1<<10)

func limit(n, def int64) int64 {
	switch {
	case n == 0:
		return def
	case n < 0 || n > largest:
		return largest
	}
	return n
}

func (l Limits) header() int64   { return limit(l.Header, DefaultMaxHeader) }
func (l Limits) body() int64     { return limit(l.Body, DefaultMaxBody) }
func (l Limits) inflated() int64 { return limit(l.Inflated, DefaultMaxBody) }

// AllowsDecoded reports whether a decoded body may take n bytes.
func (l Limits) AllowsDecoded(n int64) bool { return n <= l.decoded() }

func (l Limits) decoded() int64 {
	switch {
	case l.Decoded == 0:
		return DefaultMaxDecoded
	case l.Decoded < 0:
		return math.MaxInt64
	}
	return l.Decoded
}

func (l Limits) depth() int {
	switch {
	case l.Depth == 0:
		return DefaultMaxDepth
	case l.Depth < 0:
		return math.MaxInt32
	}
	return l.Depth
}

// HeaderLength reads the four bytes that begin a frame. It returns how many
// bytes follow for the header and its codec id, at least 1, or an error that
// wraps [ErrHeader], and [ErrTooLarge] where that is the reason.
func (l Limits) HeaderLength(b []byte) (int64, error) {
	n := int64(binary.BigEndian.Uint32(b))
	if n == 0 {
		return 0, fmt.Errorf("packet: %w: header length 0, the least is 1", ErrHeader)
	}
	if n <= l.header() {
		return n, nil
	}
	err := fmt.Errorf("packet: %w: %w: header length %d exceeds limit %d", ErrHeader, ErrTooLarge, n,
		l.header())
	switch guess := LooksLike(b[:LengthSize]); guess {
	case "":
	case ErrTLS.Error():
		err = fmt.Errorf("%w: %w", err, ErrTLS)
	default:
		err = fmt.Errorf("%w: %s", err, guess)
	}
	return 0, err
}

// BodyLength reads the four bytes that follow the header. It returns how many
// bytes follow for the body and its codec id; past the limit it returns that
// number with an error that wraps [ErrTooLarge], and the frame can be skipped.
func (l Limits) BodyLength(b []byte) (int64, error) {
	n := int64(binary.BigEndian.Uint32(b))
	if n > l.body() {
		return n, fmt.Errorf("packet: %w: body length %d exceeds limit %d", ErrTooLarge, n, l.body())
	}
	return n, nil
}
