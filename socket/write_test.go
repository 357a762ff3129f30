package socket_test

import (
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/errno"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// What does not encode costs the connection nothing.
func TestEncodeErrors(t *testing.T) {
	a, b := sockets(t, pipe.Options{}, socket.Options{Limits: packet.Limits{Body: 1000}})
	for _, tc := range []struct {
		name string
		p    *packet.Packet
		is   error
	}{
		{"no header", &packet.Packet{Body: "x"}, nil},
		{"header codec", &packet.Packet{HeaderCodec: "nope", Header: new(packet.Header)}, codec.ErrUnknown},
		{"body codec", &packet.Packet{BodyCodec: "nope", Header: new(packet.Header), Body: 1},
			codec.ErrUnknown},
		{"body", &packet.Packet{Header: new(packet.Header), Body: []interface{}{"half", make(chan int)}},
			nil},
		{"body half way", &packet.Packet{Header: new(packet.Header), Body: []interface{}{strings.Repeat("x",
			600), math.NaN()}}, nil},
		{"body too large", message("1", strings.Repeat("x", 1000)), packet.ErrTooLarge},
		{"gzip level", &packet.Packet{Header: &packet.Header{Gzip: 10}, Body: 1}, packet.ErrGzip},
		{"the codec's own error", &packet.Packet{BodyCodec: "bad1", Header: new(packet.Header), Body: 1},
			io.EOF},
	} {
		t.Run(tc.name, func(t *testing.T) {
			require.NoError(t, a.WritePacket(message("1", "before")))
			err := a.WritePacket(tc.p)
			require.Error(t, err)
			if tc.is != nil {
				require.ErrorIs(t, err, tc.is)
			}
			var we *socket.WriteError
			require.NotErrorAs(t, err, &we)
			require.NoError(t, a.WritePacket(message("2", "behind")))
			requireMessage(t, b, "1", "before")
			requireMessage(t, b, "2", "behind")
		})
	}
}

func TestFrames(t *testing.T) {
	a, b := sockets(t, pipe.Options{}, socket.Options{})
	p := message("1", "text")
	first, err := a.Encode(socket.Permit{}, nil, p)
	require.NoError(t, err)
	require.Equal(t, int64(len(frame(t, p))-8), p.Length)
	p.Body = "changed, which changes nothing that is encoded"
	dropped, err := a.Encode(socket.Permit{}, nil, p)
	require.NoError(t, err)
	second, err := a.Encode(socket.Permit{}, nil, message("2", "later"))
	require.NoError(t, err)
	dropped.Drop()
	require.NoError(t, sendFrame(a, first, socket.Now))
	require.NoError(t, sendFrame(a, second, socket.Now))
	requireMessage(t, b, "1", "text")
	requireMessage(t, b, "2", "later")

	_, err = a.Encode(socket.Permit{}, nil, &packet.Packet{})
	require.Error(t, err)
	socket.Frame{}.Drop() // what Encode returned with its error

	late, err := a.Encode(socket.Permit{}, nil, message("3", "too late"))
	require.NoError(t, err)
	require.NoError(t, a.Close())
	requireWriteError(t, sendFrame(a, late, socket.Now), socket.ErrClosed)
	requireOver(t, b)
}

// Many goroutines write at once: every packet arrives whole, and those of one
// writer in their order.
func TestConcurrentWriters(t *testing.T) {
	const writers, packets = 16, 100
	body := func(id string, seq int) string {
		size := seq * seq % 300
		if seq%20 == 7 {
			size = 5000 * seq % 70000 // past what is gathered
		}
		return strings.Repeat(id+" ", size/len(id)+1)
	}
	for _, tr := range transports {
		if tr.name == "one byte a read" {
			continue // for its slowness
		}
		t.Run(tr.name, func(t *testing.T) {
			ca, cb := tr.open(t)
			a, b := socket.New(ca, socket.Options{}), socket.New(cb, socket.Options{})
			var wg sync.WaitGroup
			defer wg.Wait()
			for w := range writers {
				wg.Go(func() {
					for seq := range packets {
						id := fmt.Sprintf("%d/%d", w, seq)
						if !assert.NoError(t, a.WritePacket(message(id, body(id, seq)))) {
							return
						}
					}
				})
			}
			var next [writers]int
			for range writers * packets {
				id, got, err := receive(b)
				require.NoError(t, err)
				writer, seq, _ := strings.Cut(id, "/")
				w, err := strconv.Atoi(writer)
				require.NoError(t, err)
				require.Equal(t, strconv.Itoa(next[w]), seq, "writer %d", w)
				require.True(t, body(id, next[w]) == got, "packet %s", id)
				next[w]++
			}
		})
	}
}

// Packets that gather behind a write under way leave in the order of their
// calls, small ones together and large ones by themselves.
func TestQueuedPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, cb := newGate(t)
		a, b := socket.New(g, socket.Options{}), socket.New(cb, socket.Options{})
		first := make(chan error, 1)
		go func() { first <- a.WritePacket(message("0", "first")) }()
		require.Equal(t, string(frame(t, message("0", "first"))), string(<-g.entered))

		small := strings.Repeat("x", 100)
		large := strings.Repeat("X", 20000)
		var want [][2]string
		add := func(body string) {
			id := strconv.Itoa(1 + len(want))
			want = append(want, [2]string{id, body})
			require.NoError(t, a.WritePacket(message(id, body)), "it is next in line")
		}
		for range 100 {
			add(small)
		}
		add(large)
		add(small)
		add(large)
		add(large)
		for range 1000 {
			add(small)
		}

		g.result <- nil
		var writes int
		for read := 0; read < len(want); writes++ {
			chunk := <-g.entered
			g.result <- nil
			require.LessOrEqual(t, len(chunk), 64<<10)
			for len(chunk) > 0 { // whole packets in every write
				var p packet.Packet
				n, err := packet.Parse(chunk, &p, nil, packet.Limits{})
				require.NoError(t, err)
				chunk = chunk[n:]
				require.Equal(t, want[read][0], p.Header.Id)
				read++
			}
		}
		require.NoError(t, <-first)
		require.Less(t, writes, 12, "for 1104 packets of 170 KB together")
		requireMessage(t, b, "0", "first")
		for _, w := range want {
			requireMessage(t, b, w[0], w[1])
		}
	})
}

