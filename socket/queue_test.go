package socket_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/internal/race"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// maxQueued is how many bytes may wait before whoever sends has to wait too.
const maxQueued = 8 << 20

// counted is a connection that counts its writes.
type counted struct {
	net.Conn
	writes atomic.Int32
}

func (c *counted) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

func (c *counted) CloseWrite() error {
	return c.Conn.(interface{ CloseWrite() error }).CloseWrite()
}

// sendFrame sends a frame for as long as it takes.
func sendFrame(s *socket.Socket, f socket.Frame, mode socket.Mode) error {
	return sendFor(context.Background(), s, f, mode)
}

func sendFor(ctx context.Context, s *socket.Socket, f socket.Frame, mode socket.Mode) error {
	_, err := s.Send(ctx, f, mode)
	return err
}

func encode(t testing.TB, s *socket.Socket, p *packet.Packet) socket.Frame {
	t.Helper()
	f, err := s.Encode(socket.Permit{}, nil, p)
	require.NoError(t, err)
	return f
}

// sized returns a message whose frame has so many bytes.
func sized(t testing.TB, id string, size int) (p *packet.Packet, body string) {
	t.Helper()
	n := size - len(frame(t, message(id, "")))
	require.GreaterOrEqual(t, n, 0)
	body = strings.Repeat("0123456789abcde", n/15+1)[:n]
	return message(id, body), body
}

// What is queued stays until somebody writes, and then leaves in order.
func TestQueuedFramesWait(t *testing.T) {
	for _, tc := range []struct {
		name string
		body string
		then func(t *testing.T, s *socket.Socket)
		more int // packets that then sends
		over bool
	}{
		{"flush", "text", func(t *testing.T, s *socket.Socket) { require.NoError(t, s.Flush()) }, 0, false},
		{"flush of large frames", strings.Repeat("x", 20<<10), func(t *testing.T,
			s *socket.Socket) {
			require.NoError(t, s.Flush())
		}, 0, false},
		{"another packet", "text", func(t *testing.T, s *socket.Socket) {
			require.NoError(t, sendFrame(s, encode(t, s, message("10", "text")), socket.Now))
		}, 1, false},
		{"another packet that is posted", "text", func(t *testing.T, s *socket.Socket) {
			require.NoError(t, sendFrame(s, encode(t, s, message("10", "text")), socket.Later))
		}, 1, false},
		{"close", "text", func(t *testing.T, s *socket.Socket) { require.NoError(t, s.Close()) }, 0, true},
		{"close of one direction", "text", func(t *testing.T, s *socket.Socket) {
			require.True(t,
				s.CloseWrite(time.Minute))
		}, 0, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca, cb := overPipe(pipe.Options{Buffer: 1 << 20})(t)
				c := &counted{Conn: ca}
				a, b := socket.New(c, socket.Options{}), socket.New(cb, socket.Options{})
				sum := 0
				for i := range 10 {
					p := message(strconv.Itoa(i), tc.body)
					sum += len(frame(t, p))
					waiting, err := a.Send(context.Background(), encode(t, a, p), socket.Queue)
					require.NoError(t, err)
					require.Equal(t, sum, waiting)
				}
				synctest.Wait()
				require.Zero(t, c.writes.Load())
				tc.then(t, a)
				synctest.Wait()
				require.NotZero(t, c.writes.Load())
				for i := range 10 + tc.more {
					requireMessage(t, b, strconv.Itoa(i), tc.body)
				}
				if tc.over {
					requireOver(t, b)
				} else {
					waiting, err := a.Send(context.Background(), encode(t, a, message("", "")), socket.Queue)
					require.NoError(t, err)
					require.Equal(t, len(frame(t, message("", ""))), waiting, "what has left waits no longer")
				}
			})
		})
	}
}

