package tp

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// Status codes. Those below 200 are made on this side and never sent; services
// may use any other code as they like.
const (
	StatusWriteFailed         int32 = 100 // the packet could not be written
	StatusConnClosed          int32 = 101 // the connection ended before the reply
	StatusDeadlineExceeded    int32 = 102 // the caller's deadline passed
	StatusCanceled            int32 = 103 // the caller gave up
	StatusOK                  int32 = 200
	StatusBadRequest          int32 = 400 // a URI or body that cannot be understood
	StatusUnauthorized        int32 = 401
	StatusForbidden           int32 = 403
	StatusNotFound            int32 = 404 // no handler for the URI
	StatusUnsupportedType     int32 = 410 // a packet type that the peer does not know
	StatusTooLarge            int32 = 413 // a body over the receiver's limit
	StatusUnsupportedCodec    int32 = 415 // a body codec that the peer does not know
	StatusFailedPlugin        int32 = 424 // a plugin's hook refused the packet
	StatusOverloaded          int32 = 429
	StatusInternalServerError int32 = 500 // a handler's panic, or a reply that does not encode
	StatusNotImplemented      int32 = 501
	StatusBadGateway          int32 = 502 // a proxy's upstream failed
	StatusServiceUnavailable  int32 = 503 // the peer is shutting down
	StatusGatewayTimeout      int32 = 504
	StatusLoopDetected        int32 = 508 // a packet has gone through too many proxies
)

var statusTexts = map[int32]string{
	StatusWriteFailed:         "write failed",
	StatusConnClosed:          "connection closed",
	StatusDeadlineExceeded:    "deadline exceeded",
	StatusCanceled:            "canceled",
	StatusOK:                  "OK",
	StatusBadRequest:          "bad request",
	StatusUnauthorized:        "unauthorized",
	StatusForbidden:           "forbidden",
	StatusNotFound:            "not found",
	StatusUnsupportedType:     "unsupported type",
	StatusTooLarge:            "too large",
	StatusUnsupportedCodec:    "unsupported codec",
	StatusFailedPlugin:        "failed plugin",
	StatusOverloaded:          "overloaded",
	StatusInternalServerError: "internal server error",
	StatusNotImplemented:      "not implemented",
	StatusBadGateway:          "bad gateway",
	StatusServiceUnavailable:  "service unavailable",
	StatusGatewayTimeout:      "gateway timeout",
	StatusLoopDetected:        "loop detected",
}

// StatusText returns the usual text of a status code, or "" for a code that has
// none.
func StatusText(code int32) string { return statusTexts[code] }

// Xerror is the failure of a call: a status code with a text. Nil means success.
// Every code is an error, 0 included; only a nil Xerror is not.
//
// An Xerror made on this side wraps what caused it, for errors.Is and errors.As. For
// errors.Is it is also one made by NewXerror with its code, and with its text or none.
// It encodes to JSON as {"code":404,"text":"not found"}.
type Xerror interface {
	// Code is the status code.
	Code() int32
	// Text is the status text.
	Text() string
	// Error is the code and the text, for people.
	Error() string
}

// NewXerror returns an Xerror with the code and the text.
func NewXerror(code int32, text string) Xerror {
	return &xerror{code: code, text: text}
}

// NotRun reports whether a pull or a push that failed with err certainly has not run
// on the other side: it was not sent, or was refused before its handler began. To make it
// again makes nothing happen twice, but may well fail again, as a pull to a route that
// nobody serves does: what is worth another attempt [Retryable] says. False means that it
// has run, or that nobody knows. It looks through wrapped errors.
func NotRun(err error) bool {
	var x *xerror
	return errors.As(err, &x) && x.notRun
}

// Retryable reports whether a call that failed with err may succeed later, or elsewhere: it
// certainly has not run, see [NotRun], and the reason was a limit, a side that shuts down or a
// connection that was lost before anything was sent by it; or the other side has said by
// [WithRetryAfter] that it is worth another attempt. After is how long the other side asks to
// wait before that, zero if it has not said so. A loop that makes calls again needs a bound and
// a wait of its own besides. It looks through wrapped errors.
func Retryable(err error) (after time.Duration, ok bool) {
	var x *xerror
	if !errors.As(err, &x) {
		return 0, false
	}
	if x.after > 0 {
		return x.after, true
	}
	if !x.notRun {
		return 0, false
	}
	switch x.code {
	case StatusConnClosed, StatusOverloaded, StatusServiceUnavailable, StatusBadGateway, StatusGatewayTimeout:
		return 0, true
	case StatusWriteFailed: // also the code of a packet that does not encode
		return 0, isWriteError(x.cause)
	case StatusDeadlineExceeded: // without a connection; not that of the caller's context
		return 0, x.cause == nil
	}
	return 0, false
}

// WithRetryAfter returns x, an error of a handler or a hook, as one that is worth another
// attempt after some time, which the caller learns by [Retryable]. It travels in the reply's
// metadata in whole milliseconds, rounded up, under "tp-retry-after". It panics if the time is
// not positive.
func WithRetryAfter(x Xerror, after time.Duration) Xerror {
	if after <= 0 {
		panic(fmt.Sprintf("tp: WithRetryAfter: %v is not positive.", after))
	}
	return &xerror{code: x.Code(), text: x.Text(), cause: x, notRun: NotRun(x), after: after}
}

