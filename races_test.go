package tp

import (
	"errors"
	"flag"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
)

var raceRounds = flag.Int("race-rounds", 0,
	"rounds of TestCloseRaces; 0 means as many as there is time for in some seconds")

// Close, called sixteen times at once, races with pulls, pushes, replies and
// changes of the id, from both sides. Every pull ends once, as answered or as one
// whose connection has closed; what was answered is right; no pull is handled more
// often than it was made; nothing stays.
func TestCloseRaces(t *testing.T) {
	const closers, callers = 16, 4
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	var handled, pushed atomic.Int64
	for _, p := range []*Peer{srv, cli} {
		HandlePull(p.PullRouter, "/echo", func(_ PullCtx, n *int) (int, Xerror) {
			handled.Add(1)
			return *n, nil
		})
		HandlePull(p.PullRouter, "/back", func(ctx PullCtx, n *int) (int, Xerror) {
			var got int
			cmd := ctx.Session().Pull("/echo", *n, &got)
			return got, cmd.Xerror
		})
		HandlePush(p.PushRouter, "/push", func(PushCtx, *int) { pushed.Add(1) })
	}
	tcp := serve(t, srv)

	var made, answered, failed, pushes atomic.Int64
	check := func(code int32, codes ...int32) {
		for _, c := range append(codes, StatusConnClosed, StatusWriteFailed) {
			if code == c {
				return
			}
		}
		t.Errorf("status %d", code)
	}
	round := func(i int) {
		var a, b *Session
		if i%4 == 0 {
			var err error
			a, err = cli.Dial(tcp)
			require.NoError(t, err)
			// The server's session can be had once it has answered.
			require.Nil(t, a.Pull("/echo", 0, nil).Xerror)
			made.Add(1)
			srv.RangeSession(func(s *Session) bool {
				if s.RemoteIp() == a.Socket().LocalAddr().String() {
					b = s
				}
				return b == nil
			})
		} else {
			a, b = connect(t, cli, srv, pipe.Options{})
		}
		require.NotNil(t, b)
		var wg, ready sync.WaitGroup
		start := make(chan struct{})
		begin := func(f func()) {
			ready.Add(1)
			wg.Go(func() { ready.Done(); <-start; f() })
		}
		delay := i % 7 * (1 + i%5) // how often the closers let others run first
		for k, s := range []*Session{a, b} {
			for c := range callers {
				begin(func() {
					for n := 1; ; n++ {
						var got int
						uri := "/echo"
						if c == 1 {
							uri = "/back"
							made.Add(1)
						}
						made.Add(1)
						cmd := s.Pull(uri, n, &got)
						if cmd.Xerror != nil {
							failed.Add(1)
							// A handler that fails with 101 answers 502.
							check(cmd.Xerror.Code(), 502)
							if cmd.Xerror.Code() != 502 {
								return
							}
							continue
						}
						answered.Add(1)
						if got != n {
							t.Errorf("%d was answered with %d", n, got)
						}
					}
				})
			}
			begin(func() {
				done := make(chan *PullCmd) // nobody reads it before all are sent
				results := make([]int, 10)
				for n := range results {
					made.Add(1)
					s.GoPull("/echo", n+1, &results[n], done)
				}
				seen := map[*PullCmd]bool{}
				for range results {
					cmd := <-done
					if seen[cmd] {
						t.Error("a pull was delivered twice")
					}
					seen[cmd] = true
					if cmd.Xerror != nil {
						check(cmd.Xerror.Code())
					}
				}
			})
			begin(func() {
				for n := range 1 << 30 {
					pushes.Add(1)
					if x := s.Push("/push", n); x != nil {
						check(x.Code())
						return
					}
					runtime.Gosched()
				}
			})
			for c := range 2 {
				begin(func() {
					for n := range 1 << 30 {
						if err := s.ChangeId(fmt.Sprintf("%d-%d-%d-%d", i, k, c, n)); err != nil {
							if errors.Is(err, ErrIdTaken) {
								t.Error(err)
							}
							return
						}
						if s.Id() == "" {
							t.Error("no id")
						}
						runtime.Gosched() // on one processor these would be all that runs
					}
				})
			}
		}
		for n := range closers {
			begin(func() {
				for range delay {
					runtime.Gosched()
				}
				s := []*Session{a, b}[n*(i%3)/2%2] // some rounds one side, some both
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				select {
				case <-s.Done():
				default:
					t.Error("closed and not done")
				}
			})
		}
		ready.Wait()
		close(start)
		wg.Wait()
		<-a.Done()
		<-b.Done()
		require.Zero(t, a.conn.Load().pulls.Len())
		require.Zero(t, b.conn.Load().pulls.Len())
	}
	rounds := 0
	for begun := time.Now(); rounds < *raceRounds || *raceRounds == 0 &&
		(rounds < 20 || time.Since(begun) < 4*time.Second && !testing.Short()); rounds++ {
		round(rounds)
		if t.Failed() {
			t.Fatalf("round %d", rounds)
		}
	}
	t.Logf("FIGURE %d rounds: %d pulls answered, %d ended by the close, %d of %d pushes handled", rounds,
		answered.Load(), failed.Load(), pushed.Load(), pushes.Load())
	require.NotZero(t, answered.Load())
	require.NotZero(t, failed.Load())
	require.Zero(t, srv.CountSession())
	require.Zero(t, cli.CountSession())
	require.NoError(t, srv.Shutdown(t.Context())) // waits for the handlers
	require.NoError(t, cli.Shutdown(t.Context()))
	require.LessOrEqual(t, handled.Load(), made.Load())
	require.LessOrEqual(t, pushed.Load(), pushes.Load())
	for _, p := range []*Peer{srv, cli} { // a flusher whose connection has failed may still be ending
		require.Eventually(t, func() bool { return p.memory() == 0 }, 10*time.Second, time.Millisecond,
			"the budget leaks")
	}
}

