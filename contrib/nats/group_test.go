package nats_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/contrib/nats"
)

// A push to a group reaches all members on all servers once, whoever pushes.
func TestGroupPush(t *testing.T) {
	b := startBroker(t)
	all := nodes(t, 3, nats.URL(b.ClientURL()))
	var members []*client
	for i, n := range all {
		for j := range 3 {
			c := n.connect(t, fmt.Sprint("c", i, j))
			require.NoError(t, n.Group("room").Join(c.there))
			require.NoError(t, n.Group("room").Join(c.there), "again")
			members = append(members, c)
		}
	}
	outside := all[0].connect(t, "outside")
	other := all[1].connect(t, "other")
	require.NoError(t, all[1].Group("another").Join(other.there))
	var want []string
	for i, n := range all {
		for j := range 5 {
			text := fmt.Sprint(i, j)
			want = append(want, text)
			d := n.Group("room").Push("/note", text, tp.WithGzip(int32(j)))
			require.Nil(t, d.Err)
			require.Equal(t, 3, d.Queued)
		}
	}
	for _, c := range members {
		eventually(t, func() bool { return len(c.notes()) >= len(want) })
		got := c.notes()
		for i := range all { // those of one server in their order
			require.Equal(t, want[5*i:5*i+5], slices.DeleteFunc(slices.Clone(got), func(s string) bool {
				return !strings.HasPrefix(s, fmt.Sprint(i))
			}))
		}
		require.Len(t, got, len(want))
	}
	require.Empty(t, outside.notes())
	require.Empty(t, other.notes())

	// A server without members sends to those that have some.
	for _, c := range members[:3] {
		require.True(t, all[0].Group("room").Leave(c.there))
		require.False(t, all[0].Group("room").Leave(c.there))
	}
	require.Nil(t, all[0].Group("room").Push("/note", "last").Err)
	for _, c := range members[3:] {
		c.awaitNotes(t, append(slices.Clone(c.notes()[:len(want)]), "last")...)
	}
	for _, c := range members[:3] {
		require.Len(t, c.notes(), len(want))
	}
}

// Settings of the delivery count on every server.
func TestGroupSettings(t *testing.T) {
	b := startBroker(t)
	all := nodes(t, 2, nats.URL(b.ClientURL()))
	left, here, there := all[0].connect(t, "left"), all[0].connect(t, "here"), all[1].connect(t, "there")
	for _, c := range []*client{left, here} {
		require.NoError(t, all[0].Group("room").Join(c.there))
	}
	require.NoError(t, all[1].Group("room").Join(there.there))
	all[0].Group("room").Local().Batch(time.Hour)
	all[1].Group("room").Local().Batch(time.Hour)
	for i := range 10 {
		d := all[0].Group("room").Push("/note", fmt.Sprint(i), tp.Latest("k"), tp.Except(left.there),
			tp.WithMeta("a", "b"))
		require.Nil(t, d.Err)
	}
	all[0].Group("room").Local().Flush()
	here.awaitNotes(t, "9")
	eventually(t, func() bool {
		all[1].Group("room").Local().Flush()
		got := there.notes()
		return len(got) > 0 && got[len(got)-1] == "9"
	})
	require.Empty(t, left.notes())
}

// A hub listens to a group's pushes only while it has members of it.
func TestGroupSubscriptions(t *testing.T) {
	b := startBroker(t)
	n := newNode(t, nil, nats.URL(b.ClientURL()))
	idle := b.NumSubscriptions()
	for range 3 {
		c := n.connect(t, "c", "ada")
		require.NoError(t, n.Group("room").Join(c.there))
		require.Equal(t, idle+3, b.NumSubscriptions(), "an id, an identity and a group")
		d := n.connect(t, "d")
		require.NoError(t, n.Group("room").Join(d.there))
		require.Equal(t, idle+4, b.NumSubscriptions())
		c.there.Close()
		eventually(t, func() bool { return b.NumSubscriptions() == idle+2 })
		d.peer.Close() // as a client that goes away
		eventually(t, func() bool { return b.NumSubscriptions() == idle })
	}
}

// Members that come and go while there are pushes: who is a member all the time gets each once.
func TestGroupChurn(t *testing.T) {
	b := startBroker(t)
	all := nodes(t, 2, nats.URL(b.ClientURL()))
	stays := all[1].connect(t, "stays")
	comes := all[1].connect(t, "comes")
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			name := fmt.Sprint("room", i%2)
			if all[1].Group(name).Join(comes.there) == nil {
				all[1].Group(name).Leave(comes.there)
			}
		}
	})
	for range 20 {
		room := all[1].Group("room0")
		require.NoError(t, room.Join(stays.there))
		before := len(stays.notes())
		for i := range 10 {
			require.Nil(t, all[0].Group("room0").Push("/note", fmt.Sprint(i)).Err)
		}
		eventually(t, func() bool { return len(stays.notes()) >= before+10 })
		require.Equal(t, []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}, stays.notes()[before:])
		require.True(t, room.Leave(stays.there))
	}
	close(stop)
	wg.Wait()
}

