//go:build unix

package socket

import (
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/bufpool"
	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
)

// pair returns a connection and the socket at its other end.
func pair(t *testing.T) (net.Conn, *Socket) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	b, err := ln.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, New(b, Options{})
}

func write(t *testing.T, c net.Conn, id, body string) {
	t.Helper()
	b, err := packet.Append(nil, &packet.Packet{BodyCodec: "string", Header: &packet.Header{Id: id,
		Type: packet.TypePush, Uri: "/a"}, Body: body}, packet.Limits{})
	require.NoError(t, err)
	_, err = c.Write(b)
	require.NoError(t, err)
}

func requireRead(t *testing.T, s *Socket, id, body string) {
	t.Helper()
	var p packet.Packet
	var got string
	require.NoError(t, s.ReadPacket(&p, func(*packet.Header) interface{} { return &got }))
	require.Equal(t, id, p.Header.Id)
	require.True(t, body == got, "body of %d bytes, wanted %d", len(got), len(body))
}

// waits tells of every time that s's reader is about to wait: whether it holds a
// buffer then.
func waits(s *Socket) chan bool {
	holds := make(chan bool, 100)
	s.r.lazy.try = func(fd uintptr) bool {
		ok := s.r.lazy.tryRead(fd)
		if !ok {
			holds <- s.r.buf != nil
		}
		return ok
	}
	return holds
}

// A reader that waits for a packet has no buffer, whatever it has read before.
func TestNoBufferIsHeldByAReaderThatWaits(t *testing.T) {
	for _, wait := range []struct {
		name string
		do   func(s *Socket) error
	}{
		{"read", func(s *Socket) error { return nil }},
		{"await for ever", func(s *Socket) error { return s.Await(0) }},
		{"await", func(s *Socket) error { return s.Await(time.Minute) }},
	} {
		t.Run(wait.name, func(t *testing.T) {
			c, s := pair(t)
			holds := waits(s)
			require.Nil(t, s.r.buf, "one that has never read")
			next := ""
			for i, size := range []int{10, 5000, 100000, 10, 10} {
				id, body := strconv.Itoa(i), strings.Repeat("x", size)
				held := make(chan bool, 1)
				go func() {
					held <- <-holds // only now there is something to read
					write(t, c, id, body)
				}()
				require.NoError(t, wait.do(s))
				requireRead(t, s, id, body)
				require.False(t, <-held, "after a packet of %s", next)
				next = strconv.Itoa(size)
				for len(holds) > 0 { // while a large body came; it goes to memory of its own
					<-holds
				}
			}
		})
	}
}

// Nor does one that has noticed a lull.
func TestNoBufferIsHeldAfterALull(t *testing.T) {
	c, s := pair(t)
	for range 3 {
		require.Equal(t, ErrQuiet, s.Await(time.Millisecond))
		require.Nil(t, s.r.buf)
		write(t, c, "1", strings.Repeat("x", 10000))
		requireRead(t, s, "1", strings.Repeat("x", 10000))
	}
}

// A read that fills the buffer makes the next one a full one, which it is until
// 16 reads in a row did not need that.
func TestSizeOfTheReadBuffer(t *testing.T) {
	ca, cb := pipe.New(pipe.Options{Buffer: 1 << 20})
	piped := New(cb, Options{})
	ctcp, tcp := pair(t)
	for _, tc := range []struct {
		name string
		c    net.Conn
		s    *Socket
	}{{"pipe", ca, piped}, {"tcp", ctcp, tcp}} {
		t.Run(tc.name, func(t *testing.T) {
			small := func(size int) {
				t.Helper()
				write(t, tc.c, "1", "text")
				requireRead(t, tc.s, "1", "text")
				require.Len(t, tc.s.r.buf.B, size)
			}
			small(smallBuffer)
			small(smallBuffer)
			for range 2 {
				write(t, tc.c, "2", strings.Repeat("x", smallBuffer))
				requireRead(t, tc.s, "2", strings.Repeat("x", smallBuffer))
				for range shrinkAfter - 1 {
					small(fullBuffer)
				}
				// One that needs it, although it does not fill it, makes it last.
				write(t, tc.c, "3", strings.Repeat("y", smallBuffer))
				requireRead(t, tc.s, "3", strings.Repeat("y", smallBuffer))
				for range shrinkAfter {
					small(fullBuffer)
				}
				small(smallBuffer)
				small(smallBuffer)
			}
		})
	}
	ca.Close()
	cb.Close()
}

