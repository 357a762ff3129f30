package socket_test

import (
	"errors"
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/socket"
)

// A View tells of the connection, and has no method that could disturb it.
func TestView(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	ca, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	cb, err := ln.Accept()
	require.NoError(t, err)
	a, b := socket.New(ca, socket.Options{}), socket.New(cb, socket.Options{})
	v := a.View()
	require.True(t, a.View() == v)
	require.False(t, b.View() == v)
	require.Equal(t, ca.LocalAddr(), v.LocalAddr())
	require.Equal(t, ln.Addr().String(), v.RemoteAddr().String())
	_, ok := v.TLS()
	require.False(t, ok)
	called := false
	require.NoError(t, v.Control(func(fd uintptr) { called = true }))
	require.True(t, called)
	require.NoError(t, a.WritePacket(message("1", "text")))
	requireMessage(t, b, "1", "text")
	require.EqualValues(t, 1, v.Writes())
	require.EqualValues(t, 1, b.View().Reads())
	require.Zero(t, v.Backlog())
	for _, s := range []*socket.Socket{a, b} {
		require.NoError(t, s.Close())
	}
	require.ErrorIs(t, v.Control(func(uintptr) {}), net.ErrClosed)
	require.Equal(t, ln.Addr().String(), v.RemoteAddr().String(),
		"it can be asked when the connection has ended")
}

func TestViewWithoutDescriptor(t *testing.T) {
	t.Parallel()
	a, _ := sockets(t, pipe.Options{}, socket.Options{})
	err := a.View().Control(func(uintptr) { t.Error("called") })
	require.ErrorIs(t, err, errors.ErrUnsupported)
	require.ErrorContains(t, err, "*pipe.End has no descriptor")
}
