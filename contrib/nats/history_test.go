package nats_test

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/contrib/nats"
	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/plugin/follow"
)

// fan is a client that follows a room, on whichever server it is connected.
type fan struct {
	*follow.Follower
	peer *tp.Peer
	sess *tp.Session // its side

	mu  sync.Mutex
	got []string // "afresh" where it had to start afresh
}

func newFan(t testing.TB) *fan {
	f := new(fan)
	f.Follower = follow.New(follow.Afresh(func(*tp.Session, string) { f.add("afresh") }))
	f.peer = tp.NewPeer(nil, f.Follower)
	tp.HandlePush(f.peer.PushRouter, "/note", func(_ tp.PushCtx, text *string) { f.add(*text) })
	t.Cleanup(func() { f.peer.Close() })
	return f
}

func (f *fan) add(text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.got = append(f.got, text)
}

func (f *fan) all() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.got)
}

// join connects the client to the server and has it join the room where it has stopped.
func (f *fan) join(t testing.TB, n *node, room *nats.Group) tp.Recovery {
	a, b := pipe.New(pipe.Options{})
	there, err := n.peer.ServeConn(a)
	require.NoError(t, err)
	f.sess, err = f.peer.DialConn(context.Background(), b)
	require.NoError(t, err)
	rec, err := room.JoinAt(there, f.Position("room"))
	require.NoError(t, err)
	return rec
}

func (f *fan) leave() {
	_ = f.sess.Close()
}

func (f *fan) await(t testing.TB, want []string) {
	t.Helper()
	eventually(t, func() bool { return len(f.all()) >= len(want) }, "%d of %d", len(f.all()), len(want))
	require.Equal(t, want, f.all())
}

func texts(from, to int) (list []string) {
	for i := from; i <= to; i++ {
		list = append(list, fmt.Sprint(i))
	}
	return list
}

func pushTexts(t testing.TB, room *nats.Group, from, to int) {
	for _, text := range texts(from, to) {
		require.Nil(t, room.Push("/note", text).Err)
	}
}

// kept is a room with a history on each of the nodes.
func kept(all []*node, size int, age time.Duration) (rooms []*nats.Group) {
	for _, n := range all {
		rooms = append(rooms, n.Group("room", nats.History(size, age)))
	}
	return rooms
}

// A member gets what it has missed, on whichever server it comes back, in order and once; and all members
// get all pushes in one order.
func TestCatchUp(t *testing.T) {
	b := startBroker(t)
	all := nodes(t, 3, nats.URL(b.ClientURL()))
	rooms := kept(all, 100, time.Hour)
	stays, goes := newFan(t), newFan(t)
	stays.join(t, all[0], rooms[0])
	rec := goes.join(t, all[1], rooms[1])
	require.False(t, rec.Afresh)
	for i := range 30 {
		pushTexts(t, rooms[i%3], i, i)
	}
	stays.await(t, texts(0, 29))
	goes.await(t, texts(0, 29))
	goes.leave()
	pushTexts(t, rooms[2], 30, 39)
	rec = goes.join(t, all[2], rooms[2]) // where no member was before
	require.Equal(t, 10, rec.Pushes)
	require.False(t, rec.Afresh)
	goes.await(t, texts(0, 39))
	goes.leave()
	pushTexts(t, rooms[0], 40, 49)
	stays.await(t, texts(0, 49))
	rec = goes.join(t, all[0], rooms[0]) // which remembers what it has given its members
	require.Equal(t, 10, rec.Pushes)
	pushTexts(t, rooms[1], 50, 50)
	goes.await(t, texts(0, 50))
	stays.await(t, texts(0, 50))
	require.Equal(t, stays.Position("room"), goes.Position("room"))
	// Again, with nothing missed.
	goes.leave()
	rec = goes.join(t, all[1], rooms[1])
	require.Equal(t, tp.Recovery{Position: goes.Position("room")}, rec)
}

