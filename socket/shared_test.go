package socket_test

import (
	"bytes"
	"context"
	"io"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/bufpool"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/socket"
)

// account counts the memory of shared bytes.
type account struct{ taken atomic.Int64 }

func (a *account) Take(n int64) bool { a.taken.Add(n); return true }
func (a *account) Force(n int64)     { a.taken.Add(n) }
func (a *account) Give(n int64)      { a.taken.Add(-n) }

// pushOf is a packet with so many bytes of body.
func pushOf(t *testing.T, n int) []byte {
	b, err := packet.Append(nil, &packet.Packet{BodyCodec: "string",
		Header: &packet.Header{Type: packet.TypePush, Uri: "/x"}, Body: bytes.Repeat([]byte("x"), n)},
		packet.Limits{})
	require.NoError(t, err)
	return b
}

// Shared frames are written at once as far as the connection takes them, and by pointer when it takes them
// later; what is held of them is given back.
func TestSpread(t *testing.T) {
	for _, size := range []int{100, 20_000, 300_000} {
		a, b := overTCP(t)
		s := socket.New(a, socket.Options{})
		var mem account
		var lane socket.Lane
		shared := bufpool.Share(pushOf(t, size), &mem)
		n := 0
		for {
			ok, err := s.Spread(shared, 1, &lane, 64<<10)
			require.NoError(t, err)
			if !ok {
				break
			}
			n++
		}
		require.Positive(t, n)
		require.EqualValues(t, n, s.Posted())
		sent := make(chan error, 1)
		go func() { // one that waits, as large ones do
			err := s.AwaitQueued(context.Background(), 64<<10)
			var f socket.Frame
			if err == nil {
				f, err = s.Share(context.Background(), shared)
			}
			if err == nil {
				_, err = s.Send(context.Background(), f.In(&lane), socket.Now)
			}
			sent <- err
		}()
		got, err := io.ReadAll(io.LimitReader(b, int64((n+1)*len(shared.B))))
		require.NoError(t, err)
		require.NoError(t, <-sent)
		require.True(t, bytes.Equal(got, bytes.Repeat(shared.B, n+1)), "%d frames of %d bytes", n+1, size)
		require.NoError(t, s.Close())
		require.Zero(t, mem.taken.Load())
	}
}

// Large frames of a side that takes parts are none to spread.
func TestSpreadOfParts(t *testing.T) {
	a, b := overTCP(t)
	s := socket.New(a, socket.Options{})
	s.CutLarge()
	var mem account
	var lane socket.Lane
	shared := bufpool.Share(pushOf(t, 300_000), &mem)
	ok, err := s.Spread(shared, 1, &lane, 64<<10)
	require.NoError(t, err)
	require.False(t, ok)
	f, err := s.Share(context.Background(), shared)
	require.NoError(t, err)
	_, err = s.Send(context.Background(), f.In(&lane), socket.Later)
	require.NoError(t, err)
	ok, err = s.Spread(bufpool.Share(pushOf(t, 1), &mem), 1, &lane, 64<<10)
	require.NoError(t, err)
	require.False(t, ok, "it would pass the large one")
	go func() { _, _ = io.Copy(io.Discard, b) }()
	_ = s.Close()
	require.Zero(t, mem.taken.Load())
}

// An ended socket, and one that ends with frames in its queue, keep nothing.
func TestSpreadAtTheEnd(t *testing.T) {
	a, b := overTCP(t)
	s := socket.New(a, socket.Options{})
	var mem account
	var lane socket.Lane
	shared := bufpool.Share(pushOf(t, 30_000), &mem)
	for ok := true; ok; {
		var err error
		ok, err = s.Spread(shared, 1, &lane, 64<<10)
		require.NoError(t, err)
	}
	require.Positive(t, mem.taken.Load())
	waits := make(chan error)
	go func() { waits <- s.AwaitQueued(context.Background(), 0) }()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.ErrorIs(t, s.AwaitQueued(ctx, 0), context.Canceled)
	_ = b.Close()
	require.Error(t, <-waits)
	_ = s.Close()
	require.Zero(t, mem.taken.Load())
	ok, err := s.Spread(shared, 1, &lane, 64<<10)
	require.False(t, ok)
	require.ErrorIs(t, err, socket.ErrClosed)
}
