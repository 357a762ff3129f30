package socket_test

import (
	"errors"
	"io"
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
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

func TestClose(t *testing.T) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			ca, cb := tr.open(t)
			a, b := socket.New(ca, socket.Options{}), socket.New(cb, socket.Options{})
			require.NoError(t, a.WritePacket(message("1", "last")))
			require.NoError(t, a.Close())
			require.NoError(t, a.Close())
			requireWriteError(t, a.WritePacket(message("2", "late")), socket.ErrClosed)
			require.False(t, a.CloseWrite(time.Minute))
			_, _, err := receive(a)
			require.ErrorIs(t, err, socket.ErrClosed)
			require.True(t, socket.Fatal(err))

			requireMessage(t, b, "1", "last")
			requireOver(t, b)
		})
	}
}

func TestCloseOnManyGoroutines(t *testing.T) {
	a, b := sockets(t, pipe.Options{}, socket.Options{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { assert.NoError(t, a.Close()) })
	}
	wg.Wait()
	requireOver(t, b)
}

func TestCloseEndsARead(t *testing.T) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			ca, cb := tr.open(t)
			a, b := socket.New(ca, socket.Options{}), socket.New(cb, socket.Options{})
			reading := make(chan error)
			for _, s := range []*socket.Socket{a, b} {
				go func() {
					_, _, err := receive(s)
					reading <- err
				}()
			}
			require.NoError(t, a.Close())
			var here, there int
			for range 2 {
				err := <-reading
				require.True(t, socket.Fatal(err))
				if errors.Is(err, socket.ErrClosed) {
					here++
				} else {
					there++
				}
			}
			require.Equal(t, []int{1, 1}, []int{here, there})
		})
	}
}

// Whoever is asked for a body may end the socket then and there.
func TestCloseWithinARead(t *testing.T) {
	a, b := sockets(t, pipe.Options{}, socket.Options{})
	require.NoError(t, a.WritePacket(message("1", "last")))
	var body string
	require.NoError(t, b.ReadPacket(new(packet.Packet), func(*packet.Header) interface{} {
		require.NoError(t, b.Close())
		return &body
	}))
	require.Equal(t, "last", body)
	_, _, err := receive(b)
	require.ErrorIs(t, err, socket.ErrClosed)
}

// queue makes a write get stuck and others gather behind it: n packets in all,
// with the ids 0, 1, ... It returns where the first write's error comes.
func queue(t *testing.T, a *socket.Socket, n int) <-chan error {
	t.Helper()
	first := make(chan error, 1)
	go func() { first <- a.WritePacket(message("0", strings.Repeat("x", 50000))) }()
	synctest.Wait()
	require.Empty(t, first)
	for i := 1; i < n; i++ {
		require.NoError(t, a.WritePacket(message(strconv.Itoa(i), strings.Repeat("x", 5000))))
	}
	return first
}

func TestCloseFlushesWhatWasAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := sockets(t, pipe.Options{Buffer: 100}, socket.Options{})
		first := queue(t, a, 10)
		closed := make(chan error, 1)
		go func() { closed <- a.Close() }()
		synctest.Wait()
		require.Empty(t, closed)
		requireWriteError(t, a.WritePacket(message("late", "x")), socket.ErrClosed)

		requireMessage(t, b, "0", strings.Repeat("x", 50000))
		for i := 1; i < 10; i++ {
			requireMessage(t, b, strconv.Itoa(i), strings.Repeat("x", 5000))
		}
		requireOver(t, b)
		require.NoError(t, <-closed)
		require.NoError(t, <-first)
	})
}

// A side that does not read is waited for, but not long. Of the packet that was
// being sent nobody knows how much has arrived: that write does not say that it
// was refused because the socket is closed.
func TestCloseOfASocketThatNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := sockets(t, pipe.Options{Buffer: 100}, socket.Options{})
		first := queue(t, a, 10)
		start := time.Now()
		require.NoError(t, a.Close())
		require.Equal(t, time.Second, time.Since(start))
		err := <-first
		var we *socket.WriteError
		require.ErrorAs(t, err, &we)
		require.NotErrorIs(t, err, socket.ErrClosed)
		_, _, err = receive(b)
		require.True(t, socket.Fatal(err))
		requireWriteError(t, a.WritePacket(message("late", "x")), socket.ErrClosed)
	})
}