func TestMembers(t *testing.T) {
	b := startBroker(t)
	all := nodes(t, 3, nats.URL(b.ClientURL()))
	room := all[0].Group("room")
	list, err := room.Members(within(t))
	require.NoError(t, err)
	require.Empty(t, list)
	a, c := all[0].connect(t, "a", "ada"), all[2].connect(t, "c", "carl", "charles")
	require.NoError(t, all[0].Group("room").Join(a.there))
	require.NoError(t, all[2].Group("room").Join(c.there))
	for _, n := range all {
		list, err := n.Group("room").Members(within(t))
		require.NoError(t, err)
		require.Len(t, list, 2)
		require.Equal(t, "a", list[0].Session)
		require.Equal(t, []string{"ada"}, list[0].Identity)
		require.Equal(t, "server0", list[0].Server.Name)
		require.Equal(t, []string{"carl", "charles"}, list[1].Identity)
		require.Equal(t, "server2", list[1].Server.Name)
		count, err := n.Group("room").Count(within(t))
		require.NoError(t, err)
		require.Equal(t, 2, count)
	}
	c.there.Close()
	all[0].Close()
	list, err = all[1].Group("room").Members(within(t))
	require.NoError(t, err)
	require.Empty(t, list)
	require.Len(t, all[1].Servers(), 2)
}

// A list of members that is larger than a message of the broker may be.
func TestManyMembers(t *testing.T) {
	b := startBroker(t)
	all := nodes(t, 2, nats.URL(b.ClientURL()))
	long := strings.Repeat("x", 100_000)
	for i := range 20 {
		c := all[0].connect(t, fmt.Sprint(long, i))
		require.NoError(t, all[0].Group("room").Join(c.there))
	}
	list, err := all[1].Group("room").Members(within(t))
	require.NoError(t, err)
	require.Len(t, list, 20)
	count, err := all[1].Group("room").Count(within(t))
	require.NoError(t, err)
	require.Equal(t, 20, count)
}

// A server that does not answer is named.
func TestMembersOfSilentServer(t *testing.T) {
	b := startBroker(t)
	n := newNode(t, nil, nats.URL(b.ClientURL()), nats.Beat(200*time.Millisecond))
	c := n.connect(t, "c")
	require.NoError(t, n.Group("room").Join(c.there))
	nc := b.dial(t)
	hello := append([]byte{'t', 'p', 1, 7, 0, 4}, "hub!\x00\x06silent"...)
	require.NoError(t, nc.Publish("tp.teleport.hubs", hello))
	eventually(t, func() bool { return len(n.Servers()) == 2 })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	list, err := n.Group("room").Members(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "silent")
	require.Len(t, list, 1)
	// It is taken for gone when it has said nothing for five beats.
	eventually(t, func() bool { return len(n.Servers()) == 1 })
}

// Services on one broker know nothing of each other.
func TestTwoServices(t *testing.T) {
	b := startBroker(t)
	chat := newNode(t, nil, nats.URL(b.ClientURL()), nats.Service("chat"))
	// The name is no part of the other's subjects.
	game := newNode(t, nil, nats.URL(b.ClientURL()), nats.Service("chat.g"))
	c, d := chat.connect(t, "c"), game.connect(t, "c")
	require.NoError(t, chat.Group("room").Join(c.there))
	require.NoError(t, game.Group("room").Join(d.there))
	require.Nil(t, chat.Group("room").Push("/note", "chat").Err)
	require.Nil(t, game.Group("room").Push("/note", "game").Err)
	require.Nil(t, game.Group("room").Push("/note", "end").Err)
	require.Nil(t, chat.Group("room").Push("/note", "end").Err)
	c.awaitNotes(t, "chat", "end")
	d.awaitNotes(t, "game", "end")
	require.Len(t, chat.Servers(), 1)
}

// The options of a group and of a hub that cannot be.
func TestMistakes(t *testing.T) {
	n := newNode(t, nil)
	for name, f := range map[string]func(){
		"History: a size of 0": func() { nats.History(0, time.Minute) },
		"History: a short age": func() { nats.History(1, time.Millisecond) },
		"Group: a nil option":  func() { n.Group("g", nil) },
		"New: a nil peer":      func() { _, _ = nats.New(nil) },
		"New: a nil option":    func() { _, _ = nats.New(n.peer, nil) },
		"URL: none":            func() { nats.URL("") },
		"Conn: nil":            func() { nats.Conn(nil) },
		"Service: none":        func() { nats.Service("") },
		"Replicas: 0":          func() { nats.Replicas(0) },
		"MaxHistoryBytes: 0":   func() { nats.MaxHistoryBytes(0) },
		"MaxCalls: 0":          func() { nats.MaxCalls(0) },
		"New: a URL and a Conn": func() {
			_, _ = nats.New(n.peer, nats.URL("x"), nats.Conn(new(natsgo.Conn)))
		},
	} {
		t.Run(name, func(t *testing.T) { require.Panics(t, f) })
	}
	t.Run("sessions of others", func(t *testing.T) {
		other := newNode(t, nil).connect(t, "c")
		require.Error(t, n.Add(other.there))
		require.Error(t, n.Add(nil))
		require.Error(t, n.Group("g").Join(other.there))
	})
	t.Run("sessions that have ended", func(t *testing.T) {
		c := n.connect(t, "c")
		c.there.Close()
		require.Error(t, n.Add(c.there))
		require.Error(t, n.Group("g").Join(c.there))
	})
	t.Run("a hub that was closed", func(t *testing.T) {
		n := newNode(t, nil)
		c := n.connect(t, "c")
		n.Close()
		n.Close()
		require.ErrorIs(t, n.Add(c.there), nats.ErrClosed)
		require.ErrorIs(t, n.Group("g").Join(c.there), nats.ErrClosed)
		require.ErrorIs(t, n.Group("g").Push("/note", "x").Err, nats.ErrClosed)
		require.ErrorIs(t, n.Session("nobody").Push(within(t), "/note", "x"), nats.ErrClosed)
		_, err := n.Group("g").Members(within(t))
		require.ErrorIs(t, err, nats.ErrClosed)
	})
	t.Run("a URL that is none", func(t *testing.T) {
		_, err := nats.New(n.peer, nats.URL("nats://[::1:x"))
		require.Error(t, err)
	})
}