// Small frames that were queued leave in one write, together with the one that
// makes them leave.
func TestQueuedFramesLeaveInOneWrite(t *testing.T) {
	ca, cb := overPipe(pipe.Options{})(t)
	c := &counted{Conn: ca}
	a, b := socket.New(c, socket.Options{}), socket.New(cb, socket.Options{})
	for i := range 100 {
		_, err := a.Send(context.Background(), encode(t, a, message(strconv.Itoa(i), "text")), socket.Queue)
		require.NoError(t, err)
	}
	require.NoError(t, sendFrame(a, encode(t, a, message("100", "text")), socket.Now))
	require.Equal(t, int32(1), c.writes.Load())
	for i := range 101 {
		requireMessage(t, b, strconv.Itoa(i), "text")
	}
}

func TestFlushOfNothing(t *testing.T) {
	ca, _ := overPipe(pipe.Options{})(t)
	c := &counted{Conn: ca}
	a := socket.New(c, socket.Options{})
	require.NoError(t, a.Flush())
	require.NoError(t, a.WritePacket(message("1", "text")))
	require.NoError(t, a.Flush())
	_, err := a.Send(context.Background(), encode(t, a, message("2", "text")), socket.Queue)
	require.NoError(t, err)
	require.NoError(t, a.Flush())
	require.NoError(t, a.Flush())
	require.Equal(t, int32(2), c.writes.Load())
	require.NoError(t, a.Close())
	require.NoError(t, a.Flush())
}

// Frames that come after the end are refused, whichever way they are sent.
func TestFramesAfterClose(t *testing.T) {
	for _, end := range []struct {
		name string
		end  func(t *testing.T, s *socket.Socket)
	}{
		{"close", func(t *testing.T, s *socket.Socket) { require.NoError(t, s.Close()) }},
		{"close of one direction", func(t *testing.T, s *socket.Socket) {
			require.True(t, s.CloseWrite(time.Minute))
		}},
	} {
		t.Run(end.name, func(t *testing.T) {
			a, b := sockets(t, pipe.Options{}, socket.Options{})
			queued, posted := encode(t, a, message("1", "")), encode(t, a, message("2", ""))
			end.end(t, a)
			waiting, err := a.Send(context.Background(), queued, socket.Queue)
			requireWriteError(t, err, socket.ErrClosed)
			require.Zero(t, waiting)
			requireWriteError(t, sendFrame(a, posted, socket.Later), socket.ErrClosed)
			require.NoError(t, a.Flush(), "nothing is queued")
			requireOver(t, b)
		})
	}
}

// Flush returns the error of the write that it makes, which ends the socket.
func TestFlushThatFails(t *testing.T) {
	g, _ := newGate(t)
	a := socket.New(g, socket.Options{})
	_, err := a.Send(context.Background(), encode(t, a, message("1", "text")), socket.Queue)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- a.Flush() }()
	<-g.entered
	g.result <- errGate
	requireWriteError(t, <-done, errGate)
	_, err = a.Send(context.Background(), encode(t, a, message("2", "text")), socket.Queue)
	requireWriteError(t, err, errGate)
	require.NoError(t, a.Flush())
}

// What is only queued stays within the bound, where nobody flushes: then there is no room, which is an
// error of that frame alone.
func TestQueueThatNobodyFlushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, cb := overPipe(pipe.Options{})(t)
		c := &counted{Conn: ca}
		a, b := socket.New(c, socket.Options{}), socket.New(cb, socket.Options{})
		body := strings.Repeat("x", 1<<20)
		packets := 0
		for ; ; packets++ {
			err := sendFrame(a, encode(t, a, message(strconv.Itoa(packets), body)), socket.Queue)
			if err != nil {
				requireWriteError(t, err, socket.ErrOutputFull)
				require.True(t, err.(*socket.WriteError).Unsent)
				break
			}
		}
		require.Equal(t, maxQueued>>20, packets)
		require.Zero(t, c.writes.Load())
		done := make(chan error, 1)
		go func() { done <- a.Flush() }()
		for i := range packets {
			requireMessage(t, b, strconv.Itoa(i), body)
		}
		require.NoError(t, <-done)
		require.NoError(t, sendFrame(a, encode(t, a, message("last", "text")), socket.Queue))
		go func() { done <- a.Flush() }()
		requireMessage(t, b, "last", "text")
		require.NoError(t, <-done)
	})
}

