package socket_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/internal/race"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// The stream ends at every offset of its second packet. Only an end between two
// packets is one in good order.
func TestStreamCutOffAtEveryByte(t *testing.T) {
	first, second := frame(t, message("1", "first")), frame(t, message("2", "second"))
	for _, chunk := range []int{0, 1, 5} {
		for cut := range second {
			ca, cb := pipe.New(pipe.Options{Chunk: chunk})
			b := socket.New(cb, socket.Options{})
			send(t, ca, first)
			send(t, ca, second[:cut])
			require.NoError(t, ca.Close())
			requireMessage(t, b, "1", "first")
			if cut == 0 {
				requireOver(t, b)
				requireOver(t, b)
				continue
			}
			for range 2 { // it stays so
				_, _, err := receive(b)
				require.ErrorIs(t, err, io.ErrUnexpectedEOF, "cut off after %d bytes", cut)
				require.NotErrorIs(t, err, io.EOF)
				require.True(t, socket.Fatal(err))
			}
		}
	}
}

// The other side dies at every offset of what it writes.
func TestPeerDiesAtEveryByte(t *testing.T) {
	one := len(frame(t, message("1", "text")))
	for cut := range 2 * one {
		o := pipe.Options{CutAfter: cut}
		if cut == 0 {
			o.CutAfter = -1
		}
		a, b := sockets(t, o, socket.Options{})
		for i := range 3 {
			err := a.WritePacket(message("1", "text"))
			require.Equal(t, i < cut/one, err == nil, "packet %d, cut after %d bytes: %v", i, cut, err)
			if err != nil {
				requireWriteError(t, err, io.ErrClosedPipe)
				require.NotErrorIs(t, err, socket.ErrClosed)
			}
		}
		for range cut / one {
			requireMessage(t, b, "1", "text")
		}
		_, _, err := receive(b)
		require.True(t, socket.Fatal(err))
		require.Equal(t, cut%one == 0, err == io.EOF, "%v", err)
	}
}

// Errors that concern one body: the packet is passed over and the next one read.
func TestErrorsOfOneBody(t *testing.T) {
	limits := packet.Limits{Body: 1000, Inflated: 500}
	header := "\x00\x00\x00\x04p\x0a\x011" // id 1
	gzipped := "\x00\x00\x00\x06p\x0a\x011\x20\x05"
	bomb := message("1", strings.Repeat("x", 501))
	bomb.Header.Gzip = 9
	for _, tc := range []struct {
		name   string
		frame  string
		is     error
		unread bool // the body is known not to be wanted before it is read
	}{
		{"unknown codec", header + "\x00\x00\x00\x04\xeeabc", codec.ErrUnknown, false},
		{"does not decode", header + "\x00\x00\x00\x03j{}", nil, false},
		{"not one json value", header + "\x00\x00\x00\x01j", nil, false},
		{"no gzip", gzipped + "\x00\x00\x00\x04sabc", packet.ErrGzip, false},
		{"gzip of no bytes", gzipped + "\x00\x00\x00\x01s", packet.ErrGzip, false},
		{"gzip cut off", gzipped + "\x00\x00\x00\x04s\x1f\x8b\x08", packet.ErrGzip, false},
		{"gzip level 10", "\x00\x00\x00\x06p\x0a\x011\x20\x0a\x00\x00\x00\x02s1", packet.ErrGzip, false},
		{"too large to inflate", string(frame(t, bomb)), packet.ErrTooLarge, false},
		{"too large by one", header + "\x00\x00\x03\xe9s" + strings.Repeat("x", 1000), packet.ErrTooLarge,
			true},
		{"too large", header + "\x00\x01\x86\xa1s" + strings.Repeat("x", 100000), packet.ErrTooLarge, true},
		{"the codec's io.EOF", header + "\x00\x00\x00\x01\x01", io.EOF, false},
		{"the codec's wrapped io.EOF", header + "\x00\x00\x00\x01\x02", io.EOF, false},
		{"the codec's net.Error", header + "\x00\x00\x00\x01\x03", nil, false},
		{"the codec's net.ErrClosed", header + "\x00\x00\x00\x01\x04", net.ErrClosed, false},
	} {
		for _, chunk := range []int{0, 1} {
			t.Run(tc.name, func(t *testing.T) {
				ca, cb := overPipe(pipe.Options{Chunk: chunk, Buffer: 1 << 20})(t)
				b := socket.New(cb, socket.Options{Limits: limits})
				send(t, ca, []byte(tc.frame))
				send(t, ca, frame(t, message("2", "next")))
				send(t, ca, []byte(tc.frame))
				require.NoError(t, ca.Close())
				for _, next := range []func(){
					func() { requireMessage(t, b, "2", "next") },
					func() { requireOver(t, b) },
				} {
					var body string
					p, err := receivePacket(b, &body)
					require.Error(t, err)
					require.False(t, socket.Fatal(err), "%v", err)
					require.False(t, err == io.EOF)
					if tc.is != nil {
						require.ErrorIs(t, err, tc.is)
					}
					require.Equal(t, "1", p.Header.Id)
					require.Equal(t, int64(len(tc.frame))-8, p.Length)
					require.Empty(t, body)
					next()
				}
			})
		}
	}
}