// While the broker is asked for what a member has missed the others get their pushes, also if it is more than
// a server remembers.
func TestOthersDoNotWaitForWhoCatchesUp(t *testing.T) {
	for _, size := range []int{10, 50_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			b := startBroker(t)
			all := nodes(t, 1, nats.URL(b.ClientURL()))
			all = append(all, newNode(t, &tp.PeerConfig{MaxSessionOutput: 64 << 20}, nats.URL(b.ClientURL()),
				nats.Ask(patience)))
			rooms := kept(all, 200, time.Hour)
			text := func(from, to int) (list []string) {
				for _, s := range texts(from, to) {
					list = append(list, s+strings.Repeat("x", size))
				}
				return list
			}
			push := func(from, to int) {
				for _, s := range text(from, to) {
					require.Nil(t, rooms[0].Push("/note", s).Err)
				}
			}
			missed, stays := newFan(t), newFan(t)
			missed.join(t, all[0], rooms[0])
			push(0, 0)
			missed.await(t, text(0, 0))
			missed.leave()
			push(1, 100)
			stays.join(t, all[1], rooms[1])
			reads, release := make(chan struct{}), make(chan struct{})
			var first sync.Once
			all[1].BeforeReads(func() {
				first.Do(func() { close(reads) })
				<-release
			})
			joined := make(chan tp.Recovery)
			go func() { joined <- missed.join(t, all[1], rooms[1]) }()
			<-reads
			push(101, 110)
			stays.await(t, text(101, 110))
			close(release)
			rec := <-joined
			require.False(t, rec.Afresh)
			require.Equal(t, 110, rec.Pushes)
			push(111, 111)
			missed.await(t, text(0, 111))
		})
	}
}

// Who says that it has got what nobody has pushed yet keeps no pushes waiting, and starts afresh.
func TestPositionOfNoPush(t *testing.T) {
	b := startBroker(t)
	n := nodes(t, 1, nats.URL(b.ClientURL()))[0]
	room := kept([]*node{n}, 100, time.Hour)[0]
	stays, liar := newFan(t), n.connect(t, "liar")
	stays.join(t, n, room)
	pushTexts(t, room, 0, 0)
	stays.await(t, texts(0, 0))
	release := n.Hold("room")
	at := stays.Position("room")
	at.Seq += 1000
	rec, err := room.JoinAt(liar.there, at) // does not wait for the turn of the pushes
	release()
	require.NoError(t, err)
	require.True(t, rec.Afresh)
}

// A member comes to a server that has not got yet what the member has: it misses nothing, and gets nothing
// twice.
func TestMemberAheadOfTheServer(t *testing.T) {
	b := startBroker(t)
	all := nodes(t, 2, nats.URL(b.ClientURL()))
	var rooms []*nats.Group
	for _, n := range all {
		rooms = append(rooms, n.Group("room", nats.History(100, time.Hour)))
	}
	f, slow := newFan(t), newFan(t)
	f.join(t, all[0], rooms[0])
	slow.join(t, all[1], rooms[1])
	release := all[1].Hold("room")
	require.Nil(t, rooms[0].Push("/note", "1").Err)
	f.await(t, texts(1, 1))
	f.leave()
	moved := make(chan tp.Recovery, 1)
	go func() { moved <- f.join(t, all[1], rooms[1]) }()
	select {
	case rec := <-moved:
		require.Fail(t, "it was not waited for", "%+v", rec)
	case <-time.After(50 * time.Millisecond): // what comes later is not found, and does not fail either
	}
	release()
	require.False(t, (<-moved).Afresh)
	require.Nil(t, rooms[0].Push("/note", "2").Err)
	f.await(t, texts(1, 2))
	slow.await(t, texts(1, 2))
}

// Pushes of several servers at once come in one order to all.
func TestOneOrder(t *testing.T) {
	b := startBroker(t)
	all := nodes(t, 3, nats.URL(b.ClientURL()))
	rooms := kept(all, 1000, time.Hour)
	var fans []*fan
	for i, n := range all {
		f := newFan(t)
		f.join(t, n, rooms[i])
		fans = append(fans, f)
	}
	const each = 50
	var wg sync.WaitGroup
	for i := range all {
		for j := range 3 {
			wg.Go(func() {
				for k := range each {
					if d := rooms[i].Push("/note", fmt.Sprint(i, j, k)); d.Err != nil {
						t.Error(d.Err)
					}
				}
			})
		}
	}
	wg.Wait()
	eventually(t, func() bool { return len(fans[0].all()) == 9*each })
	for _, f := range fans {
		f.await(t, fans[0].all())
	}
}

