package resolver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
)

// look has the name looked up once, at the server.
func (s *dnsServer) look(name string, option ...Option) ([]tp.Server, time.Duration, error) {
	d := DNS(name, append(option, Nameservers(s.addr))...).(*dns)
	return d.look(context.Background())
}

func TestDNSAddresses(t *testing.T) {
	s := serveDNS(t)
	s.set("shop.test.", address(300, "10.0.0.2"), address(60, "10.0.0.1"), address(90, "2001:db8::1"),
		address(60, "10.0.0.1"))
	for network, c := range map[string]struct {
		want string
		ttl  time.Duration
	}{
		"ip":  {"10.0.0.1:80 10.0.0.2:80 [2001:db8::1]:80", time.Minute},
		"ip4": {"10.0.0.1:80 10.0.0.2:80", time.Minute},
		"ip6": {"[2001:db8::1]:80", 90 * time.Second},
	} {
		t.Run(network, func(t *testing.T) {
			servers, ttl, err := s.look("shop.test.:80", Network(network))
			require.NoError(t, err)
			require.Equal(t, c.want, addrs(servers))
			require.Equal(t, c.ttl, ttl)
		})
	}
	servers, ttl, err := s.look("127.0.0.1:80", Every(time.Minute))
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1:80", addrs(servers), "a number is its own name")
	require.Equal(t, time.Minute, pauseFor(ttl, time.Minute), "and nobody says until when")
}

func TestDNSServices(t *testing.T) {
	s := serveDNS(t)
	for name, c := range map[string]struct {
		records []record
		want    []tp.Server
		option  []Option
	}{
		"one": {[]record{srv(60, 0, 0, 81, "a.test.")}, []tp.Server{{Addr: "a.test:81"}}, nil},
		"weights": {[]record{srv(60, 1, 10, 81, "a.test."), srv(60, 1, 0, 82, "b.test.")},
			[]tp.Server{{Addr: "a.test:81", Weight: 10}, {Addr: "b.test:82", Weight: 1}}, nil},
		"one name, two ports": {[]record{srv(60, 1, 0, 82, "a.test."), srv(60, 1, 0, 81, "a.test.")},
			[]tp.Server{{Addr: "a.test:81"}, {Addr: "a.test:82"}}, nil},
		"the first priority": {[]record{srv(60, 20, 5, 81, "a.test."), srv(60, 10, 5, 82, "b.test."),
			srv(60, 10, 7, 83, "c.test.")},
			[]tp.Server{{Addr: "b.test:82", Weight: 5}, {Addr: "c.test:83", Weight: 7}}, nil},
		"all priorities": {[]record{srv(60, 20, 5, 81, "a.test."), srv(60, 10, 5, 82, "b.test."),
			srv(60, 30, 5, 82, "b.test.")},
			[]tp.Server{{Addr: "a.test:81", Weight: 5, Zone: Backup},
				{Addr: "b.test:82", Weight: 5, Zone: Primary}}, []Option{Backups()}},
		"one that is none": {[]record{srv(60, 1, 0, 81, "a.test."), srv(60, 0, 0, 0, "b.test.")},
			[]tp.Server{{Addr: "a.test:81"}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s.set("_rpc._tcp.shop.test.", c.records...)
			servers, ttl, err := s.look("_rpc._tcp.shop.test.", c.option...)
			require.NoError(t, err)
			require.Equal(t, c.want, servers)
			require.Equal(t, time.Minute, ttl)
		})
	}

	s.set("_rpc._tcp.shop.test.", srv(60, 0, 0, 0, "."))
	_, _, err := s.look("_rpc._tcp.shop.test.")
	require.ErrorContains(t, err, "the records say that the service is not there")
}

// What does not fit into a packet comes by TCP, and its times are heard, too.
func TestDNSAnswersThatAreLong(t *testing.T) {
	s := serveDNS(t)
	var all []record
	for i := range 500 {
		all = append(all, address(uint32(1000-i), fmt.Sprintf("10.0.%d.%d", i/256, i%256)))
	}
	s.set("shop.test.", all...)
	s.change(func() { s.longer = true })
	servers, ttl, err := s.look("shop.test.:80")
	require.NoError(t, err)
	require.Len(t, servers, 500)
	require.Equal(t, 501*time.Second, ttl)
	s.change(func() { require.NotZero(t, s.tcp) })
}