// Errors after which nobody can tell where the next packet begins.
func TestErrorsThatEndTheStream(t *testing.T) {
	for _, tc := range []struct {
		name, frame string
		is          []error
	}{
		{"header length 0", "\x00\x00\x00\x00p\x00\x00\x00\x00", []error{packet.ErrHeader}},
		{"header past its limit", "\x00\x00\x00\x65p", []error{packet.ErrHeader, packet.ErrTooLarge}},
		{"header of 4 GiB", "\xff\xff\xff\xff", []error{packet.ErrHeader, packet.ErrTooLarge}},
		{"unknown header codec", "\x00\x00\x00\x01\xee\x00\x00\x00\x00", []error{packet.ErrHeader,
			codec.ErrUnknown}},
		{"broken header", "\x00\x00\x00\x02p\xff\x00\x00\x00\x00", []error{packet.ErrHeader}},
		{"another protocol", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", []error{packet.ErrHeader}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ca, cb := overPipe(pipe.Options{})(t)
			b := socket.New(cb, socket.Options{Limits: packet.Limits{Header: 100}})
			send(t, ca, frame(t, message("1", "good")))
			send(t, ca, []byte(tc.frame))
			requireMessage(t, b, "1", "good")
			for range 2 {
				_, _, err := receive(b)
				for _, is := range tc.is {
					require.ErrorIs(t, err, is)
				}
				require.True(t, socket.Fatal(err))
				require.Contains(t, err.Error(), "packet: bad header")
			}
		})
	}
}

