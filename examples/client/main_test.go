package main

import (
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

// newServer makes a server that answers as slowly as the test likes.
func newServer(slow time.Duration, rec *tptest.Recorder) *tp.Peer {
	server := tp.NewPeer(nil, rec)
	tp.HandlePull(server.PullRouter, "/group/home/test",
		func(ctx tp.PullCtx, args *map[string]int) (map[string]int, tp.Xerror) {
			select {
			case <-time.After(slow):
			case <-ctx.Context().Done():
				return nil, nil
			}
			if x := ctx.Session().Push("/push/test", nil); x != nil {
				return nil, x
			}
			return *args, nil
		})
	tp.HandlePull(server.PullRouter, "/some/where",
		func(tp.PullCtx, *string) ([]string, tp.Xerror) { return []string{"nobody"}, nil })
	return server
}

func TestTalk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec, pushed := new(tptest.Recorder), make(chan struct{})
		link := tptest.Pair(t, newServer(time.Minute, rec), newPeer(pushed))
		require.NoError(t, talk(link.Client, pushed))
		rec.AssertPulled(t, "/group/home/test", tptest.HasQuery("peer_id", "example-client"),
			tptest.HasBody(map[string]int{"n": 1}))
		rec.AssertPulled(t, "/some/where", tptest.HasBody("who is there?"))
	})
}

func TestServerThatGoesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec, pushed := new(tptest.Recorder), make(chan struct{})
		link := tptest.Pair(t, newServer(time.Minute, rec), newPeer(pushed))
		time.AfterFunc(30*time.Second, link.Cut)
		require.ErrorContains(t, talk(link.Client, pushed), "pull: 101 connection closed")
		rec.AssertNotPulled(t, "/some/where")
	})
}
