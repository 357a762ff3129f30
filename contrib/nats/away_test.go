package nats_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/contrib/nats"
)

// While the broker is away the sessions of a server go on, and what needs others says so. When it is back
// all is as before, also what was joined and added meanwhile.
func TestBrokerRestart(t *testing.T) {
	b := startBroker(t)
	all := nodes(t, 2, nats.URL(b.ClientURL()))
	here, there := all[0].connect(t, "here", "ada"), all[1].connect(t, "there", "bob")
	for i, c := range []*client{here, there} {
		serveEcho(c.peer)
		require.NoError(t, all[i].Group("room").Join(c.there))
	}
	b.stop()
	for _, n := range all {
		eventually(t, func() bool { return !n.Connected() })
	}
	for _, x := range []tp.Xerror{
		all[0].Session("there").Pull(within(t), "/echo", 1, nil),
		all[0].Identity("bob").Push(within(t), "/note", "x"),
	} {
		require.ErrorIs(t, x, nats.ErrAway)
		require.Equal(t, tp.StatusServiceUnavailable, x.Code())
		require.True(t, tp.NotRun(x))
		_, ok := tp.Retryable(x)
		require.True(t, ok)
	}
	_, err := all[0].Group("room").Members(within(t))
	require.ErrorIs(t, err, nats.ErrAway)
	require.Nil(t, all[0].Session("here").Pull(within(t), "/echo", 1, nil))
	d := all[0].Group("room").Push("/note", "away")
	require.ErrorIs(t, d.Err, nats.ErrAway)
	require.Equal(t, 1, d.Queued)
	require.False(t, tp.NotRun(d.Err), "the members here have got it")
	here.awaitNotes(t, "away")
	late := all[1].connect(t, "late", "lee")
	require.NoError(t, all[1].Group("room2").Join(late.there))
	d = all[0].Group("kept", nats.History(5, time.Minute)).Push("/note", "x")
	require.ErrorIs(t, d.Err, nats.ErrAway)
	require.True(t, tp.NotRun(d.Err))
	require.ErrorIs(t, all[0].Group("kept", nats.History(5, time.Minute)).Join(here.there), nats.ErrAway)

	b.start(t)
	for _, n := range all {
		eventually(t, n.Connected)
	}
	for _, name := range []string{"there", "late"} {
		eventually(t, func() bool { return all[0].Session(name).Push(within(t), "/note", "back") == nil })
	}
	eventually(t, func() bool {
		list, err := all[0].Group("room").Members(within(t))
		return err == nil && len(list) == 2
	})
	require.Nil(t, all[0].Group("room").Push("/note", "all").Err)
	require.Nil(t, all[0].Group("room2").Push("/note", "late").Err)
	require.NoError(t, all[0].Group("kept", nats.History(5, time.Minute)).Join(here.there))
	there.awaitNotes(t, "back", "all")
	late.awaitNotes(t, "back", "late")
	here.awaitNotes(t, "away", "all")
}

// A hub may be made before its broker is there.
func TestBrokerComesLater(t *testing.T) {
	b := startBroker(t)
	url := b.ClientURL()
	b.stop()
	var all []*node
	for range 2 {
		all = append(all, newNode(t, nil, nats.URL(url)))
	}
	c := all[0].connect(t, "c")
	require.NoError(t, all[0].Group("room").Join(c.there))
	require.ErrorIs(t, all[1].Session("c").Push(within(t), "/note", "x"), nats.ErrAway)
	b.start(t)
	for _, n := range all {
		eventually(t, n.Connected)
	}
	eventually(t, func() bool { return all[1].Session("c").Push(within(t), "/note", "there") == nil })
	require.Nil(t, all[1].Group("room").Push("/note", "all").Err)
	c.awaitNotes(t, "there", "all")
}

