package socket_test

import (
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// A frame that is offered is queued if there is room, and refused if not, without
// waiting and without an end of the socket. One that is pressed needs no room.
func TestSendRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		budget := packet.NewBudget(1 << 20)
		ca, cb := pipe.New(pipe.Options{Buffer: 100})
		a := socket.New(ca, socket.Options{MaxOutput: 10_000, Output: budget})
		b := socket.New(cb, socket.Options{})
		offered := 0
		var err error
		for ; err == nil; offered++ {
			require.Less(t, offered, 1000)
			err = sendFrame(a, encode(t, a, message("1", strings.Repeat("x", 1000))), socket.Refusal)
		}
		requireWriteError(t, err, socket.ErrOutputFull)
		require.Greater(t, offered, 9)
		require.Less(t, offered, 14, "an eighth more is for what is offered")
		require.Positive(t, budget.Used())
		require.NoError(t, sendFrame(a, encode(t, a, message("1", "in any case")), socket.Control))

		done := make(chan error, 1)
		go func() { done <- a.Flush() }()
		for range offered - 1 {
			requireMessage(t, b, "1", strings.Repeat("x", 1000))
		}
		requireMessage(t, b, "1", "in any case")
		require.NoError(t, <-done)
		require.Zero(t, budget.Used())
		require.NoError(t, sendFrame(a, encode(t, a, message("2", "there is room again")), socket.Refusal))
		require.NoError(t, a.Flush())
		requireMessage(t, b, "2", "there is room again")
		require.NoError(t, a.Close())
		require.NoError(t, b.Close())
	})
}

// Offer is written without a flush, and refused at once where there is no room.
func TestSendOffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, cb := pipe.New(pipe.Options{Buffer: 100})
		a := socket.New(ca, socket.Options{MaxOutput: 10_000})
		b := socket.New(cb, socket.Options{})
		offered := 0
		var err error
		for ; err == nil; offered++ {
			require.Less(t, offered, 1000)
			err = sendFrame(a, encode(t, a, message("1", strings.Repeat("x", 1000))), socket.Offer)
		}
		requireWriteError(t, err, socket.ErrOutputFull)
		require.Equal(t, uint64(offered-1), a.Posted())
		for range offered - 1 {
			requireMessage(t, b, "1", strings.Repeat("x", 1000))
		}
		require.NoError(t, sendFrame(a, encode(t, a, message("2", "there is room again")), socket.Offer))
		requireMessage(t, b, "2", "there is room again")
		require.NoError(t, a.Close())
		require.NoError(t, b.Close())
	})
}

// Who finds the output full waits for the write timeout at most.
func TestOutputThatStaysFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, cb := pipe.New(pipe.Options{Buffer: 100})
		defer cb.Close()
		a := socket.New(ca, socket.Options{MaxOutput: 10_000})
		// without a write timeout
		go func() { _ = a.WritePacket(message("1", strings.Repeat("x", 20_000))) }()
		synctest.Wait()
		a.SetWriteTimeout(5 * time.Second)
		start := time.Now()
		err := a.WritePacket(message("2", "no room"))
		requireWriteError(t, err, socket.ErrOutputFull)
		require.ErrorContains(t, err, "5s")
		require.Equal(t, 5*time.Second, time.Since(start))
		require.NoError(t, a.Close())
		synctest.Wait()
	})
}

// The budget bounds what waits, and everything that is taken is given back: when
// it is written, and when the socket ends before.
func TestBudgetOfOutput(t *testing.T) {
	for _, end := range []string{"read", "close", "cut"} {
		synctest.Test(t, func(t *testing.T) {
			budget := packet.NewBudget(100_000)
			opts := socket.Options{Output: budget}
			ca, cb := pipe.New(pipe.Options{Buffer: 100})
			a := socket.New(ca, opts)
			sent := make(chan error, 1)
			go func() {
				var err error
				for i := 0; i < 500 && err == nil; i++ {
					err = sendFrame(a, encode(t, a, message("1", strings.Repeat("x", 1+i*100))), socket.Later)
				}
				sent <- err
			}()
			synctest.Wait()
			require.Empty(t, sent, "it waits")
			require.Greater(t, budget.Used(), int64(40_000))
			require.LessOrEqual(t, budget.Used(), int64(100_000))
			switch end {
			case "read":
				go func() { _, _ = io.Copy(io.Discard, cb) }()
				require.NoError(t, <-sent)
				synctest.Wait()
				require.Zero(t, budget.Used())
				require.NoError(t, a.Close())
			case "close":
				require.NoError(t, a.Close())
				require.Error(t, <-sent)
			case "cut":
				require.NoError(t, cb.Close())
				require.Error(t, <-sent)
				_ = a.Close()
			}
			synctest.Wait()
			_ = cb.Close()
			require.Zero(t, budget.Used())
		})
	}
}

