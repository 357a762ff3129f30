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

// The server asks its client something before it answers: two round trips.
func TestAdd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := new(tptest.Recorder)
		link := tptest.Pair(t, newServer(rec), newClient(&News{Seen: make(chan string, 1)}),
			tptest.Both(tptest.Faults{Delay: 100 * time.Millisecond}))
		began := time.Now()
		sum, err := tp.Call[int](t.Context(), link.Client, "/math/add", [2]int{1, 2})
		require.NoError(t, err)
		require.Equal(t, 3, sum)
		require.Equal(t, 400*time.Millisecond, time.Since(began))
		rec.AssertPulled(t, "/math/add", tptest.HasBody([2]int{1, 2}))
		require.Len(t, rec.Sent(), 1)
		require.Equal(t, "/who/are_you", rec.Sent()[0].Path)
	})
}

func TestNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		news := &News{Seen: make(chan string, 1)}
		link := tptest.Pair(t, newServer(), newClient(news))
		require.Nil(t, link.Server.Push("/news/flash?about=tests", "they pass"))
		require.Equal(t, "they pass (about tests)", <-news.Seen)
	})
}