func TestReadHeaderThenBody(t *testing.T) {
	a, b := sockets(t, pipe.Options{Chunk: 3}, socket.Options{Limits: packet.Limits{Body: 1000}})
	ca := a.Conn()
	var p packet.Packet
	next := func(id string) {
		t.Helper()
		require.NoError(t, b.ReadHeader(&p))
		require.Equal(t, id, p.Header.Id)
		require.Nil(t, p.Body)
		require.Equal(t, p.Length, p.HeaderLength+p.BodyLength)
	}
	for range 2 {
		require.NoError(t, a.WritePacket(message("1", "text")))
		next("1")
		mem := make([]byte, 0, 5)
		raw, err := b.ReadBody(mem)
		require.NoError(t, err)
		require.Equal(t, "stext", string(raw.B))
		require.Equal(t, "stext", string(mem[:5]), "it fits there")
		raw, err = b.ReadBody(nil)
		require.NoError(t, err)
		require.Empty(t, raw.B, "it is read")

		// Not asked for, and passed over.
		require.NoError(t, a.WritePacket(message("2", strings.Repeat("unread", 100))))
		next("2")

		// Skipped, and given to nobody then.
		require.NoError(t, a.WritePacket(message("3", "skipped")))
		next("3")
		b.SkipBody()
		raw, err = b.ReadBody(nil)
		require.ErrorContains(t, err, "skipped")
		require.False(t, socket.Fatal(err))
		require.Zero(t, raw)

		// Too large, and skipped or not it is not read.
		send(t, ca, frame(t, message("4", strings.Repeat("x", 2000))))
		next("4")
		require.Equal(t, int64(2001), p.BodyLength)
		for range 2 {
			_, err = b.ReadBody(nil)
			require.ErrorIs(t, err, packet.ErrTooLarge)
			require.False(t, socket.Fatal(err))
		}
		b.SkipBody()
		_, err = b.ReadBody(nil)
		require.Error(t, err)

		require.NoError(t, a.WritePacket(&packet.Packet{Header: &packet.Header{Id: "5"}}))
		next("5")
		raw, err = b.ReadBody(nil)
		require.NoError(t, err)
		require.Empty(t, raw.B)
	}
}

func TestReadPacketThatWantsNoBody(t *testing.T) {
	a, b := sockets(t, pipe.Options{}, socket.Options{})
	for _, newBody := range []func(*packet.Header) interface{}{nil,
		func(*packet.Header) interface{} { return nil }} {
		require.NoError(t, a.WritePacket(message("1", "unwanted")))
		require.NoError(t, a.WritePacket(message("2", "next")))
		var p packet.Packet
		require.NoError(t, b.ReadPacket(&p, newBody))
		require.Equal(t, "1", p.Header.Id)
		require.Nil(t, p.Body)
		requireMessage(t, b, "2", "next")
	}
}

// Reads fill the buffer to its end, wherever in a packet that is.
func TestPacketsAcrossTheEndOfTheBuffer(t *testing.T) {
	ca, cb := overPipe(pipe.Options{Buffer: 4 << 20})(t)
	b := socket.New(cb, socket.Options{})
	const packets = 5000
	body := func(i int) string { return strings.Repeat("x", i%97*i%611) }
	var stream []byte
	for i := range packets {
		stream = append(stream, frame(t, message(strconv.Itoa(i), body(i)))...)
	}
	send(t, ca, stream)
	require.NoError(t, ca.Close())
	for i := range packets {
		requireMessage(t, b, strconv.Itoa(i), body(i))
	}
	requireOver(t, b)
}

// odd is a connection that reads in another way.
type odd struct {
	net.Conn
	r io.Reader
}

func (o odd) Read(p []byte) (int, error) { return o.r.Read(p) }