// Several goroutines queue up to the bound, write where there is no room, and flush now and then: nobody is
// left waiting and nothing is lost.
func TestSendQueueOnManyGoroutines(t *testing.T) {
	const writers, packets = 8, 40
	a, b := sockets(t, pipe.Options{}, socket.Options{})
	body := strings.Repeat("x", 100<<10)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range packets {
				p := message(fmt.Sprintf("%d %d", w, i), body)
				f, err := a.Encode(socket.Permit{}, nil, p)
				if !assert.NoError(t, err) {
					return
				}
				if err = sendFrame(a, f, socket.Queue); errors.Is(err, socket.ErrOutputFull) {
					err = a.WritePacket(p)
				}
				if !assert.NoError(t, err) {
					return
				}
				if i%10 == 9 {
					assert.NoError(t, a.Flush())
				}
			}
		})
	}
	requireInOrder(t, b, writers, packets, body)
	wg.Wait()
}

// requireInOrder reads the packets of several writers, each of whom numbers its
// own.
func requireInOrder(t *testing.T, s *socket.Socket, writers, packets int, want string) {
	t.Helper()
	next := make([]int, writers)
	for range writers * packets {
		id, body, err := receive(s)
		require.NoError(t, err)
		require.True(t, body == want, "body of %d bytes, wanted %d", len(body), len(want))
		var w, i int
		_, err = fmt.Sscanf(id, "%d %d", &w, &i)
		require.NoError(t, err)
		require.Equal(t, next[w], i, "of writer %d", w)
		next[w]++
	}
}

func TestSendLater(t *testing.T) {
	for _, writers := range []int{1, 16} {
		for _, size := range []int{0, 100, 20 << 10} {
			t.Run(fmt.Sprintf("%d goroutines, %d bytes", writers, size), func(t *testing.T) {
				const packets = 200
				a, b := sockets(t, pipe.Options{}, socket.Options{})
				body := strings.Repeat("x", size)
				var wg sync.WaitGroup
				for w := range writers {
					wg.Go(func() {
						for i := range packets {
							f, err := a.Encode(socket.Permit{}, nil, message(fmt.Sprintf("%d %d", w, i),
								body))
							if !assert.NoError(t, err) || !assert.NoError(t, sendFrame(a, f, socket.Later)) {
								return
							}
						}
					})
				}
				requireInOrder(t, b, writers, packets, body)
				wg.Wait()
				require.NoError(t, a.Close())
				requireOver(t, b)
			})
		}
	}
}

// PostFrame does not wait for the connection, and what it has left behind is
// written before what is written after it.
func TestSendLaterDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, cb := newGate(t)
		a, b := socket.New(g, socket.Options{}), socket.New(cb, socket.Options{})
		require.NoError(t, sendFrame(a, encode(t, a, message("1", "text")), socket.Later))
		first := <-g.entered
		require.Equal(t, frame(t, message("1", "text")), first)
		require.NoError(t, sendFrame(a, encode(t, a, message("2", "text")), socket.Later))
		require.NoError(t, sendFrame(a, encode(t, a, message("3", "text")), socket.Now))
		g.result <- nil
		second := <-g.entered
		require.Equal(t, append(frame(t, message("2", "text")), frame(t, message("3", "text"))...), second)
		g.result <- nil
		for _, id := range []string{"1", "2", "3"} {
			requireMessage(t, b, id, "text")
		}
	})
}

// PostFrame's caller does not hear of the write that fails: the next one does,
// and the connection is closed.
func TestSendLaterWhoseWriteFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, cb := newGate(t)
		a := socket.New(g, socket.Options{})
		require.NoError(t, sendFrame(a, encode(t, a, message("1", "text")), socket.Later))
		<-g.entered
		require.NoError(t, sendFrame(a, encode(t, a, message("2", "never written")), socket.Later))
		g.result <- errGate
		synctest.Wait()
		requireWriteError(t, sendFrame(a, encode(t, a, message("3", "text")), socket.Later), errGate)
		_, err := a.Send(context.Background(), encode(t, a, message("4", "text")), socket.Queue)
		requireWriteError(t, err, errGate)
		requireWriteError(t, a.WritePacket(message("5", "text")), errGate)
		requireOver(t, socket.New(cb, socket.Options{}))
	})
}

