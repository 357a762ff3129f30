package resolver

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// Types of records.
const (
	typeA    = 1
	typeAAAA = 28
	typeSRV  = 33
)

// Codes of answers.
const (
	codeFailure = 2
	codeNoName  = 3
)

// record is a record of a name, of which a server knows several.
type record struct {
	typ  uint16
	ttl  uint32
	data []byte
}

func address(ttl uint32, ip string) record {
	a := netip.MustParseAddr(ip)
	if a.Is4() {
		return record{typeA, ttl, a.AsSlice()}
	}
	return record{typeAAAA, ttl, a.AsSlice()}
}

func srv(ttl uint32, priority, weight, port uint16, target string) record {
	data := binary.BigEndian.AppendUint16(nil, priority)
	data = binary.BigEndian.AppendUint16(data, weight)
	data = binary.BigEndian.AppendUint16(data, port)
	return record{typeSRV, ttl, appendName(data, target)}
}

func appendName(b []byte, name string) []byte {
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		if label != "" {
			b = append(append(b, byte(len(label))), label...)
		}
	}
	return append(b, 0)
}

// dnsServer is a name server on this machine, by UDP and TCP.
type dnsServer struct {
	addr string

	mu     sync.Mutex // guards the fields below
	names  map[string][]record
	fail   map[uint16]byte // the code of all answers about a type
	asked  map[uint16]int  // how often about a type
	tcp    int             // how many questions have come by TCP
	longer bool            // what comes by UDP is cut off
}

func serveDNS(t *testing.T) *dnsServer {
	s := &dnsServer{names: map[string][]record{}, fail: map[uint16]byte{}, asked: map[uint16]int{}}
	var ln net.Listener
	var packets net.PacketConn
	for range 100 { // until both have one port
		var err error
		ln, err = net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		if packets, err = net.ListenPacket("udp", ln.Addr().String()); err == nil {
			break
		}
		_ = ln.Close()
	}
	require.NotNil(t, packets)
	s.addr = ln.Addr().String()
	var all sync.WaitGroup
	all.Go(func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := packets.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = packets.WriteTo(s.answer(b[:n], false), from) // who is not there asks again
		}
	})
	all.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() { s.serveConn(conn) })
		}
	})
	t.Cleanup(func() {
		_, _ = packets.Close(), ln.Close()
		all.Wait()
	})
	return s
}

func (s *dnsServer) serveConn(conn net.Conn) {
	defer conn.Close()
	for {
		var length [2]byte
		if _, err := io.ReadFull(conn, length[:]); err != nil {
			return
		}
		question := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(conn, question); err != nil {
			return
		}
		answer := s.answer(question, true)
		for _, b := range binary.BigEndian.AppendUint16(nil, uint16(len(answer))) { // in small pieces
			if _, err := conn.Write([]byte{b}); err != nil {
				return
			}
		}
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

// answer makes the answer to a message that asks one question.
func (s *dnsServer) answer(question []byte, tcp bool) []byte {
	rest, name := question[dnsHeader:], ""
	for rest[0] != 0 {
		name += string(rest[1:1+rest[0]]) + "."
		rest = rest[1+rest[0]:]
	}
	typ := binary.BigEndian.Uint16(rest[1:])
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[typ]++
	records, known := s.names[name]
	code := s.fail[typ]
	if !known && code == 0 {
		code = codeNoName
	}
	var answers []byte
	n := 0
	if code == 0 {
		for _, r := range records {
			if r.typ == typ {
				n++
				answers = append(answers, 0xc0, dnsHeader) // the name of the question
				answers = binary.BigEndian.AppendUint16(answers, r.typ)
				answers = append(answers, 0, 1)
				answers = binary.BigEndian.AppendUint32(answers, r.ttl)
				answers = binary.BigEndian.AppendUint16(answers, uint16(len(r.data)))
				answers = append(answers, r.data...)
			}
		}
	}
	flags := byte(dnsIsAnswer)
	if tcp {
		s.tcp++
	} else if s.longer {
		flags, answers, n = flags|2, nil, 0
	}
	message := append([]byte{}, question[:2]...)
	message = append(message, flags, 0x80|code, 0, 1, byte(n>>8), byte(n), 0, 0, 0, 0)
	message = appendName(message, name)
	message = binary.BigEndian.AppendUint16(message, typ)
	return append(append(message, 0, 1), answers...)
}

// set makes these the records of the name.
func (s *dnsServer) set(name string, records ...record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names[name] = records
}

func (s *dnsServer) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// times returns how often the server was asked about the type.
func (s *dnsServer) times(typ uint16) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[typ]
}