// A connection may return its last bytes and the end in one call.
func TestReadsThatEndWithTheirLastBytes(t *testing.T) {
	stream := append(frame(t, message("1", strings.Repeat("x", 5000))),
		frame(t, &packet.Packet{Header: new(packet.Header)})...)
	for _, r := range []io.Reader{
		iotest.DataErrReader(strings.NewReader(string(stream))),
		iotest.DataErrReader(iotest.OneByteReader(strings.NewReader(string(stream)))),
		iotest.DataErrReader(iotest.HalfReader(strings.NewReader(string(stream)))),
	} {
		_, cb := overPipe(pipe.Options{})(t)
		b := socket.New(odd{cb, r}, socket.Options{Limits: packet.Limits{Body: 6000}})
		requireMessage(t, b, "1", strings.Repeat("x", 5000))
		require.NoError(t, b.ReadPacket(new(packet.Packet), nil))
		requireOver(t, b)
	}
	// The end of a body that is skipped comes with its last bytes, too.
	last := frame(t, message("1", strings.Repeat("x", 50000)))
	_, cb := overPipe(pipe.Options{})(t)
	b := socket.New(odd{cb, iotest.DataErrReader(strings.NewReader(string(last)))}, socket.Options{})
	require.NoError(t, b.ReadHeader(new(packet.Packet)))
	require.True(t, b.ReadHeader(new(packet.Packet)) == io.EOF)
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

func TestReadsWithoutProgress(t *testing.T) {
	_, cb := overPipe(pipe.Options{})(t)
	b := socket.New(odd{cb, stuck{}}, socket.Options{})
	_, _, err := receive(b)
	require.ErrorIs(t, err, io.ErrNoProgress)
	require.True(t, socket.Fatal(err))
}

func TestSkippingABodyThatIsCutOff(t *testing.T) {
	whole := frame(t, message("1", strings.Repeat("x", 100000)))
	ca, cb := overPipe(pipe.Options{})(t)
	b := socket.New(cb, socket.Options{})
	send(t, ca, whole[:20000])
	require.NoError(t, ca.Close())
	require.NoError(t, b.ReadHeader(new(packet.Packet)))
	err := b.ReadHeader(new(packet.Packet))
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.True(t, socket.Fatal(err))
}

// allocated returns how many bytes f allocates, or rather its goroutine and the
// few others that there are.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// What the other side announces takes no memory before it has come.
func TestMemoryIsNotTakenAhead(t *testing.T) {
	limit := 128 << 10
	if race.Enabled {
		limit *= 3 // the detector's build makes a copy where another would not
	}
	for _, tc := range []struct {
		name, sent string
		limits     packet.Limits
	}{
		{"a body of 16 MiB", "\x00\x00\x00\x01p\x01\x00\x00\x00s", packet.Limits{}},
		{"a body of 4 GiB", "\x00\x00\x00\x01p\xff\xff\xff\xffs", packet.Limits{Body: -1}},
		{"a body of 4 GiB, which is too much", "\x00\x00\x00\x01p\xff\xff\xff\xffs", packet.Limits{}},
		{"a header of 64 KiB", "\x00\x01\x00\x00p\x0a", packet.Limits{}},
		{"a header of 4 GiB", "\xff\xff\xff\xffp\x0a", packet.Limits{Header: -1}},
	} {
		for _, more := range []int{0, 600, 5000, 100000, 1000000} {
			t.Run(fmt.Sprintf("%s and %d bytes of it", tc.name, more), func(t *testing.T) {
				ca, cb := overPipe(pipe.Options{Buffer: 2000000})(t)
				b := socket.New(cb, socket.Options{Limits: tc.limits})
				send(t, ca, []byte(tc.sent+strings.Repeat("\x00", more)))
				require.NoError(t, ca.Close())
				var err error
				took := allocated(func() {
					for {
						if _, _, err = receive(b); socket.Fatal(err) {
							return
						}
					}
				})
				require.Error(t, err)
				require.Less(t, took, uint64(limit+limit/(32<<10)*more))
			})
		}
	}
}

// Nor does a body that is much too large, while it is passed over.
func TestSkippingTakesNoMemory(t *testing.T) {
	const size = 8 << 20
	ca, cb := overPipe(pipe.Options{Buffer: size + 1000})(t)
	b := socket.New(cb, socket.Options{Limits: packet.Limits{Body: 1000}})
	send(t, ca, frame(t, message("1", strings.Repeat("x", size))))
	send(t, ca, frame(t, message("2", "next")))
	took := allocated(func() {
		_, _, err := receive(b)
		require.ErrorIs(t, err, packet.ErrTooLarge)
		requireMessage(t, b, "2", "next")
	})
	require.Less(t, took, uint64(200<<10))
}

func requireTimeout(t *testing.T, err error) {
	t.Helper()
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	var ne net.Error
	require.ErrorAs(t, err, &ne)
	require.True(t, ne.Timeout())
	require.True(t, socket.Fatal(err))
}

func TestReadTimeout(t *testing.T) {
	const wait = 3 * time.Second
	whole := frame(t, message("1", strings.Repeat("x", 100)))
	for _, sent := range []int{0, 3, 4, 10, len(whole) - 101, len(whole) - 1} {
		synctest.Test(t, func(t *testing.T) {
			ca, cb := overPipe(pipe.Options{})(t)
			b := socket.New(cb, socket.Options{ReadTimeout: wait})
			send(t, ca, whole[:sent])
			start := time.Now()
			_, _, err := receive(b)
			requireTimeout(t, err)
			require.Equal(t, wait, time.Since(start), "after %d bytes", sent)
		})
	}
}

// The time counts from the last byte, not from the packet's first.
func TestReadTimeoutIsSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const wait = time.Second
		whole := frame(t, message("1", "slow"))
		ca, cb := overPipe(pipe.Options{})(t)
		b := socket.New(cb, socket.Options{ReadTimeout: wait})
		go func() {
			for i := range whole {
				time.Sleep(wait - 1) // of the bubble's clock
				_, _ = ca.Write(whole[i : i+1])
			}
		}()
		start := time.Now()
		requireMessage(t, b, "1", "slow")
		require.Equal(t, time.Duration(len(whole))*(wait-1), time.Since(start))
		_, _, err := receive(b)
		requireTimeout(t, err)
	})
}

