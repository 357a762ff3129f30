package systems

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"strconv"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/henrylee2cn/teleport/bench/payload"
)

// The floors speak the framework's own format, framed by hand: the header in
// protobuf, the message behind it. So they do what any implementation of it must
// do with the bytes, and can talk to the real one, which a test makes them do.

const (
	wirePull  = 1
	wireReply = 2

	wireUnknown = 410 // the status of a packet of another type

	wireProtobuf = 'p' // codec id
)

// wireHeader is what the floors need of a header. The slices point into the frame.
type wireHeader struct {
	id   []byte
	slot int // of the call, which its id tells
	typ  uint64
	uri  []byte
	code uint64
}

var errWire = errors.New("floor: malformed frame")

// appendFrame appends a frame with the header and the message.
func appendFrame(dst []byte, slot int, typ uint64, uri string, code uint64, m *payload.Message) ([]byte,
	error) {
	var digits [20]byte
	dst = appendHeader(dst, strconv.AppendInt(digits[:0], int64(slot)+1, 10), typ, uri, code)
	at := len(dst)
	dst = append(dst, 0, 0, 0, 0, wireProtobuf)
	dst, err := appendMessage(dst, m)
	if err != nil {
		return dst, err
	}
	binary.BigEndian.PutUint32(dst[at:], uint32(len(dst)-at-4))
	return dst, nil
}

// appendHeader appends the first part of a frame, its length included.
func appendHeader(dst, id []byte, typ uint64, uri string, code uint64) []byte {
	at := len(dst)
	dst = append(dst, 0, 0, 0, 0, wireProtobuf)
	dst = protowire.AppendTag(dst, 1, protowire.BytesType)
	dst = protowire.AppendBytes(dst, id)
	dst = protowire.AppendTag(dst, 2, protowire.VarintType)
	dst = protowire.AppendVarint(dst, typ)
	if uri != "" {
		dst = protowire.AppendTag(dst, 3, protowire.BytesType)
		dst = protowire.AppendString(dst, uri)
	}
	if code != 0 {
		dst = protowire.AppendTag(dst, 5, protowire.VarintType)
		dst = protowire.AppendVarint(dst, code)
	}
	binary.BigEndian.PutUint32(dst[at:], uint32(len(dst)-at-4))
	return dst
}

// parseHeader decodes a header without its codec id.
func parseHeader(b []byte) (wireHeader, error) {
	h := wireHeader{slot: -1}
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return h, errWire
		}
		b = b[n:]
		switch {
		case typ == protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return h, errWire
			}
			b = b[n:]
			switch num {
			case 2:
				h.typ = v
			case 5:
				h.code = v
			}
		case typ == protowire.BytesType:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return h, errWire
			}
			b = b[n:]
			switch num {
			case 1:
				h.id = v
			case 3:
				h.uri = v
			}
		default:
			return h, errWire
		}
	}
	if h.typ == wirePull || h.typ == wireReply {
		id, err := strconv.Atoi(string(h.id))
		if err != nil {
			return h, errWire
		}
		h.slot = id - 1
	}
	return h, nil
}

// appendRefusal appends the answer to a packet with the id whose type is unknown.
func appendRefusal(dst, id []byte) []byte {
	return append(appendHeader(dst, id, wireReply, "", wireUnknown), 0, 0, 0, 0)
}

// decodeMessage decodes a body with its codec id into m.
func decodeMessage(body []byte, m *payload.Message) error {
	if len(body) == 0 || body[0] != wireProtobuf {
		return errWire
	}
	return proto.Unmarshal(body[1:], m)
}

// frameReader reads frames from a connection.
type frameReader struct {
	conn net.Conn
	// idle is called before every read from the connection, which is when there
	// is no whole frame in the buffer.
	idle func() error
	// refuse answers a packet that has the id, and whose type the floors do not
	// know; the framework asks for credit when a large packet is to be sent.
	refuse func(id []byte) error

	buf  []byte
	r, w int // buf[r:w] was read and not yet parsed
}