// claim lets n goroutines take one id at once, each for one of the sessions in
// turn, and returns the errors.
func claim(sessions []*Session, n int, take func(*Session) error) []error {
	errs := make([]error, n)
	var wg, ready sync.WaitGroup
	start := make(chan struct{})
	ready.Add(n)
	for i := range n {
		wg.Go(func() {
			ready.Done()
			<-start
			errs[i] = take(sessions[i%len(sessions)])
		})
	}
	ready.Wait()
	close(start)
	wg.Wait()
	return errs
}

const claims = 10_000

// rivals makes sessions of srv's with others, one for each of n.
func rivals(t *testing.T, srv *Peer, n int) []*Session {
	cli := newTestPeer(t, nil)
	pullFn(cli, echo)
	sessions := make([]*Session, n)
	for i := range sessions {
		sessions[i], _ = connect(t, srv, cli, pipe.Options{Buffer: 1 << 10})
	}
	return sessions
}

// Ten thousand sessions want one id at the same time: one gets it, all others
// keep their own and live.
func TestChangeIdHasOneOwner(t *testing.T) {
	for _, n := range []int{100, claims} {
		srv := newTestPeer(t, nil)
		sessions := rivals(t, srv, n)
		before := make([]string, n)
		for i, s := range sessions {
			before[i] = s.Id()
		}
		errs := claim(sessions, claims, func(s *Session) error { return s.ChangeId("one") })
		owner, ok := srv.GetSession("one")
		require.True(t, ok)
		for i, err := range errs {
			s := sessions[i%n]
			if s == owner {
				require.NoError(t, err)
				require.Equal(t, "one", s.Id())
				continue
			}
			require.ErrorIs(t, err, ErrIdTaken)
			require.Equal(t, before[i%n], s.Id())
		}
		for i, s := range sessions {
			if s != owner {
				same, ok := srv.GetSession(before[i])
				require.True(t, ok)
				require.Same(t, s, same)
			}
		}
		require.Equal(t, n, srv.CountSession())
		for _, s := range []*Session{owner, sessions[0], sessions[n-1]} {
			requireAlive(t, s)
		}
		// The id is free again when its owner has gone.
		require.NoError(t, owner.Close())
		other := sessions[0]
		if other == owner {
			other = sessions[1]
		}
		require.NoError(t, other.ChangeId("one"))
		requireAlive(t, other)
		require.NoError(t, srv.Close())
	}
}

// Ten thousand sessions take one id from each other: the last one has it, all
// others are closed.
func TestReplaceIdHasOneOwner(t *testing.T) {
	srv := newTestPeer(t, nil)
	sessions := rivals(t, srv, claims)
	for i, err := range claim(sessions, claims, func(s *Session) error { return s.ReplaceId("one") }) {
		require.NoError(t, err, "%d: each is the owner for a moment", i)
	}
	owner, ok := srv.GetSession("one")
	require.True(t, ok)
	for _, s := range sessions {
		if s != owner {
			<-s.Done()
		}
	}
	require.Equal(t, 1, srv.CountSession())
	require.Equal(t, "one", owner.Id())
	requireAlive(t, owner)
}

// Sessions change to few ids, replace each other, close and look each other up, all
// at once: an id has never two owners.
func TestIdsHaveOneOwnerInAllConfusion(t *testing.T) {
	const ids = 5
	srv := newTestPeer(t, nil)
	sessions := rivals(t, srv, 300)
	var wg sync.WaitGroup
	var replaced atomic.Int32
	for i, s := range sessions {
		wg.Go(func() {
			for n := range 30 {
				id := fmt.Sprint("id ", (i+n)%ids)
				var err error
				switch {
				case i%10 == 9 && n == 20:
					err = s.ReplaceId(id)
					replaced.Add(1)
				case i%10 == 8 && n == 25:
					err = s.Close()
				default:
					err = s.ChangeId(id)
				}
				if err != nil && !errors.Is(err, ErrIdTaken) {
					select {
					case <-s.Done():
						return // another has taken its id
					default:
						// It was taken from the table of sessions and is about to be closed.
						<-s.Done()
						return
					}
				}
				if found, ok := srv.GetSession(id); ok {
					_ = found.Id()
				}
			}
		})
	}
	wg.Wait()
	require.Positive(t, replaced.Load())
	owners := map[string]*Session{}
	srv.RangeSession(func(s *Session) bool {
		require.Nil(t, owners[s.Id()])
		owners[s.Id()] = s
		found, ok := srv.GetSession(s.Id())
		require.True(t, ok)
		require.Same(t, s, found)
		return true
	})
	for _, s := range sessions {
		select {
		case <-s.Done():
		default:
			require.Same(t, s, owners[s.Id()])
		}
	}
	for _, s := range owners {
		requireAlive(t, s)
	}
}