func TestSetReadTimeoutDuringARead(t *testing.T) {
	for _, tc := range []struct {
		name        string
		first, then time.Duration
		ends        time.Duration // after the second; 0 never
	}{
		{"from none", 0, time.Second, time.Second},
		{"sooner", time.Hour, time.Second, time.Second},
		{"later", time.Second, time.Hour, time.Hour},
		{"to none", time.Second, 0, 0},
		{"to a negative one", time.Second, -5, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := sockets(t, pipe.Options{}, socket.Options{ReadTimeout: tc.first})
				done := make(chan error, 1)
				go func() {
					_, _, err := receive(b)
					done <- err
				}()
				synctest.Wait()
				time.Sleep(tc.first / 2) // of the bubble's clock
				start := time.Now()
				b.SetReadTimeout(tc.then)
				if tc.ends > 0 {
					requireTimeout(t, <-done)
					require.Equal(t, tc.ends, time.Since(start))
					return
				}
				time.Sleep(1000 * time.Hour)
				synctest.Wait()
				require.Empty(t, done)
				require.NoError(t, a.WritePacket(message("1", "late")))
				require.NoError(t, <-done)
			})
		})
	}
}

// slowDeadline is a connection in which another goroutine gets in between, while
// a read's deadline is being set.
type slowDeadline struct {
	net.Conn
	meanwhile func()
}

func (c *slowDeadline) SetReadDeadline(t time.Time) error {
	if f := c.meanwhile; f != nil {
		c.meanwhile = nil
		go f()
		for range 1000 {
			runtime.Gosched()
		}
	}
	return c.Conn.SetReadDeadline(t)
}

// A new timeout must not be undone by a read that has just looked at the old one.
func TestSetReadTimeoutAsAReadBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, cb := overPipe(pipe.Options{})(t)
		conn := &slowDeadline{Conn: cb}
		b := socket.New(conn, socket.Options{ReadTimeout: time.Hour})
		conn.meanwhile = func() { b.SetReadTimeout(time.Second) }
		start := time.Now()
		_, _, err := receive(b)
		requireTimeout(t, err)
		require.Equal(t, time.Second, time.Since(start))
	})
}

// Whoever had the connection before may have left deadlines.
func TestNewClearsDeadlines(t *testing.T) {
	ca, cb := overPipe(pipe.Options{})(t)
	past := time.Unix(1, 0)
	require.NoError(t, ca.SetDeadline(past))
	require.NoError(t, cb.SetDeadline(past))
	a, b := socket.New(ca, socket.Options{}), socket.New(cb, socket.Options{})
	require.NoError(t, a.WritePacket(message("1", "x")))
	requireMessage(t, b, "1", "x")
}
