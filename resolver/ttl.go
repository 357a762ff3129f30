package resolver

import (
	"encoding/binary"
	"net"
	"sync/atomic"
	"time"
)

// ttls notes the shortest time to live of the answers that name servers send. The resolver of package net
// does not tell it, so its connections are listened to. The zero value is ready to use, by any number of
// goroutines.
//
// Somebody who can send packets in a name server's name can put other times in, which changes how often is
// asked, within bounds, and nothing else: the answers themselves are checked by package net.
type ttls struct{ least atomic.Int64 } // in seconds, plus one; 0 as long as there was no answer

// shortest returns the shortest time, and false if there was no answer with one.
func (t *ttls) shortest() (time.Duration, bool) {
	n := t.least.Load()
	return time.Duration(n-1) * time.Second, n > 0
}

// heard takes in a message of a name server.
func (t *ttls) heard(message []byte) {
	ttl, ok := answerTTL(message)
	for ok {
		n := t.least.Load()
		if n > 0 && n <= int64(ttl)+1 || t.least.CompareAndSwap(n, int64(ttl)+1) {
			return
		}
	}
}

// listen returns the connection to a name server so that what comes there is heard.
func (t *ttls) listen(conn net.Conn) net.Conn {
	if udp, ok := conn.(*net.UDPConn); ok {
		return &heardPackets{udp, t}
	}
	if _, ok := conn.(net.PacketConn); ok {
		return conn
	}
	return &heardStream{Conn: conn, ttls: t}
}

// heardPackets is a connection on which each packet is a message. Package net tells by its methods of a
// net.PacketConn that it is one.
type heardPackets struct {
	*net.UDPConn
	ttls *ttls
}

func (c *heardPackets) Read(b []byte) (int, error) {
	n, err := c.UDPConn.Read(b)
	if err == nil {
		c.ttls.heard(b[:n])
	}
	return n, err
}

// heardStream is a connection on which the length of each message comes first, in two bytes.
type heardStream struct {
	net.Conn
	ttls  *ttls
	begun []byte // of a message that has not come as a whole: 65,537 bytes at most
}

func (c *heardStream) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.begun = append(c.begun, b[:n]...)
	for len(c.begun) >= 2 {
		end := 2 + int(binary.BigEndian.Uint16(c.begun))
		if len(c.begun) < end {
			break
		}
		c.ttls.heard(c.begun[2:end])
		c.begun = append(c.begun[:0], c.begun[end:]...)
	}
	return n, err
}

// The format of messages is that of RFC 1035, section 4.
const (
	dnsHeader   = 12
	dnsIsAnswer = 0x80 // in the third byte
	dnsCode     = 0x0f // in the fourth byte; 0 is success
)

// answerTTL returns the shortest time to live of a message's answers, in seconds. It reports false for a
// message without answers, and for one that is broken.
func answerTTL(message []byte) (least uint32, ok bool) {
	if len(message) < dnsHeader || message[2]&dnsIsAnswer == 0 || message[3]&dnsCode != 0 {
		return 0, false
	}
	questions := int(binary.BigEndian.Uint16(message[4:]))
	answers := int(binary.BigEndian.Uint16(message[6:]))
	rest := message[dnsHeader:]
	for range questions {
		if rest = afterName(rest); len(rest) < 4 { // type and class
			return 0, false
		}
		rest = rest[4:]
	}
	for i := range answers {
		if rest = afterName(rest); len(rest) < 10 { // type, class, time to live, and a length
			return 0, false
		}
		ttl, length := binary.BigEndian.Uint32(rest[4:]), int(binary.BigEndian.Uint16(rest[8:]))
		if rest = rest[10:]; len(rest) < length {
			return 0, false
		}
		rest = rest[length:]
		if ttl > 1<<31-1 { // RFC 2181, section 8
			ttl = 0
		}
		if i == 0 || ttl < least {
			least = ttl
		}
	}
	return least, answers > 0
}

// afterName returns what stands behind the name with which b begins; nil if b ends before.
func afterName(b []byte) []byte {
	for len(b) > 0 {
		switch n := int(b[0]); {
		case n == 0:
			return b[1:]
		case n >= 0xc0: // the rest of the name stands elsewhere
			return b[min(2, len(b)):]
		case n >= 0x40 || len(b) <= n: // no label
			return nil
		default:
			b = b[1+n:]
		}
	}
	return nil
}