// While the other side does not read, writers come to wait, and memory does not
// grow for ever.
func TestBackpressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size, packets = 1 << 20, 20
		g, cb := newGate(t)
		a, b := socket.New(g, socket.Options{}), socket.New(cb, socket.Options{})
		first := make(chan error, 1)
		go func() { first <- a.WritePacket(message("first", "x")) }()
		<-g.entered

		var accepted atomic.Int32
		done := make(chan error, 1)
		go func() {
			for i := range packets {
				if err := a.WritePacket(message(strconv.Itoa(i), strings.Repeat("x", size))); err != nil {
					done <- err
					return
				}
				accepted.Add(1)
			}
			done <- nil
		}()
		synctest.Wait()
		require.Empty(t, done)
		require.Equal(t, int32(8), accepted.Load(), "8 MiB wait")

		stop := make(chan struct{})
		go func() {
			g.result <- nil
			for {
				select {
				case <-g.entered:
					g.result <- nil
				case <-stop:
					return
				}
			}
		}()
		require.NoError(t, <-done)
		requireMessage(t, b, "first", "x")
		for i := range packets {
			requireMessage(t, b, strconv.Itoa(i), strings.Repeat("x", size))
		}
		require.NoError(t, <-first)
		synctest.Wait()
		close(stop)
	})
}

// A writer that waits for room hears of the end.
func TestBackpressureEndsWithTheSocket(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(a *socket.Socket, g *gate)
		is   error
	}{
		{"closed here", func(a *socket.Socket, g *gate) {
			go func() { g.result <- net.ErrClosed }()
			_ = a.Close()
		}, socket.ErrClosed},
		{"a failed write", func(a *socket.Socket, g *gate) { g.result <- errGate }, errGate},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, _ := newGate(t)
				a := socket.New(g, socket.Options{})
				first, waiting := make(chan error, 1), make(chan error, 3)
				go func() { first <- a.WritePacket(message("1", strings.Repeat("x", 9<<20))) }()
				<-g.entered
				for range cap(waiting) {
					go func() { waiting <- a.WritePacket(message("2", "waits")) }()
				}
				synctest.Wait()
				require.Empty(t, waiting)
				tc.end(a, g)
				require.Error(t, <-first)
				for range cap(waiting) {
					err := <-waiting
					var we *socket.WriteError
					require.ErrorAs(t, err, &we)
				}
				requireWriteError(t, a.WritePacket(message("3", "late")), tc.is)
			})
		})
	}
}

func TestFirstFailedWriteEndsTheSocket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, cb := newGate(t)
		a, b := socket.New(g, socket.Options{}), socket.New(cb, socket.Options{})
		reading := make(chan error, 1)
		go func() {
			_, _, err := receive(a)
			reading <- err
		}()
		first := make(chan error, 1)
		go func() { first <- a.WritePacket(message("1", "fails")) }()
		<-g.entered
		require.NoError(t, a.WritePacket(message("2", "queued behind it")))
		g.result <- errGate

		err := <-first
		requireWriteError(t, err, errGate)
		require.EqualError(t, err, "socket: write: "+errGate.Error())
		requireWriteError(t, a.WritePacket(message("3", "late")), errGate)
		require.False(t, a.CloseWrite(time.Minute))
		// The connection is closed, and a read says why.
		err = <-reading
		require.ErrorIs(t, err, errGate)
		require.True(t, socket.Fatal(err))
		requireOver(t, b)
		_ = a.Close()
		requireWriteError(t, a.WritePacket(message("4", "later")), socket.ErrClosed)
	})
}

