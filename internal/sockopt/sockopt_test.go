package sockopt_test

import (
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/sockopt"
)

// What the other side has read was acknowledged, where the kernel tells.
func TestSent(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	far, err := ln.Accept()
	require.NoError(t, err)
	defer far.Close()
	conn := c.(*net.TCPConn)
	sockopt.SetUserTimeout(conn, time.Minute)
	sockopt.SetUserTimeout(conn, 0) // a millisecond at least
	sockopt.SetUserTimeout(conn, time.Minute)
	_, err = conn.Write(make([]byte, 1000))
	require.NoError(t, err)
	_, err = io.ReadFull(far, make([]byte, 1000))
	require.NoError(t, err)
	if runtime.GOOS != "linux" {
		require.Zero(t, sockopt.SentOf(conn))
		return
	}
	for sockopt.SentOf(conn).Unacked > 0 {
		runtime.Gosched()
	}
	require.GreaterOrEqual(t, sockopt.SentOf(conn).Acked, uint64(1000))
}

// A connection that is closed is asked in vain, and nothing else.
func TestClosed(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	require.NoError(t, c.Close())
	sockopt.SetUserTimeout(c.(*net.TCPConn), time.Second)
	require.Zero(t, sockopt.SentOf(c.(*net.TCPConn)))
}
