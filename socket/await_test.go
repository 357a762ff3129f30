package socket_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// quiet is the lull that most of these tests wait for.
const quiet = 5 * time.Millisecond

// kernels are the transports on which Await waits.
var kernels = []conns{{"tcp", overTCP}, {"unix", overUnix}}

func overUnix(t testing.TB) (net.Conn, net.Conn) {
	dir, err := os.MkdirTemp("", "s") // a test's own may be too long for an address
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	ln, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Skip(err)
	}
	defer ln.Close()
	a, err := net.Dial("unix", ln.Addr().String())
	require.NoError(t, err)
	b, err := ln.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func onKernels(t *testing.T, test func(t *testing.T, c net.Conn, s *socket.Socket)) {
	for _, tr := range kernels {
		t.Run(tr.name, func(t *testing.T) {
			ca, cb := tr.open(t)
			s := socket.New(cb, socket.Options{})
			defer s.Close()
			test(t, ca, s)
		})
	}
}

// awaiting starts Await on another goroutine.
func awaiting(s *socket.Socket, quiet time.Duration) chan error {
	done := make(chan error, 1)
	go func() { done <- s.Await(quiet) }()
	return done
}

// requireQuiet requires that Await notices a lull.
func requireQuiet(t *testing.T, s *socket.Socket) {
	t.Helper()
	start := time.Now()
	err := s.Await(quiet)
	require.True(t, err == socket.ErrQuiet, "%v", err)
	require.GreaterOrEqual(t, time.Since(start), quiet)
}

func TestAwaitAPacket(t *testing.T) {
	for _, wait := range []time.Duration{0, time.Minute} {
		onKernels(t, func(t *testing.T, c net.Conn, s *socket.Socket) {
			for i, body := range []string{"", "text", strings.Repeat("x", 100<<10), "text"} {
				p := message(strconv.Itoa(i), body)
				done := awaiting(s, wait)
				go c.Write(frame(t, p))
				require.NoError(t, <-done)
				require.NoError(t, s.Await(wait), "it is there already")
				requireMessage(t, s, strconv.Itoa(i), body)
			}
		})
	}
}

// Packets that are there before Await is called, several in one read.
func TestAwaitWhatIsThere(t *testing.T) {
	for _, wait := range []time.Duration{0, time.Minute} {
		onKernels(t, func(t *testing.T, c net.Conn, s *socket.Socket) {
			b := append(frame(t, message("1", "first")), frame(t, message("2", "second"))...)
			send(t, c, b)
			require.NoError(t, s.Await(wait))
			requireMessage(t, s, "1", "first")
			require.NoError(t, s.Await(wait))
			requireMessage(t, s, "2", "second")
		})
	}
}

func TestAwaitAPacketByteByByte(t *testing.T) {
	for _, wait := range []time.Duration{0, time.Minute, time.Millisecond} {
		onKernels(t, func(t *testing.T, c net.Conn, s *socket.Socket) {
			const packets = 10
			sent := make(chan error, 1)
			go func() {
				for i := range packets {
					for _, b := range frame(t, message(strconv.Itoa(i), "text")) {
						if _, err := c.Write([]byte{b}); err != nil {
							sent <- err
							return
						}
					}
				}
				sent <- nil
			}()
			for i := range packets {
				err := s.Await(wait)
				for wait == time.Millisecond && err == socket.ErrQuiet {
					err = s.Await(wait)
				}
				require.NoError(t, err)
				requireMessage(t, s, strconv.Itoa(i), "text")
			}
			require.NoError(t, <-sent)
		})
	}
}

// Nothing comes: Await says so as often as it is asked, and what comes then is
// read whole, with Await or without.
func TestAwaitALull(t *testing.T) {
	require.EqualError(t, socket.ErrQuiet, "socket: quiet")
	require.False(t, socket.Fatal(socket.ErrQuiet))
	onKernels(t, func(t *testing.T, c net.Conn, s *socket.Socket) {
		for i := range 3 {
			requireQuiet(t, s)
			requireQuiet(t, s)
			send(t, c, frame(t, message(strconv.Itoa(i), "text")))
			if i > 0 {
				require.NoError(t, s.Await([]time.Duration{0, time.Minute}[i-1]))
			}
			requireMessage(t, s, strconv.Itoa(i), "text")
		}
	})
}