// Who was away for too much, or comes from another history, is told to start afresh.
func TestAfresh(t *testing.T) {
	b := startBroker(t)
	all := nodes(t, 2, nats.URL(b.ClientURL()))
	rooms := kept(all, 10, time.Hour)
	for name, at := range map[string]func(good tp.Position) tp.Position{
		"too much":      func(good tp.Position) tp.Position { return good },
		"another epoch": func(good tp.Position) tp.Position { return tp.Position{Epoch: "x", Seq: good.Seq} },
		"in the future": func(good tp.Position) tp.Position { good.Seq += 1000; return good },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFan(t)
			f.join(t, all[0], rooms[0])
			pushTexts(t, rooms[1], 1, 1)
			f.await(t, texts(1, 1))
			f.leave()
			eventually(t, func() bool { return rooms[0].Local().Len() == 0 })
			pushTexts(t, rooms[1], 2, 12)
			f.Set("room", at(f.Position("room")))
			rec := f.join(t, all[1], rooms[1])
			require.True(t, rec.Afresh)
			pushTexts(t, rooms[1], 13, 14)
			f.await(t, []string{"1", "afresh", "13", "14"})
			f.leave()
		})
	}
	t.Run("just not too much", func(t *testing.T) {
		f := newFan(t)
		f.join(t, all[0], rooms[0])
		pushTexts(t, rooms[1], 1, 1)
		f.await(t, texts(1, 1))
		f.leave()
		pushTexts(t, rooms[1], 2, 11)
		rec := f.join(t, all[1], rooms[1])
		require.False(t, rec.Afresh)
		require.Equal(t, 10, rec.Pushes)
		f.await(t, texts(1, 11))
	})
}

// What has become too old is not needed by who has missed nothing else.
func TestPushesThatAreTooOld(t *testing.T) {
	b := startBroker(t)
	all := nodes(t, 2, nats.URL(b.ClientURL()))
	rooms := kept(all, 10, time.Second)
	stays, goes := newFan(t), newFan(t)
	stays.join(t, all[0], rooms[0])
	goes.join(t, all[0], rooms[0])
	pushTexts(t, rooms[1], 1, 1)
	goes.await(t, texts(1, 1))
	goes.leave()
	js := b.jetStream(t)
	empty := func() {
		eventually(t, func() bool {
			s, err := js.Stream(within(t), "TP_teleport_10-1000")
			return err == nil && s.CachedInfo().State.Msgs == 0
		})
	}
	empty()
	rec := goes.join(t, all[0], rooms[0]) // where somebody was all the time
	require.False(t, rec.Afresh)
	goes.leave()
	rec = goes.join(t, all[1], rooms[1]) // nothing came since
	require.False(t, rec.Afresh)
	goes.leave()
	eventually(t, func() bool { return rooms[1].Local().Len() == 0 })
	pushTexts(t, rooms[1], 2, 3)
	empty()
	rec = goes.join(t, all[1], rooms[1])
	require.True(t, rec.Afresh)
}

// A push to the group of the server alone would have no place in the history: it fails, and nobody gets it.
func TestPushPastTheHistory(t *testing.T) {
	b := startBroker(t)
	all := nodes(t, 1, nats.URL(b.ClientURL()))
	rooms := kept(all, 10, time.Hour)
	f := newFan(t)
	f.join(t, all[0], rooms[0])
	d := rooms[0].Local().Push("/note", "past")
	require.ErrorContains(t, d.Err, "Hub.Group")
	d = rooms[0].Push("/note", "1", tp.WithMeta("tp-nats-at", "5.x"))
	require.Nil(t, d.Err)
	f.await(t, texts(1, 1))
	require.Error(t, all[0].Group("room", nats.History(11, time.Hour)).Join(f.sess), "another history")
	d = all[0].Group("room").Push("/note", "2") // the members' history counts
	require.Nil(t, d.Err)
	f.await(t, texts(1, 2))
	all[0].peer.Group("other", tp.History(5, time.Minute))
	err := all[0].Group("other", nats.History(5, time.Minute)).Join(all[0].connect(t, "c").there)
	require.ErrorContains(t, err, "another history")
}

