package handover_test

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/handover"
)

// The rest, with processes that start others, is tested in tp, where there is something to serve.

func TestListen(t *testing.T) {
	ln, err := handover.Listen("tcp", "127.0.0.1:0", "127.0.0.1:0", 0)
	require.NoError(t, err)
	addr := ln.Addr().String()
	_, err = handover.Listen("tcp", addr, addr, 0)
	require.ErrorContains(t, err, "tp: listen tcp "+addr)
	require.NoError(t, ln.Close())
	require.ErrorIs(t, ln.Close(), net.ErrClosed)
	ln, err = handover.Listen("tcp", addr, addr, 0)
	require.NoError(t, err, "the address is free again")
	require.NoError(t, ln.Close())
	_, err = handover.Listen("tcp", "127.0.0.1:port", "127.0.0.1:port", 0)
	require.ErrorContains(t, err, "tp: listen tcp")
	require.False(t, handover.ByPredecessor())
}

// Whoever listens is told when it is served, before the first connection is accepted.
func TestServes(t *testing.T) {
	served := make(chan struct{}, 2)
	before := handover.Told
	defer func() { handover.Told = before }()
	handover.Told.Serves = func() { served <- struct{}{} }
	ln, err := handover.Listen("tcp", "127.0.0.1:0", "127.0.0.1:0", 0)
	require.NoError(t, err)
	require.Empty(t, served)
	ended := make(chan error)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				ended <- err
				return
			}
			_ = conn.Close()
		}
	}()
	<-served
	for range 2 {
		conn, err := net.Dial("tcp", ln.Addr().String())
		require.NoError(t, err)
		require.NoError(t, conn.Close())
	}
	require.NoError(t, ln.Close())
	require.ErrorIs(t, <-ended, net.ErrClosed)
	require.Empty(t, served, "once")
}

func TestStartWithoutListeners(t *testing.T) {
	_, err := handover.Start()
	require.ErrorContains(t, err, "tp: reboot: ")
	_, again := handover.Start()
	require.Equal(t, err.Error(), again.Error(), "the first one is over")
}
