package tp

import (
	"encoding/json"
	"errors"
	"strconv"

	"github.com/henrylee2cn/teleport/packet"
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
// on the other side: it was not sent, or was refused before its handler began. Then
// it can be made again, here or elsewhere, without being made twice. False means
// that it has run, or that nobody knows. It looks through wrapped errors.
func NotRun(err error) bool {
	var x *xerror
	return errors.As(err, &x) && x.notRun
}

type xerror struct {
	code   int32
	text   string
	cause  error
	notRun bool // see NotRun
	// ofReply marks what this side could not take of a reply. The text may say what was in
	// it, and is for this side.
	ofReply bool
	// The details are a value on the side that made them, and a body as it came, with
	// its compression, on the other.
	details interface{}
	gzip    int32
	limits  *packet.Limits // of the peer that they came to; nil if they have not travelled
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