// The broker comes back with the history that it had; pushes in between fail, or come later, and nobody gets
// any twice.
func TestHistoryAndBrokerRestart(t *testing.T) {
	b := startBroker(t)
	all := nodes(t, 2, nats.URL(b.ClientURL()))
	rooms := kept(all, 1000, time.Hour)
	stays, goes := newFan(t), newFan(t)
	stays.join(t, all[0], rooms[0])
	goes.join(t, all[1], rooms[1])
	pushTexts(t, rooms[0], 1, 10)
	stays.await(t, texts(1, 10))
	goes.await(t, texts(1, 10))
	goes.leave()
	b.stop()
	d := rooms[0].Push("/note", "lost")
	require.ErrorIs(t, d.Err, nats.ErrAway)
	b.start(t)
	for _, n := range all {
		eventually(t, n.Connected)
	}
	eventually(t, func() bool { return rooms[1].Push("/note", "11").Err == nil })
	pushTexts(t, rooms[0], 12, 20)
	goes.join(t, all[1], rooms[1])
	stays.await(t, texts(1, 20))
	goes.await(t, texts(1, 20))
}

// apart makes two nodes on a broker, of which the second one is connected by a line that can be cut.
func apart(t testing.TB, options ...nats.Option) (b *broker, l *line, all []*node) {
	b = startBroker(t)
	l = newLine(t, b)
	for _, url := range []string{b.ClientURL(), l.url()} {
		all = append(all, newNode(t, nil, append(options[:len(options):len(options)], nats.URL(url))...))
	}
	eventually(t, func() bool { return all[0].Connected() && all[1].Connected() })
	return b, l, all
}

// twoFans has two clients join the room on the second node, and get its first push.
func twoFans(t testing.TB, all []*node, rooms []*nats.Group) (stays, goes *fan) {
	stays, goes = newFan(t), newFan(t)
	stays.join(t, all[1], rooms[1])
	goes.join(t, all[1], rooms[1])
	pushTexts(t, rooms[0], 1, 1)
	stays.await(t, texts(1, 1))
	goes.await(t, texts(1, 1))
	return stays, goes
}

// Members whose server was cut off from the broker for more pushes than are kept have missed some for ever:
// they are told, although they were connected all the time, and so is who comes back to that server later.
func TestCutOffForTooLong(t *testing.T) {
	_, l, all := apart(t)
	rooms := kept(all, 5, time.Hour)
	stays, goes := twoFans(t, all, rooms)
	l.cutOff(t, all[1])
	goes.leave()
	pushTexts(t, rooms[0], 2, 20)
	l.mend(t)
	eventually(t, func() bool { return len(stays.all()) > 1 })
	pushTexts(t, rooms[0], 21, 22)
	stays.await(t, []string{"1", "afresh", "21", "22"})
	require.True(t, goes.join(t, all[1], rooms[1]).Afresh)
}

// A server reads what its members have missed in parts, of which each counts when it was read: however many
// there are, and however slow the broker is, it comes to an end.
func TestMissedInParts(t *testing.T) {
	_, l, all := apart(t)
	rooms := kept(all, 2000, time.Hour)
	f := newFan(t)
	f.join(t, all[1], rooms[1])
	l.cutOff(t, all[1])
	pushTexts(t, rooms[0], 1, 1200)
	l.mend(t)
	f.await(t, texts(1, 1200))
	pushTexts(t, rooms[0], 1201, 1202)
	f.await(t, texts(1, 1202))
}

// A stream that is gone, as its disk was, is another history: all members start afresh, those who stay too.
func TestHistoryLost(t *testing.T) {
	b := startBroker(t)
	all := nodes(t, 2, nats.URL(b.ClientURL()))
	rooms := kept(all, 1000, time.Hour)
	f := newFan(t)
	f.join(t, all[0], rooms[0])
	pushTexts(t, rooms[0], 1, 10)
	f.await(t, texts(1, 10))
	b.stop()
	b.opts.StoreDir = t.TempDir()
	b.start(t)
	for _, n := range all {
		eventually(t, n.Connected)
	}
	eventually(t, func() bool { return len(f.all()) > 10 && f.all()[10] == "afresh" })
	eventually(t, func() bool { return rooms[1].Push("/note", "11").Err == nil })
	f.await(t, append(texts(1, 10), "afresh", "11"))
}