// No deadline is left behind: neither by Await that noticed a lull, nor by one
// that was ended by a packet.
func TestAwaitLeavesNoDeadline(t *testing.T) {
	onKernels(t, func(t *testing.T, c net.Conn, s *socket.Socket) {
		later := func(id string) { // far behind every deadline
			b := frame(t, message(id, "text"))
			time.AfterFunc(4*quiet, func() { c.Write(b) })
		}
		requireQuiet(t, s)
		later("1")
		requireMessage(t, s, "1", "text")

		requireQuiet(t, s)
		later("2")
		require.NoError(t, s.Await(0))
		requireMessage(t, s, "2", "text")

		for _, id := range []string{"3", "4", "5"} {
			send(t, c, frame(t, message("0", "text")))
			require.NoError(t, awaitLoud(s))
			requireMessage(t, s, "0", "text")
			later(id)
			if id != "3" { // for ever is for ever
				require.NoError(t, s.Await(0))
			}
			requireMessage(t, s, id, "text")
		}
	})
}

// awaitLoud is Await for something that is about to come, on a machine that may
// be slow.
func awaitLoud(s *socket.Socket) error {
	for range 1000 {
		if err := s.Await(quiet); err != socket.ErrQuiet {
			return err
		}
	}
	return socket.ErrQuiet
}

// Packets of all sizes come at all moments around the lull: where a deadline
// passes while something arrives, no byte of that is lost.
func TestPacketsAroundTheLull(t *testing.T) {
	const packets, lull = 300, 400 * time.Microsecond
	sizes := []int{1, 10, 100, 4 << 10, 20 << 10, 64 << 10, 200 << 10}
	text := strings.Repeat("0123456789abcde", 200<<10/15+1)
	for _, parts := range []int{1, 2} {
		onKernels(t, func(t *testing.T, c net.Conn, s *socket.Socket) {
			sent := make(chan error, 1)
			go func() {
				r := rand.New(rand.NewPCG(1, uint64(parts)))
				for i := range packets {
					rest := frame(t, message(strconv.Itoa(i), text[:1+r.IntN(sizes[i%len(sizes)])]))
					for part := range parts {
						// the moment, not a synchronisation
						time.Sleep(time.Duration(r.Int64N(int64(3 * lull))))
						n := len(rest)
						if part < parts-1 {
							n = r.IntN(min(n, 20))
						}
						if _, err := c.Write(rest[:n]); err != nil {
							sent <- err
							return
						}
						rest = rest[n:]
					}
				}
				sent <- nil
			}()
			lulls := 0
			for i := range packets {
				err := s.Await(lull)
				for n := 0; err == socket.ErrQuiet; n++ {
					lulls++
					wait := lull
					if i%3 == 0 && n == 0 {
						wait = 0 // as a reader does that waits with little stack then
					}
					err = s.Await(wait)
				}
				require.NoError(t, err)
				id, body, err := receive(s)
				require.NoError(t, err)
				require.Equal(t, strconv.Itoa(i), id)
				require.True(t, strings.HasPrefix(text, body), "packet %d, body of %d bytes", i, len(body))
			}
			require.NoError(t, <-sent)
			require.NotZero(t, lulls)
		})
	}
}

func TestAwaitTheEnd(t *testing.T) {
	for _, wait := range []time.Duration{0, time.Minute} {
		onKernels(t, func(t *testing.T, c net.Conn, s *socket.Socket) {
			done := awaiting(s, wait)
			require.NoError(t, c.Close())
			err := <-done
			require.True(t, err == io.EOF, "%v", err)
			require.True(t, s.Await(wait) == io.EOF, "it stays so")
			requireOver(t, s)
		})
	}
}

// The stream ends in the middle of a packet, which Await takes for something.
func TestAwaitAPacketThatIsCutOff(t *testing.T) {
	for _, wait := range []time.Duration{0, time.Minute} {
		onKernels(t, func(t *testing.T, c net.Conn, s *socket.Socket) {
			send(t, c, frame(t, message("1", "text"))[:1])
			require.NoError(t, c.Close())
			require.NoError(t, s.Await(wait))
			_, _, err := receive(s)
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		})
	}
}

func TestCloseEndsAwait(t *testing.T) {
	for _, wait := range []time.Duration{0, time.Minute} {
		onKernels(t, func(t *testing.T, c net.Conn, s *socket.Socket) {
			done := awaiting(s, wait)
			require.NoError(t, s.Close())
			err := <-done
			require.ErrorIs(t, err, socket.ErrClosed)
			require.True(t, socket.Fatal(err))
			require.ErrorIs(t, s.Await(wait), socket.ErrClosed)
		})
	}
}

