package tp

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
)

func TestPosition(t *testing.T) {
	for _, p := range []Position{{}, {"abc", 0}, {"x.y", 1<<64 - 1}} {
		b, err := json.Marshal(map[string]any{"at": p})
		require.NoError(t, err)
		var got struct{ At Position }
		require.NoError(t, json.Unmarshal(b, &got))
		require.Equal(t, p, got.At)
	}
	for _, bad := range []string{"1", "1.", ".x", "-1.x", "x.1", "18446744073709551616.x"} {
		_, err := ParsePosition(bad)
		require.ErrorContains(t, err, "a number, a dot and an epoch were expected", bad)
	}
}

// numbersSince returns the numbers of the pushes that the log has after the position.
func numbersSince(t *testing.T, l HistoryLog, at Position) (list []uint64, ok bool) {
	all, ok, err := l.Since(at)
	require.NoError(t, err)
	for _, p := range all {
		require.Equal(t, at.Epoch, p.At.Epoch)
		list = append(list, p.At.Seq)
	}
	return list, ok
}

// A history in memory has so many pushes, for so long and of so many bytes, and says when some are not there.
func TestMemoryHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := memory{}.Open("g", 3, time.Minute).(*memoryLog)
		begin, err := l.Last()
		require.NoError(t, err)
		require.Zero(t, begin.Seq)
		other, _ := memory{}.Open("g", 3, time.Minute).Last()
		require.NotEqual(t, begin.Epoch, other.Epoch)
		at := func(n uint64) Position { return Position{begin.Epoch, n} }
		add := func(body int) {
			last, err := l.Last()
			require.NoError(t, err)
			got, err := l.Append(StoredPush{Uri: "/x", Body: make([]byte, body)})
			require.NoError(t, err)
			require.Equal(t, at(last.Seq+1), got)
		}
		check := func(from uint64, ok bool, want ...uint64) {
			t.Helper()
			list, got := numbersSince(t, l, at(from))
			require.Equal(t, ok, got)
			require.Equal(t, want, list)
		}
		check(0, true)
		check(1, false)
		add(1)
		add(1)
		check(0, true, 1, 2)
		check(1, true, 2)
		check(2, true)
		check(3, false)
		_, ok := numbersSince(t, l, Position{"other", 1})
		require.False(t, ok)
		time.Sleep(30 * time.Second)
		add(1)
		add(1)
		check(0, false) // 1 is gone
		check(1, true, 2, 3, 4)
		time.Sleep(30 * time.Second)
		check(1, false) // 2 is too old
		check(2, true, 3, 4)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		require.Zero(t, l.bytes)
		require.Nil(t, l.items, "the memory is given back by itself")
		check(3, false)
		check(4, true)
		add(maxHistoryBytes / 2)
		add(maxHistoryBytes / 2)
		check(4, false)
		check(5, true, 6)
		add(2 * maxHistoryBytes)
		check(6, true, 7)
		time.Sleep(time.Hour)
	})
}

// failingStore fails when it is told to.
type failingStore struct {
	HistoryLog
	err  error
	what func() // instead
}

func (s *failingStore) Open(string, int, time.Duration) HistoryLog { return s }
func (s *failingStore) Append(p StoredPush) (Position, error) {
	if s.what != nil {
		s.what()
	}
	if s.err != nil {
		return Position{}, s.err
	}
	return s.HistoryLog.Append(p)
}
func (s *failingStore) Last() (Position, error) {
	if s.what != nil {
		s.what()
	}
	if s.err != nil {
		return Position{}, s.err
	}
	return s.HistoryLog.Last()
}

// A store that fails is an error of what needs it, and of nothing else.
func TestHistoryStoreThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
		var got texts
		cli.PushRouter.SetUnknown(func(ctx UnknownPushCtx, body *[]byte) {
			got.add(ctx.Uri(), string(*body), ctx.Meta()[MetaGroup])
		})
		sess, _ := connect(t, srv, cli, pipe.Options{})
		store := &failingStore{HistoryLog: memory{}.Open("", 10, time.Minute)}
		g := srv.Group("room", HistoryIn(store, 10, time.Minute))
		store.err = errors.New("the disk is full")
		_, err := g.JoinAt(sess, Position{})
		require.ErrorContains(t, err, "the disk is full")
		require.Zero(t, g.Len())
		require.NoError(t, g.Join(sess))
		d := g.Push("/x", 1)
		require.ErrorContains(t, d.Err, "the group's history has not kept the push: the disk is full")
		require.True(t, NotRun(d.Err))
		require.Zero(t, d.Queued)
		store.err = nil
		require.Equal(t, Delivery{Queued: 1}, g.Push("/x", 2, WithMeta("k", "v")))
		require.Equal(t, []string{"/x j2 room"}, got.list())
		list, ok := numbersSince(t, store, Position{})
		require.False(t, ok)
		require.Empty(t, list)
		last, _ := store.Last()
		all, ok, err := store.Since(Position{last.Epoch, 0})
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, []StoredPush{{At: last, Uri: "/x", Meta: map[string]string{"k": "v"},
			HeaderCodec: "protobuf", Body: packet.RawBody("j2")}}, all)
	})
}