// A stream that has a bound in all, of the hubs or of who runs the broker, loses pushes to one group by those
// to others, however young they are. Who has missed them is told, also members that were cut off with their
// server.
func TestBoundedStream(t *testing.T) {
	const name, most = "TP_teleport_1000-3600000", 64 << 10
	for who, bound := range map[string]func(cfg *jetstream.StreamConfig){
		"the hubs":                   func(*jetstream.StreamConfig) {},
		"somebody else, by bytes":    func(cfg *jetstream.StreamConfig) { cfg.MaxBytes = most },
		"somebody else, by messages": func(cfg *jetstream.StreamConfig) { cfg.MaxMsgs = 5 },
		"somebody else, by messages of a subject": func(cfg *jetstream.StreamConfig) {
			cfg.MaxMsgsPerSubject = 3
		},
		"somebody else, by age": func(cfg *jetstream.StreamConfig) {
			cfg.MaxAge, cfg.Duplicates = time.Second, time.Second
		},
	} {
		t.Run(who, func(t *testing.T) {
			byBytes := who == "the hubs" || who == "somebody else, by bytes"
			var options []nats.Option
			if who == "the hubs" {
				options = append(options, nats.MaxHistoryBytes(most))
			}
			b, l, all := apart(t, options...)
			rooms := kept(all, 1000, time.Hour)
			other := all[0].Group("other", nats.History(1000, time.Hour))
			require.Nil(t, other.Push("/note", "the first of the stream").Err)
			stays, goes := twoFans(t, all, rooms)
			js := b.jetStream(t)
			stream := func() *jetstream.StreamInfo {
				s, err := js.Stream(within(t), name)
				require.NoError(t, err)
				return s.CachedInfo()
			}
			config := func() jetstream.StreamConfig { return stream().Config }
			if who != "the hubs" {
				cfg := config()
				cfg.Description = "bounded"
				bound(&cfg)
				_, err := js.UpdateStream(within(t), cfg)
				require.NoError(t, err)
			}
			if byBytes {
				require.EqualValues(t, most, config().MaxBytes)
			}

			l.cutOff(t, all[1])
			goes.leave()
			pushTexts(t, rooms[0], 2, 10)
			switch {
			case byBytes:
				for range 10 {
					require.Nil(t, other.Push("/note", strings.Repeat("x", most/8)).Err)
				}
			case config().MaxAge < time.Hour:
				eventually(t, func() bool { return stream().State.Msgs == 0 })
			}
			l.mend(t)
			eventually(t, func() bool { return len(stays.all()) > 1 })
			pushTexts(t, rooms[0], 11, 11)
			stays.await(t, []string{"1", "afresh", "11"})
			require.True(t, goes.join(t, all[0], rooms[0]).Afresh)
			if !byBytes {
				return
			}

			// A hub that is told nothing of it leaves the bound as it is, one with another bound sets that.
			told := func(more ...nats.Option) jetstream.StreamConfig {
				n := newNode(t, nil, append(more, nats.URL(b.ClientURL()))...)
				eventually(t, n.Connected)
				pushTexts(t, kept([]*node{n}, 1000, time.Hour)[0], 12, 12)
				return config()
			}
			before := config()
			require.Equal(t, before, told())
			require.Equal(t, before, told(nats.MaxHistoryBytes(most), nats.Replicas(1)))
			after := told(nats.MaxHistoryBytes(2 * most))
			require.EqualValues(t, 2*most, after.MaxBytes)
			require.Equal(t, before.Description, after.Description)
			// One whose bound the broker refuses goes on with what there is.
			require.Equal(t, after, told(nats.MaxHistoryBytes(math.MaxInt64), nats.Replicas(5)))
		})
	}
}