// What is no list is an error, and never a list that is shorter.
func TestDNSErrors(t *testing.T) {
	s := serveDNS(t)
	s.set("shop.test.", address(60, "10.0.0.1"), address(60, "2001:db8::1"))
	s.set("empty.test.")
	_, _, err := s.look("nobody.test.:80")
	require.ErrorContains(t, err, "no such host")
	_, _, err = s.look("empty.test.:80")
	require.Error(t, err)
	_, _, err = s.look("_rpc._tcp.nobody.test.")
	require.ErrorContains(t, err, "no such host")
	for _, typ := range []uint16{typeA, typeAAAA} {
		s.change(func() { clear(s.fail); s.fail[typ] = codeFailure })
		servers, _, err := s.look("shop.test.:80")
		require.Error(t, err, "%d: %v", typ, servers)
		var failure *net.DNSError
		require.ErrorAs(t, err, &failure)
		require.False(t, failure.IsNotFound)
	}
}

func TestNameserversTakeTurns(t *testing.T) {
	one, two := serveDNS(t), serveDNS(t)
	for _, s := range []*dnsServer{one, two} {
		s.set("shop.test.", address(60, "10.0.0.1"))
	}
	d := DNS("shop.test.:80", Nameservers(one.addr, two.addr), Network("ip4")).(*dns)
	for range 4 {
		_, _, err := d.look(t.Context())
		require.NoError(t, err)
	}
	require.Equal(t, 2, one.times(typeA))
	require.Equal(t, 2, two.times(typeA))
}

// The whole of it: records change, are gone, and come back.
func TestDNSIsLookedUpAgain(t *testing.T) {
	log := collectLog(t)
	s := serveDNS(t)
	s.set("shop.test.", address(0, "10.0.0.1"))
	news := resolve(t, DNS("shop.test.:80", Nameservers(s.addr), Every(minEvery), Network("ip4")))
	require.Equal(t, "10.0.0.1:80", addrs(news.next(t)))
	s.set("shop.test.", address(0, "10.0.0.1"), address(0, "10.0.0.2"))
	require.Equal(t, "10.0.0.1:80 10.0.0.2:80", addrs(news.next(t)))
	for _, away := range []func(){
		func() { delete(s.names, "shop.test.") },
		func() { s.names["shop.test."] = nil },
		func() { s.fail[typeA] = codeFailure },
	} {
		s.change(away)
		before := s.times(typeA)
		require.Eventually(t, func() bool { return s.times(typeA) > before+5 }, patience, time.Millisecond)
	}
	require.Empty(t, news)
	require.NotZero(t, log.containing("the servers of shop.test.:80: lookup shop.test."))
	s.change(func() { clear(s.fail) })
	s.set("shop.test.", address(0, "10.0.0.3"))
	require.Equal(t, "10.0.0.3:80", addrs(news.next(t)))
}

// A look-up ends with its context, whether anybody answers or not.
func TestDNSLookUpEndsWithItsContext(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	defer silent.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	r := DNS("shop.test.:80", Nameservers(silent.LocalAddr().String()))
	go func() { done <- r.Resolve(ctx, func([]tp.Server) { t.Error("told") }) }()
	_, _, err = silent.ReadFrom(make([]byte, 1000)) // the question
	require.NoError(t, err)
	cancel()
	select {
	case err := <-done:
		require.ErrorIs(t, err, context.Canceled)
	case <-time.After(patience):
		require.FailNow(t, "it looks up without an end")
	}
}

// The pause is shorter than the records are true, within bounds.
func TestPauseFor(t *testing.T) {
	for range 100 {
		require.Equal(t, dnsLeast, pauseFor(0, time.Minute))
		require.Equal(t, dnsLeast, pauseFor(time.Second, time.Minute))
		require.Equal(t, time.Minute, pauseFor(time.Hour, time.Minute))
		require.Equal(t, minEvery, pauseFor(time.Hour, minEvery))
		require.Equal(t, time.Minute, pauseFor((1<<31-1)*time.Second, time.Minute))
		p := pauseFor(20*time.Second, time.Minute)
		require.GreaterOrEqual(t, p, 16*time.Second)
		require.LessOrEqual(t, p, 19*time.Second)
	}
}

// message makes an answer with so many questions and answers as its header says, and those that it has.
func message(flags, code byte, questions, answers uint16, parts ...string) []byte {
	b := []byte{1, 2, flags, code, byte(questions >> 8), byte(questions), byte(answers >> 8), byte(answers),
		0, 0, 0, 0}
	return append(b, strings.Join(parts, "")...)
}