// Who posts waits while much has gathered, and goes on when it is read.
func TestSendLaterWaitsWhereMuchHasGathered(t *testing.T) {
	for _, size := range []int{1 << 20, 1 << 10} {
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				packets := 2 * maxQueued / size
				a, b := sockets(t, pipe.Options{Buffer: 1000}, socket.Options{}) // less than a frame
				p, body := sized(t, "1", size)
				var posted atomic.Int32
				done := make(chan error, 1)
				go func() {
					for range packets {
						f, err := a.Encode(socket.Permit{}, nil, p)
						if err == nil {
							err = sendFrame(a, f, socket.Later)
						}
						if err != nil {
							done <- err
							return
						}
						posted.Add(1)
					}
					done <- nil
				}()
				synctest.Wait()
				// What is under way waits too, so that it is just as many.
				require.Equal(t, maxQueued/size, int(posted.Load()))
				require.Empty(t, done)
				time.Sleep(time.Hour) // of the bubble's clock
				require.Equal(t, maxQueued/size, int(posted.Load()))

				drained := readAll(b, packets, body)
				require.NoError(t, <-done)
				require.NoError(t, <-drained)
				require.Equal(t, packets, int(posted.Load()))
			})
		})
	}
}

// readAll reads so many packets on another goroutine.
func readAll(s *socket.Socket, packets int, want string) chan error {
	done := make(chan error, 1)
	go func() {
		for range packets {
			_, body, err := receive(s)
			if err == nil && body != want {
				err = fmt.Errorf("body of %d bytes, wanted %d", len(body), len(want))
			}
			if err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	return done
}

// Who waits in PostFrame is told when the socket is closed.
func TestSendLaterThatWaitsEndsWithTheSocket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := sockets(t, pipe.Options{Buffer: 1}, socket.Options{})
		p, _ := sized(t, "1", 1<<20)
		for range 8 {
			require.NoError(t, sendFrame(a, encode(t, a, p), socket.Later))
		}
		last := encode(t, a, p)
		done := make(chan error, 1)
		go func() { done <- sendFrame(a, last, socket.Later) }()
		synctest.Wait()
		require.Empty(t, done)
		require.NoError(t, a.Close())
		requireWriteError(t, <-done, socket.ErrClosed)
	})
}

// A frame that fits is encoded into the caller's memory, and costs no other.
func TestEncodeToTakesTheCallersMemory(t *testing.T) {
	a, b := sockets(t, pipe.Options{}, socket.Options{})
	p := message("1", "text")
	want := frame(t, p)
	for _, size := range []int{len(want), len(want) + 1, 512} {
		mem := make([]byte, size)
		f, err := a.Encode(socket.Permit{}, mem, p)
		require.NoError(t, err)
		require.Equal(t, want, mem[:len(want)])
		require.NoError(t, sendFrame(a, f, socket.Now))
		requireMessage(t, b, "1", "text")
	}
	// Its length is of no matter, only its capacity is.
	mem := make([]byte, 0, len(want))
	f, err := a.Encode(socket.Permit{}, mem, p)
	require.NoError(t, err)
	require.Equal(t, want, mem[:len(want)])
	f.Drop()

	if race.Enabled {
		return // the race detector allocates too
	}
	mem = make([]byte, 512)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		f, err := a.Encode(socket.Permit{}, mem, p)
		if err != nil {
			panic(err)
		}
		f.Drop()
	}))
}