// A stream that the broker does not make is an error that says why, and no word of a broker that is away.
func TestRefusedStream(t *testing.T) {
	b := startBroker(t)
	n := newNode(t, nil, nats.URL(b.ClientURL()), nats.MaxHistoryBytes(math.MaxInt64))
	eventually(t, n.Connected)
	room := n.Group("room", nats.History(10, time.Hour))
	_, err := room.JoinAt(n.connect(t, "a").there, tp.Position{})
	for what, err := range map[string]error{
		"group \"room\" has not been joined": err,
		"nothing was sent":                   room.Push("/note", 1).Err,
	} {
		require.ErrorContains(t, err, what)
		require.ErrorContains(t, err, "insufficient")
		require.NotErrorIs(t, err, nats.ErrAway)
		require.True(t, tp.NotRun(err))
	}
}

// A stream that somebody has deleted, and another server made again, is another history, also for a server
// that has lost no connection and hears of it by a push with a number that it had before.
func TestStreamReplaced(t *testing.T) {
	b := startBroker(t)
	all := nodes(t, 2, nats.URL(b.ClientURL()))
	rooms := kept(all, 1000, time.Hour)
	f := newFan(t)
	f.join(t, all[0], rooms[0])
	pushTexts(t, rooms[0], 1, 10)
	f.await(t, texts(1, 10))
	js := b.jetStream(t)
	require.NoError(t, js.DeleteStream(within(t), "TP_teleport_1000-3600000"))
	fresh := newNode(t, nil, nats.URL(b.ClientURL()))
	eventually(t, fresh.Connected)
	made := kept([]*node{fresh}, 1000, time.Hour)[0]
	pushTexts(t, made, 11, 11) // it makes the stream
	eventually(t, func() bool { return len(f.all()) > 10 && f.all()[10] == "afresh" })
	pushTexts(t, made, 12, 12)
	f.await(t, append(texts(1, 10), "afresh", "12"))
}

// Of a cluster of three any one may be killed while there are pushes: nobody gets one twice, and all get
// those that did not fail, in one order.
func TestHistoryAndNodeKilled(t *testing.T) {
	list := cluster(t, 3)
	all := nodes(t, 3, nats.URL(urls(list)), nats.Replicas(3))
	rooms := kept(all, 10_000, time.Hour)
	var fans []*fan
	for i, n := range all {
		f := newFan(t)
		f.join(t, n, rooms[i])
		fans = append(fans, f)
	}
	var mu sync.Mutex
	good, unsure := map[string]bool{}, map[string]bool{}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() {
			for j := 0; ; j++ {
				select {
				case <-stop:
					return
				default:
				}
				text := fmt.Sprint(i, "-", j)
				d := rooms[i].Push("/note", text)
				mu.Lock()
				switch {
				case d.Err == nil:
					good[text] = true
				case !tp.NotRun(d.Err):
					unsure[text] = true
				}
				mu.Unlock()
			}
		})
	}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(good)
	}
	eventually(t, func() bool { return count() > 100 })
	for _, b := range list {
		if b.JetStreamIsStreamLeader(server.DEFAULT_GLOBAL_ACCOUNT, "TP_teleport_10000-3600000") {
			b.stop()
			break
		}
	}
	killed := count()
	eventually(t, func() bool { return count() > killed+100 })
	close(stop)
	wg.Wait()
	for _, f := range fans {
		eventually(t, func() bool {
			seen := map[string]bool{}
			for _, text := range f.all() {
				seen[text] = true
			}
			for text := range good {
				if !seen[text] {
					return false
				}
			}
			return true
		}, "%d of %d", len(f.all()), len(good))
	}
	for _, f := range fans {
		seen := map[string]bool{}
		for _, text := range f.all() {
			require.False(t, seen[text], "%s twice", text)
			require.True(t, good[text] || unsure[text], text)
			seen[text] = true
		}
	}
	for _, f := range fans[1:] {
		f.await(t, fans[0].all())
	}
	t.Logf("%d pushes, of %d it is not known whether they were kept", len(good), len(unsure))
}

// Without a broker a history is that of the peer.
func TestHistoryWithoutABroker(t *testing.T) {
	n := newNode(t, nil)
	rooms := kept([]*node{n}, 100, time.Hour)
	f := newFan(t)
	f.join(t, n, rooms[0])
	pushTexts(t, rooms[0], 1, 5)
	f.await(t, texts(1, 5))
	f.leave()
	pushTexts(t, rooms[0], 6, 10)
	rec := f.join(t, n, rooms[0])
	require.Equal(t, 5, rec.Pushes)
	f.await(t, texts(1, 10))
}