const (
	question    = "\x04shop\x04test\x00\x00\x01\x00\x01"
	oneMinute   = "\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\x0a\x00\x00\x01"
	twoSeconds  = "\x04shop\xc0\x11\x00\x01\x00\x01\x00\x00\x00\x02\x00\x04\x0a\x00\x00\x02"
	negative    = "\x00\x00\x01\x00\x01\xff\xff\xff\xff\x00\x00"
	afterwards  = "what an answer has behind its answers is not looked at"
	isAnswer    = 0x80
	unknownName = 3
)

func TestAnswerTTL(t *testing.T) {
	for name, c := range map[string]struct {
		message []byte
		want    uint32
		ok      bool
	}{
		"one answer":     {message(isAnswer, 0, 1, 1, question, oneMinute), 60, true},
		"the least":      {message(isAnswer, 0, 1, 3, question, oneMinute, twoSeconds, oneMinute), 2, true},
		"more behind it": {message(isAnswer, 0, 1, 1, question, oneMinute, afterwards), 60, true},
		"flags":          {message(isAnswer|0x7f, 0xf0, 1, 1, question, oneMinute), 60, true},
		"negative":       {message(isAnswer, 0, 1, 2, question, oneMinute, negative), 0, true},
		"no question":    {message(isAnswer, 0, 0, 1, oneMinute), 60, true},
		"no answers":     {message(isAnswer, 0, 1, 0, question), 0, false},
		"a question":     {message(0, 0, 1, 1, question, oneMinute), 0, false},
		"an error":       {message(isAnswer, unknownName, 1, 1, question, oneMinute), 0, false},
		"nothing":        {nil, 0, false},
		"a reserved label": {message(isAnswer, 0, 1, 1, "\x40"+strings.Repeat("x", 64)+"\x00\x00\x01\x00\x01",
			oneMinute), 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			ttl, ok := answerTTL(c.message)
			require.Equal(t, c.ok, ok)
			if ok {
				require.Equal(t, c.want, ttl)
			}
		})
	}
	whole := message(isAnswer, 0, 1, 2, question, oneMinute, twoSeconds)
	for i := range whole {
		_, ok := answerTTL(whole[:i])
		require.False(t, ok, "cut off at %d", i)
	}
}

func FuzzAnswerTTL(f *testing.F) {
	f.Add(message(isAnswer, 0, 1, 2, question, oneMinute, twoSeconds))
	f.Add(message(isAnswer, 0, 65535, 65535, question, negative))
	f.Fuzz(func(t *testing.T, b []byte) {
		if ttl, ok := answerTTL(b); ok && ttl > 1<<31-1 {
			t.Errorf("%d seconds", ttl)
		}
	})
}

// readConn is a connection from which the reader is read.
type readConn struct {
	net.Conn
	r io.Reader
}

func (c readConn) Read(b []byte) (int, error) { return c.r.Read(b) }

// Messages of a stream are heard however they come, and those that are cut off are not.
func TestStreamOfAnswers(t *testing.T) {
	var stream bytes.Buffer
	for _, m := range [][]byte{message(isAnswer, 0, 1, 1, question, oneMinute), {},
		message(isAnswer, 0, 1, 2, question, oneMinute, twoSeconds)} {
		stream.Write([]byte{byte(len(m) >> 8), byte(len(m))})
		stream.Write(m)
	}
	whole := stream.Bytes()
	for cut := range len(whole) + 1 {
		for _, pieces := range []func(io.Reader) io.Reader{iotest.OneByteReader, iotest.HalfReader,
			iotest.DataErrReader} {
			var seen ttls
			conn := seen.listen(readConn{r: pieces(bytes.NewReader(whole[:cut]))})
			got, err := io.ReadAll(conn)
			require.NoError(t, err)
			require.Equal(t, whole[:cut], got)
			ttl, ok := seen.shortest()
			first := 2 + len(message(isAnswer, 0, 1, 1, question, oneMinute))
			require.Equal(t, cut >= first, ok, cut)
			switch {
			case cut == len(whole):
				require.Equal(t, 2*time.Second, ttl)
			case ok:
				require.Equal(t, time.Minute, ttl)
			}
		}
	}
}

// other is a connection for packets that is none of UDP.
type other struct {
	net.Conn
	net.PacketConn
}

func (other) Close() error                     { return nil }
func (other) LocalAddr() net.Addr              { return nil }
func (other) SetDeadline(time.Time) error      { return errors.ErrUnsupported }
func (other) SetReadDeadline(time.Time) error  { return errors.ErrUnsupported }
func (other) SetWriteDeadline(time.Time) error { return errors.ErrUnsupported }

func TestOtherConnectionsStayWhatTheyAre(t *testing.T) {
	var seen ttls
	require.Equal(t, other{}, seen.listen(other{}))
}