// Pulls that wait when the broker is lost end: the outcome is unknown.
func TestBrokerLostDuringPull(t *testing.T) {
	b := startBroker(t)
	all := nodes(t, 2, nats.URL(b.ClientURL()))
	c := all[1].connect(t, "c")
	began, end := make(chan struct{}), make(chan struct{})
	tp.HandlePull(c.peer.PullRouter, "/wait", func(tp.PullCtx, *int) (int, tp.Xerror) {
		close(began)
		<-end
		return 0, nil
	})
	done := make(chan tp.Xerror)
	go func() { done <- all[0].Session("c").Pull(context.Background(), "/wait", 1, nil) }()
	<-began
	b.stop()
	x := <-done
	close(end)
	require.ErrorIs(t, x, nats.ErrAway)
	require.Equal(t, tp.StatusConnClosed, x.Code())
	require.False(t, tp.NotRun(x))
}

// A pull that takes long, without a deadline, waits for as long as the other server says that it runs; when
// that server is gone without a word the pull ends.
func TestServerLostDuringPull(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	beat := nats.Beat(300 * time.Millisecond)
	all := nodes(t, 1, nats.URL(b.ClientURL()), beat)
	nc := b.dial(t)
	other := newNode(t, nil, nats.Conn(nc), beat)
	c := other.connect(t, "c")
	began, end := make(chan struct{}), make(chan struct{})
	tp.HandlePull(c.peer.PullRouter, "/wait", func(tp.PullCtx, *int) (int, tp.Xerror) {
		began <- struct{}{}
		<-end
		return 7, nil
	})
	pull := func() chan tp.Xerror {
		done := make(chan tp.Xerror, 1)
		go func() { done <- all[0].Session("c").Pull(context.Background(), "/wait", 1, nil) }()
		<-began
		return done
	}
	done := pull()
	select { // for longer than a server that says nothing is waited for
	case x := <-done:
		t.Fatal(x)
	case <-time.After(2 * time.Second):
	}
	end <- struct{}{}
	require.Nil(t, <-done)
	done = pull()
	nc.Close()
	x := <-done
	close(end)
	require.Equal(t, tp.StatusConnClosed, x.Code())
	require.False(t, tp.NotRun(x))
}

// Of a cluster of three one is killed while there are pushes to a group without a history: nobody gets any
// twice, and when the hubs are connected again all get all.
func TestNodeKilled(t *testing.T) {
	list := cluster(t, 3)
	var all []*node
	for i, b := range list {
		// Each begins with another one.
		first := append(slices.Clone(list[i:]), list[:i]...)
		all = append(all, newNode(t, nil, nats.URL(urls(first)), nats.Name(b.Name())))
	}
	var members []*client
	for i, n := range all {
		eventually(t, func() bool { return n.Connected() && len(n.Servers()) == 3 })
		c := n.connect(t, fmt.Sprint("c", i))
		require.NoError(t, n.Group("room").Join(c.there))
		members = append(members, c)
	}
	var sent sync.Map
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				sent.Store(fmt.Sprint(i), all[0].Group("room").Push("/note", fmt.Sprint(i)).Err == nil)
				time.Sleep(100 * time.Microsecond) // a rate, nothing waits for it
			}
		}
	})
	eventually(t, func() bool { return len(members[1].notes()) > 100 })
	list[1].stop()
	eventually(t, all[1].Connected)
	eventually(t, func() bool {
		return all[0].Session("c1").Push(within(t), "/note", "again") == nil
	})
	before := len(members[1].notes())
	eventually(t, func() bool { return len(members[1].notes()) > before+100 })
	close(stop)
	wg.Wait()
	for _, n := range all {
		eventually(t, n.Connected)
	}
	eventually(t, func() bool { return all[0].Group("room").Push("/note", "end").Err == nil })
	for _, c := range members {
		eventually(t, func() bool { return slices.Contains(c.notes(), "end") })
		seen := map[string]bool{}
		for _, text := range c.notes() {
			require.False(t, seen[text], "%s twice", text)
			seen[text] = true
		}
	}
}