// A second Close does not wait for the first.
func TestCloseDuringClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := sockets(t, pipe.Options{Buffer: 100}, socket.Options{})
		first := queue(t, a, 2)
		closed := make(chan error, 1)
		go func() { closed <- a.Close() }()
		synctest.Wait()
		start := time.Now()
		require.NoError(t, a.Close())
		require.Zero(t, time.Since(start))
		require.NoError(t, <-closed)
		require.Error(t, <-first)
	})
}

func TestCloseWrite(t *testing.T) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			ca, cb := tr.open(t)
			a, b := socket.New(ca, socket.Options{}), socket.New(cb, socket.Options{})
			require.NoError(t, a.WritePacket(message("1", "last")))
			require.True(t, a.CloseWrite(time.Minute))
			requireWriteError(t, a.WritePacket(message("2", "late")), socket.ErrClosed)
			requireMessage(t, b, "1", "last")
			requireOver(t, b)

			// The other direction goes on.
			require.NoError(t, b.WritePacket(message("3", "answer")))
			requireMessage(t, a, "3", "answer")
			require.NoError(t, b.Close())
			requireOver(t, a)
			require.NoError(t, a.Close())
		})
	}
}

func TestCloseWriteFlushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := sockets(t, pipe.Options{Buffer: 100}, socket.Options{})
		first := queue(t, a, 3)
		ended := make(chan bool, 1)
		go func() { ended <- a.CloseWrite(time.Minute) }()
		synctest.Wait()
		require.Empty(t, ended)
		requireMessage(t, b, "0", strings.Repeat("x", 50000))
		requireMessage(t, b, "1", strings.Repeat("x", 5000))
		requireMessage(t, b, "2", strings.Repeat("x", 5000))
		requireOver(t, b)
		require.True(t, <-ended)
		require.NoError(t, <-first)
	})
}

// When the time is up, what was accepted is still on its way, and may be waited
// for again.
func TestCloseWriteThatTakesTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := sockets(t, pipe.Options{Buffer: 100}, socket.Options{})
		first := queue(t, a, 2)
		start := time.Now()
		require.False(t, a.CloseWrite(3*time.Second))
		require.Equal(t, 3*time.Second, time.Since(start))
		requireWriteError(t, a.WritePacket(message("2", "x")), socket.ErrClosed)
		requireMessage(t, b, "0", strings.Repeat("x", 50000))
		requireMessage(t, b, "1", strings.Repeat("x", 5000))
		require.True(t, a.CloseWrite(time.Second))
		requireOver(t, b)
		require.NoError(t, <-first)
	})
}

func TestCloseWriteOfAConnectionThatHasNoHalves(t *testing.T) {
	ca, cb := net.Pipe()
	a, b := socket.New(ca, socket.Options{}), socket.New(cb, socket.Options{})
	defer b.Close()
	require.False(t, a.CloseWrite(time.Minute))
	requireWriteError(t, a.WritePacket(message("1", "late")), socket.ErrClosed)
	require.NoError(t, a.Close())
}

// Many write while the socket is closed: what a write reports is true. Without
// an error the packet arrives, and with ErrClosed it does not.
func TestWritersAndCloseAtOnce(t *testing.T) {
	for name, end := range map[string]func(*socket.Socket){
		"Close":      func(s *socket.Socket) { _ = s.Close() },
		"CloseWrite": func(s *socket.Socket) { s.CloseWrite(time.Minute) },
	} {
		t.Run(name, func(t *testing.T) {
			for range 30 {
				a, b := sockets(t, pipe.Options{Buffer: 500}, socket.Options{})
				var sent atomic.Int64
				var wg sync.WaitGroup
				for range 4 {
					wg.Go(func() {
						for {
							err := a.WritePacket(message("1", "text"))
							if err != nil {
								assert.ErrorIs(t, err, socket.ErrClosed)
								return
							}
							sent.Add(1)
						}
					})
				}
				var received int64
				for {
					_, _, err := receive(b)
					if err != nil {
						require.True(t, err == io.EOF, "%v", err)
						break
					}
					if received++; received == 20 {
						wg.Go(func() { end(a) })
					}
				}
				wg.Wait()
				require.Equal(t, sent.Load(), received)
			}
		})
	}
}