// farStore numbers pushes as a stream of a broker does that has others between: it is told their numbers
// beside the pushes.
type farStore struct {
	list []StoredPush
}

func (s *farStore) Open(string, int, time.Duration) HistoryLog { return s }

func (s *farStore) Append(p StoredPush) (Position, error) {
	if _, err := fmt.Sscan(p.Meta["number"], &p.At.Seq); err != nil {
		return Position{}, err
	}
	delete(p.Meta, "number")
	p.At.Epoch = "far"
	s.list = append(s.list, p)
	return p.At, nil
}

func (s *farStore) Since(at Position) (list []StoredPush, ok bool, err error) {
	for _, p := range s.list {
		if p.At.Seq > at.Seq {
			list = append(list, p)
		}
	}
	return list, true, nil
}

func (s *farStore) Last() (Position, error) {
	at := Position{Epoch: "far"}
	for _, p := range s.list {
		at = p.At
	}
	return at, nil
}

// Numbers of a history may have gaps, and what is put into a push for its store alone does not go to members.
func TestHistoryWithGaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
		var got texts
		cli.PushRouter.SetUnknown(func(ctx UnknownPushCtx, body *[]byte) {
			got.add(string(*body), ctx.Meta()[MetaAt], fmt.Sprint(len(ctx.Meta())))
		})
		sess, _ := connect(t, srv, cli, pipe.Options{})
		g := srv.Group("room", HistoryIn(new(farStore), 10, time.Minute))
		require.NoError(t, g.Join(sess))
		for i, number := range []string{"5", "70", "71"} {
			require.Nil(t, g.Push("/x", i, WithMeta("number", number)).Err)
		}
		rec, err := g.JoinAt(sess, Position{"far", 5})
		require.NoError(t, err)
		require.Equal(t, Recovery{Position: Position{"far", 71}, Pushes: 2}, rec)
		require.Equal(t, []string{"j0 5.far 2", "j1 70.far 2", "j2 71.far 2", "j1 70.far 2", "j2 71.far 2"},
			got.list())
	})
}

// A store that panics, or ends the goroutine, fails what needs it, and the group goes on.
func TestHistoryStoreThatPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		captureLog(t, LevelCritical)
		srv := newTestPeer(t, nil)
		sess, _ := connect(t, srv, newTestPeer(t, nil), pipe.Options{})
		store := &failingStore{HistoryLog: memory{}.Open("", 10, time.Minute)}
		g := srv.Group("room", HistoryIn(store, 10, time.Minute))
		for _, what := range []func(){func() { panic("oh") }, runtime.Goexit} {
			store.what = what
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = g.Push("/x", 1)
			}()
			<-done
			go func() { _, _ = g.JoinAt(sess, Position{}) }()
			synctest.Wait()
			require.Zero(t, g.Len())
			store.what = nil
			require.Nil(t, g.Push("/x", 1).Err)
		}
		store.what = func() { panic("oh") }
		require.ErrorContains(t, g.Push("/x", 1).Err, "the history has panicked")
		_, err := g.JoinAt(sess, Position{})
		require.ErrorContains(t, err, "the history has panicked")
	})
}

func TestMistakesWithHistory(t *testing.T) {
	srv := newTestPeer(t, nil)
	for _, f := range []func(){
		func() { History(0, time.Minute) },
		func() { History(1, 0) },
		func() { HistoryIn(nil, 1, time.Minute) },
	} {
		func() {
			defer func() { require.Contains(t, fmt.Sprint(recover()), "were expected") }()
			f()
		}()
	}
	_, err := srv.Group("room").JoinAt(dial(t, srv, newTestPeer(t, nil)), Position{})
	require.ErrorContains(t, err, `JoinAt of group "room": the group has no history`)
	_, err = srv.Group("room", History(1, time.Minute)).JoinAt(nil, Position{})
	require.ErrorContains(t, err, "the session is nil")
}

// A group with a history stays for the history's age after its last member has left.
func TestGroupStaysForItsHistory(t *testing.T) {
	srv := newTestPeer(t, nil)
	sess := dial(t, srv, newTestPeer(t, nil))
	func() {
		g := srv.Group("room", History(10, time.Hour))
		_, err := g.JoinAt(sess, Position{})
		require.NoError(t, err)
		require.Nil(t, g.Push("/x", 1).Err)
		g.Leave(sess)
	}()
	for range 5 {
		runtime.GC()
	}
	rec, err := srv.Group("room").JoinAt(sess, Position{})
	require.NoError(t, err)
	require.EqualValues(t, 1, rec.Position.Seq)
	g := srv.Group("room")
	rec, err = g.JoinAt(sess, Position{rec.Position.Epoch, 0})
	require.NoError(t, err, "a member joins again, and gets what there was before")
	require.Equal(t, Recovery{Position: rec.Position, Pushes: 1}, rec)
	rec, err = g.JoinAt(sess, Position{"another", 1})
	require.NoError(t, err)
	require.True(t, rec.Afresh)
	require.Equal(t, 1, g.Len())
}