// Of two sessions with an identity the last one has it, on whichever server, and when that has ended the one
// before.
func TestConnectedTwice(t *testing.T) {
	b := startBroker(t)
	all := nodes(t, 3, nats.URL(b.ClientURL()))
	var list []*client
	for i, n := range []*node{all[0], all[1], all[0]} {
		list = append(list, n.connect(t, fmt.Sprint("c", i), "ada"))
	}
	number := 0
	// sendTo pushes to the identity from all servers until each of these pushes comes to the session.
	sendTo := func(want *client) {
		t.Helper()
		for _, from := range all {
			eventually(t, func() bool {
				number++
				text := fmt.Sprint(number)
				if from.Identity("ada").Push(within(t), "/note", text) != nil {
					return false
				}
				var got *client
				eventually(t, func() bool {
					for _, c := range list {
						if slices.Contains(c.notes(), text) {
							got = c
						}
					}
					return got != nil
				})
				return got == want
			})
		}
	}
	sendTo(list[2])
	list[2].there.Close()
	sendTo(list[1])
	list[1].there.Close()
	sendTo(list[0])
	list[0].there.Close()
	eventually(t, func() bool {
		x := all[2].Identity("ada").Push(within(t), "/note", "x")
		return x != nil && x.Code() == tp.StatusNotFound
	})
}

// An id that is there twice, as the client has come to another server before its old connection has ended:
// each call reaches one session only.
func TestIdTwice(t *testing.T) {
	b := startBroker(t)
	all := nodes(t, 3, nats.URL(b.ClientURL()))
	for range 10 {
		old := all[0].connect(t, "c")
		fresh := all[1].connect(t, "c")
		eventually(t, func() bool {
			n := len(fresh.notes())
			return all[0].Session("c").Push(within(t), "/note", "x") == nil && len(fresh.notes()) > n
		})
		before := len(old.notes()) + len(fresh.notes())
		for i := range 20 {
			require.Nil(t, all[i%3].Session("c").Push(within(t), "/note", "x"))
		}
		eventually(t, func() bool { return len(old.notes())+len(fresh.notes()) >= before+20 })
		require.Equal(t, before+20, len(old.notes())+len(fresh.notes()))
		fresh.there.Close()
		old.there.Close()
	}
}

// A server that goes away without a word gives its names back.
func TestNamesOfServerThatIsGone(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	beat := nats.Beat(300 * time.Millisecond)
	all := nodes(t, 2, nats.URL(b.ClientURL()), beat)
	nc := b.dial(t)
	gone := newNode(t, nil, nats.Conn(nc), beat)
	old := all[0].connect(t, "c1", "ada")
	gone.connect(t, "c2", "ada")
	require.Nil(t, all[1].Identity("ada").Push(within(t), "/note", "x"))
	require.Empty(t, old.notes())
	nc.Close()
	eventually(t, func() bool { return all[1].Identity("ada").Push(within(t), "/note", "y") == nil })
	old.awaitNotes(t, "y")
}

// A session that gets another id is known by it when it was added again.
func TestRenamed(t *testing.T) {
	b := startBroker(t)
	all := nodes(t, 2, nats.URL(b.ClientURL()))
	c := all[1].connect(t, "old", "ada", "lovelace")
	require.NoError(t, c.there.ChangeId("new"))
	require.ErrorIs(t, all[0].Session("old").Push(within(t), "/note", "x"), nats.ErrNotConnected)
	require.NoError(t, all[1].Add(c.there, "ada", "countess"))
	require.Nil(t, all[0].Session("new").Push(within(t), "/note", "1"))
	require.Nil(t, all[0].Identity("ada").Push(within(t), "/note", "2"))
	require.Nil(t, all[0].Identity("countess").Push(within(t), "/note", "3"))
	require.ErrorIs(t, all[0].Identity("lovelace").Push(within(t), "/note", "x"), nats.ErrNotConnected)
	c.awaitNotes(t, "1", "2", "3")
	all[1].Remove(c.there)
	require.ErrorIs(t, all[0].Session("new").Push(within(t), "/note", "x"), nats.ErrNotConnected)
}