// A packet across the end of a small buffer that is full: the buffer grows, and
// what it held is still there.
func TestReadBufferGrowsWithItsContent(t *testing.T) {
	ca, cb := pipe.New(pipe.Options{Buffer: 1 << 20})
	defer ca.Close()
	defer cb.Close()
	s := New(cb, Options{})
	const packets = 3000 // of 21 bytes and more
	for i := range packets {
		write(t, ca, strconv.Itoa(i), "text")
	}
	full := false
	for i := range packets {
		requireRead(t, s, strconv.Itoa(i), "text")
		require.LessOrEqual(t, len(s.r.buf.B), fullBuffer)
		full = full || len(s.r.buf.B) == fullBuffer
	}
	require.True(t, full)
}

// The timeout is set while Await waits: it ends that wait as a timeout, not as a
// lull, however it falls together with Await's own deadline.
func TestSetReadTimeoutDuringAwait(t *testing.T) {
	for _, quiet := range []time.Duration{0, time.Hour} {
		for _, timeout := range []time.Duration{time.Nanosecond, 5 * time.Millisecond} {
			_, s := pair(t)
			holds := waits(s)
			go func() {
				<-holds
				s.SetReadTimeout(timeout)
			}()
			err := s.Await(quiet)
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			require.NotErrorIs(t, err, ErrQuiet)
			require.True(t, Fatal(err))
			require.Equal(t, timeout, s.ReadTimeout())
		}
	}
}

// A long timeout that is set during Await holds for the read that follows, and
// Await's own deadline does not.
func TestSetLongReadTimeoutDuringAwait(t *testing.T) {
	const quiet = 2 * time.Millisecond
	for range 20 {
		c, s := pair(t)
		holds := waits(s)
		go func() {
			<-holds
			s.SetReadTimeout(time.Hour)
			time.AfterFunc(2*quiet, func() { write(t, c, "1", "text") })
		}()
		if err := s.Await(quiet); err != nil {
			require.Equal(t, ErrQuiet, err)
		}
		requireRead(t, s, "1", "text")
		require.Equal(t, time.Hour, s.ReadTimeout())
		require.NoError(t, s.Await(quiet), "it does not wait now")
	}
}

// The timeout and Await's deadline pass at the same time, many times over: either
// may be first, but the timeout is never lost.
func TestSetReadTimeoutAtTheLull(t *testing.T) {
	const quiet = 300 * time.Microsecond
	for i := range 200 {
		_, s := pair(t)
		time.AfterFunc(quiet*time.Duration(i%5)/2, func() { s.SetReadTimeout(time.Millisecond) })
		var err error
		for {
			if err = s.Await(quiet); err != ErrQuiet {
				break
			}
		}
		if err == nil { // the timeout is set: the read has it
			err = s.ReadHeader(new(packet.Packet))
		}
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.NotErrorIs(t, err, ErrQuiet)
		s.Close()
	}
}

// A lazy reader's buffers go back where they came from: two readers that read in
// turn never share one.
func TestReadersDoNotShareABuffer(t *testing.T) {
	c1, s1 := pair(t)
	c2, s2 := pair(t)
	for range 50 {
		write(t, c1, "1", strings.Repeat("1", 1000))
		write(t, c2, "2", strings.Repeat("2", 1000))
		require.NoError(t, s1.Await(0))
		require.NoError(t, s2.Await(0))
		require.NotSame(t, s1.r.buf, s2.r.buf)
		other := bufpool.GetSize(smallBuffer)
		assert.NotSame(t, s1.r.buf, other)
		assert.NotSame(t, s2.r.buf, other)
		requireRead(t, s1, "1", strings.Repeat("1", 1000))
		requireRead(t, s2, "2", strings.Repeat("2", 1000))
		bufpool.Put(other)
	}
}