// A body takes from the budget as it comes, and not what was announced. One for
// which nothing is left can be passed over.
func TestBudgetOfABody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		budget := packet.NewBudget(1 << 20)
		ca, cb := pipe.New(pipe.Options{Buffer: 16 << 20})
		b := socket.New(cb, socket.Options{Limits: packet.Limits{Budget: budget}})
		large := frame(t, message("1", strings.Repeat("x", 3<<20)))
		var p packet.Packet

		send(t, ca, large[:1000])
		require.NoError(t, b.ReadHeader(&p))
		failed := make(chan error, 1)
		go func() {
			_, err := b.ReadBody(nil)
			failed <- err
		}()
		synctest.Wait()
		require.LessOrEqual(t, budget.Used(), int64(64<<10))
		send(t, ca, large[1000:])
		err := <-failed
		require.ErrorIs(t, err, packet.ErrBudget)
		require.False(t, socket.Fatal(err))
		require.Zero(t, budget.Used())

		send(t, ca, frame(t, message("2", strings.Repeat("y", 100_000))))
		require.NoError(t, b.ReadHeader(&p))
		require.Equal(t, "2", p.Header.Id)
		body, err := b.ReadBody(nil)
		require.NoError(t, err)
		require.Equal(t, "s"+strings.Repeat("y", 100_000), string(body.B))
		require.EqualValues(t, cap(body.B), budget.Used(), "now it is the caller's")
		body.Release()
		body.Release()
		require.Zero(t, budget.Used())
		_, _ = ca.Close(), b.Close()
	})
}

// A packet is timed from its first byte, however it is cut, and the pauses between
// packets are not.
func TestFrameTimeout(t *testing.T) {
	want := frame(t, message("1", strings.Repeat("x", 300)))
	for cut := 1; cut < len(want); cut += 7 {
		for _, skip := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				ca, cb := pipe.New(pipe.Options{})
				b := socket.New(cb, socket.Options{FrameTimeout: time.Second})
				read := func() error {
					if skip {
						var p packet.Packet
						if err := b.ReadHeader(&p); err != nil {
							return err
						}
						b.SkipBody()
						return b.ReadHeader(&p) // which passes over the body
					}
					return b.ReadPacket(new(packet.Packet),
						func(*packet.Header) interface{} { return new(string) })
				}
				go func() {
					time.Sleep(time.Hour)
					send(t, ca, want[:cut])
					time.Sleep(999 * time.Millisecond)
					send(t, ca, want[cut:])
					time.Sleep(time.Hour)
					send(t, ca, want[:cut])
				}()
				start := time.Now()
				if !skip {
					require.NoError(t, read(), "in time, if only just")
				}
				var err error
				for err == nil {
					err = read()
				}
				require.ErrorIs(t, err, os.ErrDeadlineExceeded)
				require.ErrorContains(t, err, "a packet was not complete after 1s")
				require.True(t, socket.Fatal(err))
				require.Equal(t, 2*time.Hour+1999*time.Millisecond, time.Since(start))
				_, _ = ca.Close(), b.Close()
			})
		}
	}
}

// A shorter read timeout is that of a packet too, however much comes in between.
func TestFrameTimeoutAndReadTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, cb := pipe.New(pipe.Options{})
		b := socket.New(cb, socket.Options{FrameTimeout: time.Minute, ReadTimeout: time.Second})
		want := frame(t, message("1", "text"))
		start := time.Now()
		go func() {
			send(t, ca, want[:5])
			time.Sleep(999 * time.Millisecond)
			send(t, ca, want[5:6])
		}()
		err := b.ReadPacket(new(packet.Packet), nil)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.ErrorContains(t, err, "not complete after 1s")
		require.Equal(t, time.Second, time.Since(start))
		_, _ = ca.Close(), b.Close()
	})
}

// To receive a body takes at most twice the limit, and 64 KiB, all in all, whether
// it comes at once or in pieces.
func TestMemoryOfABody(t *testing.T) {
	for _, size := range []int{1 << 10, 60 << 10, 1 << 20, 5 << 20, 16<<20 - 1} {
		for _, chunk := range []int{0, 1 << 10, 100 << 10} {
			ca, cb := pipe.New(pipe.Options{Buffer: 17 << 20, Chunk: chunk})
			b := socket.New(cb, socket.Options{})
			send(t, ca, frame(t, message("1", strings.Repeat("x", size))))
			var p packet.Packet
			require.NoError(t, b.ReadHeader(&p))
			runtime.GC() // empties the pools of other tests
			runtime.GC()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			body, err := b.ReadBody(nil)
			runtime.ReadMemStats(&after)
			require.NoError(t, err)
			require.Len(t, body.B, size+1)
			took := after.TotalAlloc - before.TotalAlloc
			require.LessOrEqual(t, took, uint64(2*packet.DefaultMaxBody+256<<10), "%d bytes in pieces of %d",
				size, chunk)
			_, _ = ca.Close(), b.Close()
		}
	}
}
