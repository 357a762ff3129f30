package nats_test

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/contrib/nats"
)

// A hub takes what another one says of the delivery of a push, and says itself what it does not understand.
// No number in it ends the process.
func TestHostileSpread(t *testing.T) {
	for name, text := range map[string]string{
		"more than an int32": fmt.Sprintf(`{"DropOldest":%d}`, math.MaxInt32+1),
		"the most of an int": fmt.Sprintf(`{"DropOldest":%d}`, math.MaxInt),
		"less than nothing":  `{"DropOldest":-1}`,
		"a negative wait":    `{"Disconnect":true,"After":-1}`,
		"no time":            `{"Every":-1}`,
		"no object":          `[1]`,
		"no JSON":            `{`,
	} {
		t.Run(name, func(t *testing.T) {
			require.NotPanics(t, func() {
				_, err := nats.SpreadSettings([]byte(text))
				require.Error(t, err)
			})
		})
	}
	b, err := json.Marshal(tp.Spread{DropOldest: math.MaxInt32, Every: 1, Latest: "x"})
	require.NoError(t, err)
	list, err := nats.SpreadSettings(b)
	require.NoError(t, err)
	require.Len(t, list, 3)
}

// subscribed is how many subscriptions the broker has on subjects that a message to subject goes to.
func (b *broker) subscribed(t testing.TB, subject string) int {
	z, err := b.Subsz(&server.SubszOptions{Subscriptions: true, Test: subject})
	require.NoError(t, err)
	return len(z.Subs)
}

// The names of sessions that end while the broker is away are no names of this server when it is back. A
// subscription that stayed with the broker would take messages to the name from the server that has it then.
func TestSessionEndsWhileBrokerIsAway(t *testing.T) {
	b := startBroker(t)
	all := nodes(t, 2, nats.URL(b.ClientURL()))
	c := all[0].connect(t, "c", "ada")
	stays := all[0].connect(t, "stays")
	require.Equal(t, 1, b.subscribed(t, "tp.teleport.s.c"))
	b.stop()
	eventually(t, func() bool { return !all[0].Connected() && !all[1].Connected() })
	c.peer.Close()
	eventually(t, func() bool { return all[0].Session("c").Push(within(t), "/x", 1) != nil })
	b.start(t)
	eventually(t, func() bool { return all[1].Session("stays").Push(within(t), "/note", "x") == nil })
	stays.awaitNotes(t, "x")
	for _, subject := range []string{"tp.teleport.s.c", "tp.teleport.i.ada"} {
		eventually(t, func() bool { return b.subscribed(t, subject) == 0 }, subject)
	}
	require.ErrorIs(t, all[1].Session("c").Push(within(t), "/x", 1), nats.ErrNotConnected)
}

// A server that could not say that it has a name no more, as it was cut off from the broker, leaves the name
// to the others that have it when it is back.
func TestNameLeftWhileCutOff(t *testing.T) {
	b := startBroker(t)
	l := newLine(t, b)
	older := newNode(t, nil, nats.URL(b.ClientURL()))
	newer := newNode(t, nil, nats.URL(l.url()))
	eventually(t, func() bool { return len(older.Servers()) == 2 && len(newer.Servers()) == 2 })
	phone := older.connect(t, "phone", "ada")
	laptop := newer.connect(t, "laptop", "ada")
	asker := newNode(t, nil, nats.URL(b.ClientURL()))
	push := func(text string) tp.Xerror { return asker.Identity("ada").Push(within(t), "/note", text) }
	require.Nil(t, push("to the newer"))
	laptop.awaitNotes(t, "to the newer")
	l.cutOff(t, newer)
	require.NoError(t, laptop.there.Close())
	eventually(t, func() bool { return newer.Session("laptop").Push(within(t), "/x", 1) != nil })
	l.mend(t)
	eventually(t, newer.Connected)
	eventually(t, func() bool { return push("to the older") == nil })
	phone.awaitNotes(t, "to the older")
}

// A name that is too long is refused, and costs no other name anything.
func TestHugeNames(t *testing.T) {
	b := startBroker(t)
	all := nodes(t, 2, nats.URL(b.ClientURL()))
	c := all[0].connect(t, "c")
	err := all[0].Add(c.there, strings.Repeat("x", 2<<20))
	require.ErrorContains(t, err, "2097152 bytes")
	require.NoError(t, all[0].Add(c.there, strings.Repeat("x", nats.MaxName)))
	require.Nil(t, all[1].Identity(strings.Repeat("x", nats.MaxName)).Push(within(t), "/note", "x"))
}

// A server whose hub was closed goes on without it: new sessions are accepted, and nothing keeps the old ones
// in the hub's group.
func TestNewSessionsAfterClose(t *testing.T) {
	auto := nats.Automatic(nil)
	peer := tp.NewPeer(nil, named{}, auto)
	defer peer.Close()
	hub, err := nats.New(peer, auto)
	require.NoError(t, err)
	before, after := &client{peer: tp.NewPeer(nil)}, &client{peer: tp.NewPeer(nil)}
	defer before.peer.Close()
	defer after.peer.Close()
	connectTo(t, peer, before)
	hub.Close()
	connectTo(t, peer, after)
	require.Nil(t, after.here.Pull("/nosuch", nil, nil).Input().Header.Meta)
	require.NoError(t, after.there.Err())
	require.NoError(t, before.there.Err())
	require.Zero(t, hub.Known())
	require.ErrorIs(t, hub.Add(before.there), nats.ErrClosed)
	require.Zero(t, hub.Known())
}

// A session that has another id now is not found by the old one, on its own server either.
func TestRenamedHere(t *testing.T) {
	b := startBroker(t)
	for name, option := range map[string][]nats.Option{
		"alone": nil, "with a broker": {nats.URL(b.ClientURL())},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, nil, option...)
			eventually(t, func() bool { return n.Connected() == (option != nil) })
			c := n.connect(t, "old")
			require.Nil(t, n.Session("old").Push(within(t), "/note", "1"))
			require.NoError(t, c.there.ChangeId("new"))
			require.ErrorIs(t, n.Session("old").Push(within(t), "/note", "x"), nats.ErrNotConnected)
			require.NoError(t, n.Add(c.there))
			require.Nil(t, n.Session("new").Push(within(t), "/note", "2"))
			c.awaitNotes(t, "1", "2")
		})
	}
}