// A broker that takes nothing, and does not close the connection either, holds up nobody for longer than the
// context allows. When it goes on all is well again.
func TestStuckBroker(t *testing.T) {
	b := startBroker(t)
	line := newLine(t, b)
	n := newNode(t, nil, nats.URL(line.url()))
	other := newNode(t, nil, nats.URL(b.ClientURL()))
	eventually(t, func() bool { return n.Connected() && len(n.Servers()) == 2 })
	there, here := other.connect(t, "there"), n.connect(t, "here")
	require.NoError(t, n.Group("room").Join(here.there))
	require.Nil(t, n.Session("there").Push(within(t), "/note", "before"))
	line.stop()
	large := strings.Repeat("x", 500_000)
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	notRun := atomic.Int64{}
	for range 50 { // more than all buffers take
		wg.Go(func() {
			x := n.Session("there").Push(ctx, "/nosuch", large)
			if assert.NotNil(t, x) && tp.NotRun(x) {
				notRun.Add(1)
			}
		})
	}
	wg.Wait()
	require.Positive(t, notRun.Load(), "what has not left is known not to have run")
	d := n.Group("room").Push("/note", "here")
	require.Equal(t, 1, d.Queued)
	here.awaitNotes(t, "here")
	line.goOn()
	eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		return n.Session("there").Push(ctx, "/note", "after") == nil
	})
	eventually(t, func() bool { return slices.Contains(there.notes(), "after") })
}

// What the broker does not take is an error with the numbers, on whichever way.
func TestMaxPayload(t *testing.T) {
	b := startBroker(t, func(o *server.Options) { o.MaxPayload = 10_000 })
	all := nodes(t, 2, nats.URL(b.ClientURL()))
	c := all[1].connect(t, "c")
	tp.HandlePull(c.peer.PullRouter, "/x", func(_ tp.PullCtx, n *int) (string, tp.Xerror) {
		return strings.Repeat("x", *n), nil
	})
	long := strings.Repeat("x", 20_000)
	for name, x := range map[string]tp.Xerror{
		"pull":         all[0].Session("c").Pull(within(t), "/x", long, nil),
		"push":         all[0].Session("c").Push(within(t), "/note", long),
		"group":        all[0].Group("room").Push("/note", long).Err,
		"with history": all[0].Group("kept", nats.History(5, time.Minute)).Push("/note", long).Err,
	} {
		require.NotNil(t, x, name)
		require.Equal(t, tp.StatusTooLarge, x.Code(), name)
		require.ErrorContains(t, x, "10000", name)
		require.True(t, tp.NotRun(x), name)
	}
	x := all[0].Session("c").Pull(within(t), "/x", 20_000, nil)
	require.Equal(t, tp.StatusTooLarge, x.Code())
	require.False(t, tp.NotRun(x), "it has run")
	require.Nil(t, all[0].Session("c").Pull(within(t), "/x", 5_000, nil))
}

// Whatever comes on the subjects of a service: nothing breaks, and who waits for an answer of this hub gets
// one.
func TestForeignMessages(t *testing.T) {
	b := startBroker(t)
	all := nodes(t, 2, nats.URL(b.ClientURL()))
	c := all[0].connect(t, "c")
	require.NoError(t, all[0].Group("room").Join(c.there))
	kept := all[0].Group("kept", nats.History(5, time.Minute))
	require.NoError(t, kept.Join(c.there))
	nc := b.dial(t)
	payloads := []string{"", "x", "tp", "tp\x01", "tp\x01\x01", "tp\x01\x01\xff",
		"tp\x01\x01\x00\x7f", "tp\x02\x01", "tp\x01\x01\x01\x01h\x01c\x01sxxxxxxxxxxx",
		"tp\x01\x06\x01\x01h\x04room\x03{}}", "tp\x01\x63\x00\x00\x00\x00",
		"tp\x01\x09\x00\x01h\x00\x03s\xff\xff", "tp\x01\x0a\x00\x01h\x00\x00", "tp\x01\x0b\x00\x01h\x00\x00",
		"tp\x01\x06\x01\x01h\x04room\x13{\"DropOldest\":-5555}\x00\x00\x00\x00"}
	for _, subject := range []string{"s.c", "g.room", "hubs", "n.5-60000.kept", "h.5-60000.kept"} {
		for _, p := range payloads {
			require.NoError(t, nc.PublishRequest("tp.teleport."+subject, "tp.teleport.r.x.5", []byte(p)))
			require.NoError(t, nc.Publish("tp.teleport."+subject, []byte(p)))
		}
	}
	require.NoError(t, nc.Flush())
	require.Nil(t, all[1].Session("c").Push(within(t), "/note", "1"))
	require.Nil(t, all[1].Group("room").Push("/note", "2").Err)
	require.Nil(t, kept.Push("/note", "3").Err)
	eventually(t, func() bool { return len(c.notes()) >= 3 })
	require.ElementsMatch(t, texts(1, 3), c.notes())
}