// A write that fails because the other side has gone is the last, but what that side
// has sent before can be read.
func TestWriteToAPeerThatHasGone(t *testing.T) {
	a, b := sockets(t, pipe.Options{}, socket.Options{})
	for _, id := range []string{"1", "2"} {
		require.NoError(t, b.WritePacket(message(id, "sent before")))
	}
	require.NoError(t, b.Close())
	err := a.WritePacket(message("1", "fails"))
	requireWriteError(t, err, errno.Pipe)
	require.True(t, socket.Gone(err))
	require.False(t, err.(*socket.WriteError).Unsent, "some of it may have been")
	err = a.WritePacket(message("2", "is not even tried"))
	requireWriteError(t, err, errno.Pipe)
	require.True(t, err.(*socket.WriteError).Unsent)
	requireMessage(t, a, "1", "sent before")
	requireMessage(t, a, "2", "sent before")
	requireOver(t, a)
	require.NoError(t, a.Close())
}

// The error of a write is that of the packet written. Whoever wrote an earlier
// one, which has left, and now writes on for others, is not told of theirs.
func TestErrorOfALaterWriteIsNotTheFirstWriters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, cb := newGate(t)
		a, b := socket.New(g, socket.Options{}), socket.New(cb, socket.Options{})
		first := make(chan error, 1)
		go func() { first <- a.WritePacket(message("1", "arrives")) }()
		<-g.entered
		require.NoError(t, a.WritePacket(message("2", "does not")))
		g.result <- nil
		<-g.entered
		g.result <- errGate
		require.NoError(t, <-first)
		requireWriteError(t, a.WritePacket(message("3", "late")), errGate)
		requireMessage(t, b, "1", "arrives")
		requireOver(t, b)
	})
}

func TestWriteTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const wait = 3 * time.Second
		ca, cb := overPipe(pipe.Options{Buffer: 100})(t)
		a := socket.New(ca, socket.Options{WriteTimeout: wait})
		require.NoError(t, a.WritePacket(message("1", "fits")))
		start := time.Now()
		err := a.WritePacket(message("2", strings.Repeat("does not", 100)))
		requireWriteError(t, err, os.ErrDeadlineExceeded)
		require.Equal(t, wait, time.Since(start))
		requireWriteError(t, a.WritePacket(message("3", "x")), os.ErrDeadlineExceeded)

		// The other side gets what was sent, and not the rest.
		b := socket.New(cb, socket.Options{})
		requireMessage(t, b, "1", "fits")
		_, _, err = receive(b)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	})
}

func TestSetWriteTimeoutHoldsFromTheNextWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := sockets(t, pipe.Options{Buffer: 100}, socket.Options{WriteTimeout: time.Second})
		require.NoError(t, a.WritePacket(message("1", "fits")))
		requireMessage(t, b, "1", "fits")
		time.Sleep(time.Hour) // of the bubble's clock: the last write's deadline is past

		a.SetWriteTimeout(0)
		body := strings.Repeat("waits for ever", 100)
		done := make(chan error, 1)
		go func() { done <- a.WritePacket(message("2", body)) }()
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Empty(t, done)
		requireMessage(t, b, "2", body)
		require.NoError(t, <-done)

		a.SetWriteTimeout(5 * time.Second)
		start := time.Now()
		requireWriteError(t, a.WritePacket(message("3", body)), os.ErrDeadlineExceeded)
		require.Equal(t, 5*time.Second, time.Since(start))
	})
}

// Each write has all of the time, also among many that have gathered.
func TestWriteTimeoutIsOfOneWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const wait = time.Second
		a, b := sockets(t, pipe.Options{Buffer: 100}, socket.Options{WriteTimeout: wait})
		body := strings.Repeat("x", 20000) // large enough for a write of its own
		first := make(chan error, 1)
		go func() { first <- a.WritePacket(message("0", body)) }()
		synctest.Wait()
		for i := range 4 {
			require.NoError(t, a.WritePacket(message(strconv.Itoa(1+i), body)))
		}
		for i := range 5 {
			time.Sleep(wait - 1) // of the bubble's clock
			requireMessage(t, b, strconv.Itoa(i), body)
		}
		require.NoError(t, <-first)
	})
}

// feedingConn queues another frame in every write until it is told to stop: the
// queue is never empty.
type feedingConn struct {
	net.Conn
	feed func()
}

func (c *feedingConn) Write(b []byte) (int, error) {
	c.feed()
	return len(b), nil
}

// Whoever happens to flush is not kept for as long as others go on writing.
func TestFlusherIsNotKeptByOthers(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	conn := &feedingConn{Conn: a}
	s := socket.New(conn, socket.Options{})
	var stop atomic.Bool
	conn.feed = func() {
		if !stop.Load() {
			p := &packet.Packet{Header: &packet.Header{Type: packet.TypePush}}
			if err := s.WritePacket(p); err != nil {
				t.Error(err)
			}
		}
	}
	require.NoError(t, s.WritePacket(&packet.Packet{Header: &packet.Header{Type: packet.TypePush}}))
	stop.Store(true)
	require.NoError(t, s.Close())
}