// On a connection that is not the kernel's Await does not wait, and takes nothing.
func TestAwaitOnAPipe(t *testing.T) {
	ca, cb := overPipe(pipe.Options{})(t)
	s := socket.New(cb, socket.Options{})
	for _, wait := range []time.Duration{0, time.Hour} {
		require.NoError(t, s.Await(wait))
		send(t, ca, frame(t, message("1", "text")))
		require.NoError(t, s.Await(wait))
		requireMessage(t, s, "1", "text")
	}
	require.NoError(t, ca.Close())
	require.NoError(t, s.Await(0))
	requireOver(t, s)
}

// With a read timeout Await leaves the waiting to the read, which has the timeout.
func TestAwaitWithAReadTimeout(t *testing.T) {
	for _, tr := range kernels {
		for _, wait := range []time.Duration{0, time.Millisecond, time.Hour} {
			t.Run(fmt.Sprint(tr.name, " ", wait), func(t *testing.T) {
				const timeout = 30 * time.Millisecond
				ca, cb := tr.open(t)
				s := socket.New(cb, socket.Options{ReadTimeout: timeout})
				require.NoError(t, s.Await(wait))
				start := time.Now()
				_, _, err := receive(s)
				require.ErrorIs(t, err, os.ErrDeadlineExceeded)
				require.True(t, socket.Fatal(err))
				require.GreaterOrEqual(t, time.Since(start), timeout)
				require.Equal(t, timeout, s.ReadTimeout())

				s.SetReadTimeout(time.Hour)
				require.NoError(t, s.Await(wait))
				require.Equal(t, time.Hour, s.ReadTimeout())
				send(t, ca, frame(t, message("1", "text")))
				requireMessage(t, s, "1", "text")

				s.SetReadTimeout(0) // the timeout's deadline is not Await's
				requireQuiet(t, s)
				send(t, ca, frame(t, message("2", "text")))
				require.NoError(t, s.Await(0))
				requireMessage(t, s, "2", "text")
			})
		}
	}
}

// A packet that has begun is waited for as long as it takes: at none of its
// bytes does Await's deadline cut it off.
func TestAwaitCutsNoPacketOff(t *testing.T) {
	onKernels(t, func(t *testing.T, c net.Conn, s *socket.Socket) {
		b := frame(t, message("1", "text"))
		bodyAt := len(b) - len("text") - 1
		for _, cut := range []int{1, 4, 6, bodyAt - 1, bodyAt, bodyAt + 1, len(b) - 1} {
			send(t, c, b[:cut])
			require.NoError(t, awaitLoud(s))
			rest := time.AfterFunc(4*quiet, func() { c.Write(b[cut:]) })
			requireMessage(t, s, "1", "text")
			require.False(t, rest.Stop())
		}
	})
}

// The same for a body that is read, or skipped, after its header.
func TestAwaitCutsNoBodyOff(t *testing.T) {
	for _, size := range []int{100, 100 << 10} {
		for _, skip := range []bool{false, true} {
			onKernels(t, func(t *testing.T, c net.Conn, s *socket.Socket) {
				want, body := sized(t, "1", size)
				b := frame(t, want)
				bodyAt := len(b) - len(body) - 1
				send(t, c, b[:bodyAt])
				require.NoError(t, awaitLoud(s))
				var p packet.Packet
				require.NoError(t, s.ReadHeader(&p))
				require.Equal(t, "1", p.Header.Id)
				require.False(t, s.BodyBuffered())
				require.NoError(t, s.Await(quiet), "this is no lull between packets")
				half := bodyAt + size/3
				time.AfterFunc(4*quiet, func() {
					c.Write(b[bodyAt:half])
					time.AfterFunc(4*quiet, func() {
						c.Write(append(b[half:], frame(t, message("2", "next"))...))
					})
				})
				if skip {
					s.SkipBody()
				} else {
					got, err := s.ReadBody(nil)
					raw := got.B
					require.NoError(t, err)
					require.True(t, "s"+body == string(raw), "%d bytes", len(raw))
					require.NoError(t, awaitLoud(s))
				}
				requireMessage(t, s, "2", "next")
			})
		}
	}
}