const (
	firstReadBuffer = 4 << 10
	fullReadBuffer  = 64 << 10 // frames that need more get it
)

// next returns the header and the body of the next pull or reply, which are valid
// until the call after it.
func (f *frameReader) next() (h wireHeader, body []byte, err error) {
	for {
		h, body, err = f.frame()
		if err != nil || h.typ == wirePull || h.typ == wireReply {
			return h, body, err
		}
		if len(h.id) > 0 {
			if err := f.refuse(h.id); err != nil {
				return h, nil, err
			}
		}
	}
}

// frame returns the next frame's header and body.
func (f *frameReader) frame() (h wireHeader, body []byte, err error) {
	for {
		need := 4
		if b := f.buf[f.r:f.w]; len(b) >= need {
			hl := int(binary.BigEndian.Uint32(b))
			need += hl + 4
			if hl == 0 || hl > 64<<10 {
				return h, nil, errWire
			}
			if len(b) >= need {
				bl := int(binary.BigEndian.Uint32(b[need-4:]))
				need += bl
				if bl > 16<<20 {
					return h, nil, errWire
				}
				if len(b) >= need {
					f.r += need
					if b[4] != wireProtobuf {
						return h, nil, errWire
					}
					h, err = parseHeader(b[5 : 4+hl])
					return h, b[need-bl : need], err
				}
			}
		}
		if err := f.fill(need); err != nil {
			return h, nil, err
		}
	}
}

// fill reads once, having made room for need bytes in all from f.r on.
func (f *frameReader) fill(need int) error {
	if f.idle != nil {
		if err := f.idle(); err != nil {
			return err
		}
	}
	rest := f.buf[f.r:f.w]
	if f.w == len(f.buf) && len(f.buf) < fullReadBuffer {
		need = max(need, firstReadBuffer, 2*len(f.buf)) // the last read has filled it
	}
	if need > len(f.buf) {
		f.buf = make([]byte, need)
	}
	f.r, f.w = 0, copy(f.buf, rest)
	n, err := f.conn.Read(f.buf[f.w:])
	f.w += n
	if n > 0 || err == nil {
		return nil
	}
	if err == io.EOF && len(rest) > 0 {
		return io.ErrUnexpectedEOF
	}
	return err
}

// gatherer writes frames that many goroutines send. Whoever finds nobody writing
// writes, after it has let the other goroutines run once, and goes on until
// nothing is left; the others only leave their frames.
type gatherer struct {
	conn net.Conn

	mu      sync.Mutex // guards the fields below
	queue   []byte
	spare   []byte
	writing bool
	err     error
}

// send queues a frame. Without an error it is on its way.
func (g *gatherer) send(slot int, typ uint64, uri string, code uint64, m *payload.Message) error {
	g.mu.Lock()
	if g.err != nil {
		defer g.mu.Unlock()
		return g.err
	}
	before := len(g.queue)
	queue, err := appendFrame(g.queue, slot, typ, uri, code, m)
	if err != nil {
		g.queue = queue[:before]
		g.mu.Unlock()
		return err
	}
	g.queue = queue
	return g.flushAndUnlock()
}

// refuse queues the answer to a packet of an unknown type.
func (g *gatherer) refuse(id []byte) error {
	g.mu.Lock()
	g.queue = appendRefusal(g.queue, id)
	return g.flushAndUnlock()
}

// flushAndUnlock writes what is queued unless somebody does already.
func (g *gatherer) flushAndUnlock() error {
	if g.writing {
		g.mu.Unlock()
		return nil
	}
	g.writing = true
	g.mu.Unlock()
	runtime.Gosched()
	g.mu.Lock()
	for len(g.queue) > 0 && g.err == nil {
		out := g.queue
		g.queue = g.spare[:0]
		g.mu.Unlock()
		_, err := g.conn.Write(out)
		g.mu.Lock()
		g.spare = out
		g.err = err
	}
	g.writing = false
	err := g.err
	g.mu.Unlock()
	return err
}