// A frame that does not fit leaves the memory behind the slice alone.
func TestEncodeToStaysWithinTheMemory(t *testing.T) {
	a, b := sockets(t, pipe.Options{}, socket.Options{})
	p := message("1", "text")
	whole := bytes.Repeat([]byte{0xee}, 512)
	for size := range len(frame(t, p)) {
		f, err := a.Encode(socket.Permit{}, whole[:0:size], p)
		require.NoError(t, err)
		require.Equal(t, bytes.Repeat([]byte{0xee}, 512-size), whole[size:])
		require.NoError(t, sendFrame(a, f, socket.Now))
		requireMessage(t, b, "1", "text")
	}
	f, err := a.Encode(socket.Permit{}, nil, p)
	require.NoError(t, err)
	require.NoError(t, sendFrame(a, f, socket.Now))
	requireMessage(t, b, "1", "text")
	_, err = a.Encode(socket.Permit{}, whole, &packet.Packet{})
	require.Error(t, err)
}

// The caller may use the memory again as soon as the frame has been sent, whichever
// way that was: what arrives is what was encoded.
func TestMemoryOfEncodeToIsUsedAgain(t *testing.T) {
	for _, way := range []struct {
		name string
		send func(s *socket.Socket, f socket.Frame) error
	}{
		{"write", func(s *socket.Socket, f socket.Frame) error { return sendFrame(s, f, socket.Now) }},
		{"post", func(s *socket.Socket, f socket.Frame) error { return sendFrame(s, f, socket.Later) }},
		{"queue", func(s *socket.Socket, f socket.Frame) error { return sendFrame(s, f, socket.Queue) }},
	} {
		for _, room := range []int{64, 512, 4 << 10, 16<<10 - 1} {
			t.Run(fmt.Sprintf("%s, %d bytes", way.name, room), func(t *testing.T) {
				a, b := sockets(t, pipe.Options{Buffer: 4 << 20}, socket.Options{})
				var sizes []int
				for _, around := range []int{room, 16 << 10, 64 << 10} {
					for d := -2; d <= 2; d++ {
						sizes = append(sizes, around+d)
					}
				}
				sizes = append(sizes, room, 40, room, room-1, 40, 16<<10, 40) // small ones behind large ones
				mem := make([]byte, room)
				for _, size := range sizes {
					p, _ := sized(t, "1", size)
					f, err := a.Encode(socket.Permit{}, mem, p)
					require.NoError(t, err)
					require.NoError(t, way.send(a, f))
					for i := range mem {
						mem[i] = 0xff
					}
				}
				require.NoError(t, a.Flush())
				for _, size := range sizes {
					_, body := sized(t, "1", size)
					requireMessage(t, b, "1", body)
				}
			})
		}
	}
}

// Memory that is used again while the frame still waits behind another's write.
func TestMemoryOfEncodeToWhileTheFrameWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, cb := newGate(t)
		a, b := socket.New(g, socket.Options{}), socket.New(cb, socket.Options{})
		require.NoError(t, sendFrame(a, encode(t, a, message("1", "text")), socket.Later))
		<-g.entered
		mem := make([]byte, 512)
		sizes := []int{40, 511, 512, 513, 16 << 10, 64 << 10, 512}
		for _, size := range sizes {
			p, _ := sized(t, "2", size)
			f, err := a.Encode(socket.Permit{}, mem, p)
			require.NoError(t, err)
			require.NoError(t, sendFrame(a, f, socket.Now))
			copy(mem, bytes.Repeat([]byte{0xff}, 512))
		}
		go func() {
			for range g.entered {
				g.result <- nil
			}
		}()
		g.result <- nil
		requireMessage(t, b, "1", "text")
		for _, size := range sizes {
			_, body := sized(t, "2", size)
			requireMessage(t, b, "2", body)
		}
		synctest.Wait()
		close(g.entered)
	})
}

// A frame of 16 KiB and more that fits the caller's memory is sent like any other.
func TestEncodeToIntoMuchMemory(t *testing.T) {
	for _, size := range []int{16<<10 - 1, 16 << 10, 64 << 10} {
		a, b := sockets(t, pipe.Options{Buffer: 1 << 20}, socket.Options{})
		p, body := sized(t, "1", size)
		f, err := a.Encode(socket.Permit{}, make([]byte, 64<<10), p)
		require.NoError(t, err)
		require.NotPanics(t, func() { err = sendFrame(a, f, socket.Now) }, "frame of %d bytes", size)
		require.NoError(t, err)
		requireMessage(t, b, "1", body)
	}
}