// metaRetryAfter is the key of what WithRetryAfter says, in milliseconds.
const metaRetryAfter = "tp-retry-after"

// WithNotRun returns x, an error of a handler, as that of a call that has not run, see
// [NotRun]. It is for handlers that forward a call, and know that it has run nowhere: without it
// the caller takes a call whose handler has begun for one that has run.
func WithNotRun(x Xerror) Xerror {
	return &xerror{code: x.Code(), text: x.Text(), cause: x, notRun: true, after: afterOf(x), forwarded: true}
}

// afterOf returns the wait that WithRetryAfter has given an error on this side.
func afterOf(err error) time.Duration {
	x := firstXerror(err, func(x *xerror) bool { return x.after > 0 || x.remote })
	if x == nil || x.remote {
		return 0
	}
	return x.after
}

// Local reports whether err was made on this side: the call was not sent, the connection was
// lost, the caller gave up, or a reply has come that this side cannot take. False means that it
// is what the other side has answered, or that err is nil. It looks through wrapped errors.
func Local(err error) bool {
	return err != nil && firstXerror(err, func(x *xerror) bool { return x.remote }) == nil
}

// firstXerror returns the first Xerror in the chain of err for which is returns true.
func firstXerror(err error, is func(*xerror) bool) *xerror {
	for err != nil {
		var x *xerror
		if !errors.As(err, &x) {
			return nil
		}
		if is(x) {
			return x
		}
		err = x.cause
	}
	return nil
}

type xerror struct {
	code   int32
	text   string
	cause  error
	notRun bool // see NotRun
	remote bool // the other side has made it
	// forwarded says that the error is of a handler that has begun, and notRun holds
	// nevertheless; after is that of WithRetryAfter.
	forwarded bool
	after     time.Duration
	// ofReply says that this side could not decode a reply. The text may quote the reply, so it is not sent
	// on to others.
	ofReply bool
	// The details are a value on the side that made them, and a body as it came, with
	// its compression, on the other.
	details interface{}
	gzip    int32
	limits  *packet.Limits // of the peer that received the details; nil if they were made on this side
}

// Is reports whether target stands for x: see [Xerror].
func (x *xerror) Is(target error) bool {
	t, ok := target.(*xerror)
	return ok && t.code == x.code && (t.text == "" || t.text == x.text) && t.cause == nil && t.details == nil
}

// unrun is newXerror for a pull that certainly has not run.
func unrun(code int32, detail string, cause error) *xerror {
	x := newXerror(code, detail, cause)
	x.notRun = true
	return x
}

// newXerror makes the Xerror for code: the detail, or the usual text where there
// is none, wrapping cause.
func newXerror(code int32, detail string, cause error) *xerror {
	if detail == "" {
		detail = StatusText(code)
	}
	return &xerror{code: code, text: detail, cause: cause}
}

func (x *xerror) Code() int32  { return x.code }
func (x *xerror) Text() string { return x.text }

func (x *xerror) Error() string {
	if x.text == "" {
		return strconv.Itoa(int(x.code))
	}
	return strconv.Itoa(int(x.code)) + " " + x.text
}

func (x *xerror) Unwrap() error { return x.cause }

type xerrorJSON struct {
	Code int32  `json:"code"`
	Text string `json:"text"`
}

var (
	_ json.Marshaler   = (*xerror)(nil)
	_ json.Unmarshaler = (*xerror)(nil)
)

func (x *xerror) MarshalJSON() ([]byte, error) {
	return json.Marshal(xerrorJSON{x.code, x.text})
}

func (x *xerror) UnmarshalJSON(b []byte) error {
	var v xerrorJSON
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	*x = xerror{code: v.Code, text: v.Text}
	return nil
}

// WithDetails returns x with details for machines: a value that travels as the body of
// the reply, in the reply's codec, beside the status. The caller finds it with
// [Details]. It belongs to the error from then on. If it does not encode the error goes
// without it.
func WithDetails(x Xerror, details interface{}) Xerror {
	return &xerror{code: x.Code(), text: x.Text(), cause: x, notRun: NotRun(x), details: details,
		after: afterOf(x), forwarded: isForwarded(x)}
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
	if !ok { // the details were made on this side
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

// withDetails returns the first error with details in the chain of err; nil if there is none.
func withDetails(err error) *xerror {
	return firstXerror(err, func(x *xerror) bool { return x.details != nil })
}

// isForwarded reports whether WithNotRun has made the error.
func isForwarded(err error) bool {
	return firstXerror(err, func(x *xerror) bool { return x.forwarded }) != nil
}

// detailsOf returns the details of x as the body of a reply, and the body's compression.
func detailsOf(err error) (body interface{}, gzip int32) {
	if x := withDetails(err); x != nil {
		return x.details, x.gzip
	}
	return nil, 0
}

func isWriteError(err error) bool {
	var we *socket.WriteError
	return errors.As(err, &we)
}

// hookError is the failure of a hook.
type hookError struct {
	text string // for this side
	code int32
	told string // for the other side
	err  error  // nil after a panic
}

func (e *hookError) Error() string { return e.text }

func (e *hookError) Unwrap() error { return e.err }

// orNil returns e as an error; a nil error if e is nil.
func (e *hookError) orNil() error {
	if e == nil {
		return nil
	}
	return e
}

// xerror returns the error that the other side, or the caller, gets.
func (e *hookError) xerror() Xerror {
	return &xerror{code: e.code, text: e.told, cause: e}
}
