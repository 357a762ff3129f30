package tp

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A server that says again and again that it shuts down, and ends nothing, costs some connections and not one
// more each time.
func TestClusterServerThatNeverEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		server := n.serve("a", nil)
		client := n.client(nil)
		c := newTestCluster(t, client, servers(at("a")...))
		require.NoError(t, c.Ready(t.Context()))
		most := 0
		for range 2000 {
			server.RangeSession(func(s *Session) bool {
				s.first.goAway(false)
				return true
			})
			time.Sleep(200 * time.Millisecond)
			synctest.Wait()
			most = max(most, client.CountSession())
		}
		require.LessOrEqual(t, most, 50)
		require.NoError(t, c.Ready(t.Context()), "it is dialled again and again")
	})
}

// A weight that is too large for sums is wrong, and takes nothing down.
func TestClusterHugeWeights(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		n.serve("a", nil)
		list := []Server{{Id: "1", Addr: "a", Weight: math.MaxInt, Zone: "z"},
			{Id: "2", Addr: "a", Weight: math.MaxInt, Zone: "z"}, {Id: "3", Addr: "a", Weight: 2, Zone: "z"}}
		for i := range 100 {
			list = append(list, Server{Id: fmt.Sprint("far", i), Addr: "a", Weight: 1})
		}
		c := newTestCluster(t, n.client(nil), servers(list...), InZone("z"))
		require.NoError(t, c.Ready(t.Context()))
		synctest.Wait()
		require.Len(t, c.Servers(), 101)
		tally(t, c, 1000)
	})
}

// A server to which a push went and which never answers gets a call and not all of them.
func TestClusterPushIsNoProofOfSpeed(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		never := func(p *Peer) {
			HandlePush(p.PushRouter, "/note", func(PushCtx, *int) {})
			HandlePull(p.PullRouter, "/work", func(ctx PullCtx, _ *int) (int, Xerror) {
				<-ctx.Context().Done()
				return 0, nil
			})
		}
		n.serve("silent", nil, never)
		r := servers(at("silent")...)
		c := newTestCluster(t, n.client(nil), r, NoEjection())
		require.NoError(t, c.Ready(t.Context()))
		require.Nil(t, c.Push("/note", 1))
		n.serve("well", nil, func(p *Peer) {
			HandlePull(p.PullRouter, "/work", func(PullCtx, *int) (int, Xerror) {
				time.Sleep(time.Millisecond)
				return 0, nil
			})
		})
		r.set(at("silent", "well")...)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		done := make(chan *PullCmd, 1000)
		for range cap(done) {
			c.GoPullContext(ctx, "/work", 1, nil, done)
			time.Sleep(time.Millisecond)
		}
		failed := 0
		for range cap(done) {
			if (<-done).Xerror != nil {
				failed++
			}
		}
		require.LessOrEqual(t, failed, 20)
	})
}

// A stream that is open does not keep calls from a server: neither from one that has had none yet, nor from
// one that comes back after it was ejected.
func TestClusterCallsBesideStreams(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		stream := func(p *Peer) {
			HandleStream(p.PullRouter, "/stream", func(ctx PullCtx, s *Stream[string, int]) Xerror {
				<-ctx.Context().Done()
				return nil
			})
		}
		n.serve("a", nil, stream)
		r := servers(at("a")...)
		c := newTestCluster(t, n.client(nil), r)
		require.NoError(t, c.Ready(t.Context()))
		s, err := OpenStream[int, string](t.Context(), c, "/stream")
		require.NoError(t, err)
		defer s.Close()
		n.serve("b", nil, stream)
		r.set(at("a", "b")...)
		synctest.Wait()
		require.Len(t, tally(t, c, 100), 2, "a has had no calls")

		for _, l := range c.fleet.choices.Load().links {
			if l.id == "a" {
				for range 10 {
					l.member.Count(sinceStart(), true)
				}
				require.True(t, l.member.Ejected(sinceStart()))
			}
		}
		require.Len(t, tally(t, c, 100), 1)
		time.Sleep(time.Minute)
		require.Len(t, tally(t, c, 100), 2, "a is back")
	})
}

// An error of a resolver, or of a server, may be as long as a stranger likes; those of calls are not.
func TestClusterErrorsAreShort(t *testing.T) {
	inBubble(t, func(t *testing.T, n *testNet) {
		r := servers()
		c := newTestCluster(t, n.client(nil), r, WaitForServer(0))
		r.fail(errors.New(strings.Repeat("x", 1<<20)))
		synctest.Wait()
		require.Less(t, len(c.Pull("/name", 1, nil).Xerror.Error()), 4<<10)
	})
}