// Buffered and BodyBuffered say what can be read without waiting, wherever the
// stream of two packets is cut.
func TestBuffered(t *testing.T) {
	first, second := frame(t, message("1", "first")), frame(t, message("2", "second"))
	both := append(append([]byte(nil), first...), second...)
	bodyAt := len(first) - len("first") - 1
	require.Positive(t, bodyAt)

	// Once the first header is read. One byte less and that would wait.
	for cut := bodyAt; cut <= len(both); cut++ {
		for _, tr := range append([]conns{{"pipe", overPipe(pipe.Options{})}}, kernels...) {
			ca, cb := tr.open(t)
			s := socket.New(cb, socket.Options{})
			require.False(t, s.Buffered())
			send(t, ca, both[:cut])
			var p packet.Packet
			require.NoError(t, s.ReadHeader(&p))
			require.Equal(t, cut >= len(first), s.BodyBuffered(), "%s, %d of %d bytes", tr.name, cut,
				len(first))
			require.Equal(t, cut == len(both), s.Buffered(), "%s, %d of %d bytes", tr.name, cut, len(both))
			if cut >= len(first) {
				body, err := s.ReadBody(nil)
				raw := body.B
				require.NoError(t, err)
				require.Equal(t, "sfirst", string(raw))
				require.True(t, s.BodyBuffered(), "nothing of it is left")
				require.Equal(t, cut == len(both), s.Buffered())
			}
			send(t, ca, both[cut:])
			requireMessage(t, s, "2", "second")
			require.True(t, s.BodyBuffered())
			require.False(t, s.Buffered())
			ca.Close()
			cb.Close()
		}
	}
	// Before that, as far as Await has read.
	for cut := 1; cut <= len(both); cut++ {
		for _, tr := range kernels {
			ca, cb := tr.open(t)
			s := socket.New(cb, socket.Options{})
			send(t, ca, both[:cut])
			require.NoError(t, s.Await(time.Minute))
			require.Equal(t, cut >= len(first), s.Buffered(), "%s, %d of %d bytes", tr.name, cut, len(first))
			send(t, ca, both[cut:])
			requireMessage(t, s, "1", "first")
			requireMessage(t, s, "2", "second")
			ca.Close()
			cb.Close()
		}
	}
}

// A view of a header is the header, and stays it until the next read.
func TestReadHeaderView(t *testing.T) {
	for _, tr := range append([]conns{{"one byte a read", overPipe(pipe.Options{Chunk: 1})}}, kernels...) {
		for _, name := range []string{"protobuf", "json"} {
			for _, h := range []packet.Header{
				{},
				{Id: "1", Type: packet.TypePush, Uri: "/a"},
				{Id: strings.Repeat("i", 200), Type: packet.TypeReply, Uri: "/" + strings.Repeat("ü", 3000),
					StatusCode: -404, Status: "not found\n\x00"},
			} {
				t.Run(fmt.Sprintf("%s, %s, %d", tr.name, name, len(h.Id)), func(t *testing.T) {
					ca, cb := tr.open(t)
					s := socket.New(cb, socket.Options{})
					b := frame(t, &packet.Packet{HeaderCodec: name, BodyCodec: "string", Header: &h,
						Body: "text"})
					send(t, ca, b)
					send(t, ca, b)
					send(t, ca, b)
					var p packet.Packet
					require.NoError(t, s.ReadHeader(&p))
					require.Equal(t, h, *p.Header)
					require.Equal(t, name, p.HeaderCodec)

					for range 2 {
						var v packet.HeaderView
						n, err := s.ReadHeaderView(&v)
						require.NoError(t, err)
						require.Equal(t, p.BodyLength, n)
						require.Equal(t, int64(len("text")+1), n)
						// Others who borrow memory meanwhile do not get this one.
						other, _ := sockets(t, pipe.Options{Buffer: 1 << 20}, socket.Options{})
						for range 4 {
							for _, size := range []int{100, 5000, 50000} {
								require.NoError(t, other.WritePacket(message("x", strings.Repeat("x", size))))
							}
						}
						s.BodyBuffered()
						s.Buffered()
						var got packet.Header
						v.CopyTo(&got)
						require.Equal(t, h, got)
						require.Equal(t, name, v.Codec)
						require.Equal(t, p.HeaderLength, v.Length)
						require.Equal(t, h.Id+h.Uri+h.Status, string(v.Id)+string(v.Uri)+string(v.Status))
						body, err := s.ReadBody(nil)
						raw := body.B
						require.NoError(t, err)
						require.Equal(t, "stext", string(raw))
					}
				})
			}
		}
	}
}

// That the timeout is taken away, where there was none, is no reason for Await
// not to notice a lull any more.
func TestAwaitAfterSetReadTimeoutOfZero(t *testing.T) {
	onKernels(t, func(t *testing.T, c net.Conn, s *socket.Socket) {
		send(t, c, frame(t, message("1", "text")))
		require.NoError(t, s.Await(time.Minute))
		requireMessage(t, s, "1", "text")
		s.SetReadTimeout(0)
		done := awaiting(s, quiet)
		timer := time.NewTimer(2 * time.Second) // without end, if this fails
		defer timer.Stop()
		select {
		case err := <-done:
			require.True(t, err == socket.ErrQuiet, "%v", err)
		case <-timer.C:
			require.Fail(t, "Await(5ms) has not returned after 2 s of silence")
		}
	})
}
