package main

import (
	"net"
	"sync"
	"time"

	"github.com/henrylee2cn/teleport/packet"
)

// floor is the least that a delivery can cost: the frame is made once, and written to one connection after
// the other. Nothing is read, nothing is queued, and a member that does not read holds up all.
type floor struct {
	timeout time.Duration // of a write that has to wait; 0 for no bound
	frames  []byte        // memory that is used again

	mu      sync.Mutex // guards the fields below
	members []*floorMember
	closed  bool
}

// floorMember is a connection. Its descriptor is used by who sends, and closed when nobody does any more.
type floorMember struct {
	conn net.Conn
	fd   uintptr
	gone bool // a write has failed
}

func openFloor(ln net.Listener, r role, joined func()) (*opened, error) {
	f := newFloor(ln, r, joined)
	return &opened{ways: map[string]way{floorOne: f.send, floorMany: f.send}, close: f.close}, nil
}

func newFloor(ln net.Listener, r role, joined func()) *floor {
	f := &floor{}
	if r.Stalled {
		f.timeout = stalledTimeout
	}
	go accept(ln, func(conn net.Conn) {
		m := &floorMember{conn: conn}
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { m.fd = fd })
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if err != nil || f.closed {
			conn.Close()
			return
		}
		f.members = append(f.members, m)
		joined()
	})
	return f
}

// appendFrame appends the push of a message.
func appendFrame(dst, message []byte) []byte {
	dst, err := packet.Append(dst, &packet.Packet{
		BodyCodec: "string",
		Header:    &packet.Header{Type: packet.TypePush, Uri: tickURI},
		Body:      message,
	}, packet.Limits{})
	if err != nil {
		panic(err) // a message is bytes, which every limit allows
	}
	return dst
}

// send writes all messages to each member at once. One call runs at a time.
func (f *floor) send(messages [][]byte) (failed int) {
	f.frames = f.frames[:0]
	for _, m := range messages {
		f.frames = appendFrame(f.frames, m)
	}
	f.mu.Lock()
	members := f.members
	f.mu.Unlock()
	for _, m := range members {
		if !f.write(m, f.frames) {
			failed += len(messages)
		}
	}
	return failed
}

// write writes to one member, and reports whether that went well.
func (f *floor) write(m *floorMember, b []byte) bool {
	if m.gone {
		return false
	}
	n, ok := writeNow(m, b)
	if ok && n < len(b) { // the kernel has no room
		var deadline time.Time
		if f.timeout > 0 {
			deadline = time.Now().Add(f.timeout)
		}
		err := m.conn.SetWriteDeadline(deadline)
		if err == nil {
			_, err = m.conn.Write(b[n:])
		}
		ok = err == nil
	}
	m.gone = !ok
	return ok
}

func (f *floor) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for _, m := range f.members {
		m.conn.Close()
	}
}
