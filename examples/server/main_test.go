package main

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/tptest"
)

func TestMain(m *testing.M) {
	tp.SetLogLevel(tp.LevelOff)
	m.Run()
}

// newClient makes a client that takes the server's pushes.
func newClient(plugins ...tp.Plugin) *tp.Peer {
	client := tp.NewPeer(nil, plugins...)
	tp.HandlePush(client.PushRouter, "/push/test", func(tp.PushCtx, *map[string]string) {})
	return client
}

func TestHome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := new(tptest.Recorder)
		link := tptest.Pair(t, newPeer(), newClient(rec))
		var reply struct {
			Args map[string]int `json:"your_args"`
			Time time.Time      `json:"server_time"`
		}
		cmd := link.Client.Pull("/group/home/test?peer_id=me", map[string]int{"n": 1}, &reply)
		require.Nil(t, cmd.Xerror)
		require.Equal(t, map[string]int{"n": 1}, reply.Args)
		require.True(t, reply.Time.Equal(time.Now()), "the bubble's clock stands still meanwhile")

		push, err := rec.AwaitPush(t.Context(), "/push/test", 1)
		require.NoError(t, err)
		require.Equal(t, "from home", push.Query.Get("tag"))
		rec.AssertPushed(t, "/push/test", tptest.HasBody(map[string]string{"your_id": "me"}))
	})
}

func TestUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		link := tptest.Pair(t, newPeer(), newClient())
		reply, err := tp.Call[[]string](t.Context(), link.Client, "/some/where", "who is there?")
		require.NoError(t, err)
		require.Equal(t, []string{"nobody", "serves", "/some/where"}, reply)
	})
}

// The connection is cut in the middle of a reply. The caller cannot know whether the pull has run, and is
// told so; the server has run it.
func TestCutInTheMiddleOfAReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := new(tptest.Recorder)
		link := tptest.Pair(t, newPeer(rec), newClient())
		link.ToClient.CutAfter(200) // the push before the reply is shorter, the reply is longer
		cmd := link.Client.Pull("/group/home/test", map[string]string{"n": strings.Repeat("x", 1000)},
			new(map[string]any), tp.WithGzip(0))
		require.Equal(t, tp.StatusConnClosed, cmd.Xerror.Code()) // 101
		require.Contains(t, cmd.Xerror.Text(), "the outcome of the pull is unknown")
		require.False(t, tp.NotRun(cmd.Xerror))
		_, again := tp.Retryable(cmd.Xerror)
		require.False(t, again, "it may have run")
		rec.AssertPulled(t, "/group/home/test", tptest.HasStatus(tp.StatusOK))
	})
}

// The server ends sessions that say nothing for three minutes.
func TestSilentClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		link := tptest.Pair(t, newPeer(), newClient())
		began := time.Now()
		<-link.Client.Done()
		require.Equal(t, 3*time.Minute, time.Since(began))
	})
}