// A hub of another version has run nothing, and both sides know it.
func TestAnotherVersion(t *testing.T) {
	b := startBroker(t)
	n := nodes(t, 1, nats.URL(b.ClientURL()))[0]
	n.connect(t, "c")
	nc := b.dial(t)
	// As one of version 2 asks, and as it answers.
	sub, err := nc.SubscribeSync("tp.teleport.r.other.1")
	require.NoError(t, err)
	require.NoError(t, nc.PublishRequest("tp.teleport.s.c", "tp.teleport.r.other.1",
		[]byte("tp\x02\x01whatever")))
	m, err := sub.NextMsg(patience)
	require.NoError(t, err)
	require.Equal(t, "tp\x01\x03", string(m.Data[:4]))
	_, err = nc.QueueSubscribe("tp.teleport.s.theirs", "hubs", func(m *natsgo.Msg) {
		_ = m.Respond([]byte("tp\x02\x03"))
	})
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	x := n.Session("theirs").Pull(within(t), "/x", 1, nil)
	require.ErrorIs(t, x, nats.ErrVersion)
	require.Equal(t, tp.StatusNotImplemented, x.Code())
	require.True(t, tp.NotRun(x))
	require.ErrorContains(t, x, "version 2")
}

// More calls than a hub takes are refused and have not run.
func TestMaxCalls(t *testing.T) {
	b := startBroker(t)
	from := newNode(t, nil, nats.URL(b.ClientURL()))
	at := newNode(t, nil, nats.URL(b.ClientURL()), nats.MaxCalls(2))
	c := at.connect(t, "c")
	began, end := make(chan struct{}, 10), make(chan struct{})
	tp.HandlePull(c.peer.PullRouter, "/wait", func(tp.PullCtx, *int) (int, tp.Xerror) {
		began <- struct{}{}
		<-end
		return 0, nil
	})
	done := make(chan tp.Xerror, 2)
	for range 2 {
		go func() { done <- from.Session("c").Pull(within(t), "/wait", 1, nil) }()
		<-began
	}
	x := from.Session("c").Pull(within(t), "/wait", 1, nil)
	require.Equal(t, tp.StatusOverloaded, x.Code())
	require.True(t, tp.NotRun(x))
	close(end)
	require.Nil(t, <-done)
	require.Nil(t, <-done)
	require.Nil(t, from.Session("c").Pull(within(t), "/wait", 1, nil))
}

// The plugin has the hub know all sessions that the peer accepts, also those that were there before.
func TestAutomatic(t *testing.T) {
	b := startBroker(t)
	auto := nats.Automatic(func(sess *tp.Session) string { return "i" + sess.Id() })
	peer := tp.NewPeer(nil, named{}, auto)
	early := &client{peer: tp.NewPeer(nil)}
	defer early.peer.Close()
	connectTo(t, peer, early)
	hub, err := nats.New(peer, auto, nats.URL(b.ClientURL()))
	require.NoError(t, err)
	defer peer.Close()
	defer hub.Close()
	late := &client{peer: tp.NewPeer(nil)}
	defer late.peer.Close()
	connectTo(t, peer, late)
	other := newNode(t, nil, nats.URL(b.ClientURL()))
	for _, c := range []*client{early, late} {
		got := make(chan string, 2)
		tp.HandlePush(c.peer.PushRouter, "/note", func(_ tp.PushCtx, text *string) { got <- *text })
		require.Nil(t, other.Session(c.there.Id()).Push(within(t), "/note", "id"))
		require.Nil(t, other.Identity("i"+c.there.Id()).Push(within(t), "/note", "identity"))
		require.Equal(t, "id", <-got)
		require.Equal(t, "identity", <-got)
	}
}
