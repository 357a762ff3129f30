package main

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/tptest"
)

func TestMain(m *testing.M) {
	tp.SetLogLevel(tp.LevelOff)
	m.Run()
}

// chain connects a client to a gateway and the gateway to the service.
func chain(t *testing.T, order *Order) (client *tp.Session, upstream, downstream *tptest.Link) {
	gateway := tp.NewPeer(nil)
	upstream = tptest.Pair(t, newService(order), gateway)
	forward(gateway, upstream.Client)
	downstream = tptest.Pair(t, gateway, tp.NewPeer(nil))
	return downstream.Client, upstream, downstream
}

func TestForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		order := &Order{Seen: make(chan string, 1)}
		sess, _, _ := chain(t, order)
		n, err := tp.Call[int](t.Context(), sess, "/stock/count", "apples")
		require.NoError(t, err)
		require.Equal(t, 42, n)
		_, err = tp.Call[int](t.Context(), sess, "/stock/count", "pears")
		require.EqualError(t, err, "404 no pears")
		require.Nil(t, sess.Push("/order/new", "apples"))
		require.Equal(t, "apples", <-order.Seen)
	})
}

// When the service goes away within its reply, the client gets an answer from the gateway, and keeps its
// session.
func TestServiceIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sess, upstream, _ := chain(t, &Order{})
		upstream.ToClient.CutAfter(10)
		cmd := sess.Pull("/stock/count", "apples", nil)
		require.Equal(t, tp.StatusBadGateway, cmd.Xerror.Code())
		require.False(t, tp.NotRun(cmd.Xerror))
		require.NoError(t, sess.Err())
	})
}
