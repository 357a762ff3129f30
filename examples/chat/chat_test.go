package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/contrib/etcd"
)

func TestMain(m *testing.M) {
	tp.SetLogLevel(tp.LevelOff)
	goleak.VerifyTestMain(m)
}

func startEngines(t *testing.T) *Engines {
	engines, err := StartEngines()
	require.NoError(t, err)
	t.Cleanup(engines.Close)
	return engines
}

// The show with fewer people, and less time between what happens, finds nothing wrong.
func TestShow(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	show := Show{Where: Where{Service: "chat"}, Engines: startEngines(t), People: 12,
		Pause: 100 * time.Millisecond, Out: &out}
	require.NoError(t, show.Run(context.Background()), "%s", &out)
	require.Contains(t, out.String(), "all is well")
	require.Contains(t, out.String(), "room-1 has 10 people")
}

// With engines that are not the show's own it leaves them in peace, and ends with its context.
func TestShowWithEnginesOfOthers(t *testing.T) {
	t.Parallel()
	where := startEngines(t).Where("others")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	show := Show{Where: where, People: 2, Pause: time.Minute, Out: writerFunc(func(line string) {
		if strings.Contains(line, "each of 2 people") {
			cancel()
		}
	})}
	require.Equal(t, context.Canceled, show.Run(ctx))
}

type writerFunc func(string)

func (f writerFunc) Write(b []byte) (int, error) {
	f(string(b))
	return len(b), nil
}

// Two people at terminals, on two servers of which one goes away.
func TestConsole(t *testing.T) {
	t.Parallel()
	where := startEngines(t).Where("chat")
	first, err := StartServer(where, "127.0.0.1:0", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(first.release)
	client, err := clientv3.New(etcd.ClientConfig(where.Etcd))
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	finder := NewFinder(etcd.NewResolver(client, where.Service))
	t.Cleanup(finder.Close)
	ada, bob := newTerminal(t, finder, "ada"), newTerminal(t, finder, "bob")
	ada.sees("/quit")
	bob.sees("/quit")

	ada.types("hello, bob")
	bob.sees("lobby> ada: hello, bob")
	bob.types("/tell ada good morning")
	ada.sees("bob whispers: good morning")
	ada.types("/ask bob")
	ada.sees("bob is there")
	ada.types("/ask eve")
	ada.sees(`! 404 identity "eve" is connected nowhere`)
	ada.types("/dance")
	ada.sees("! /dance is not known")
	ada.types("/join not a name")
	ada.sees("! 400 the room \"not a name\" has the character ' '")

	second, err := StartServer(where, "127.0.0.1:0", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(second.release)
	require.NoError(t, first.Shutdown(context.Background()))
	ada.types("still there?")
	bob.sees("lobby> ada: still there?")
	for _, name := range []string{"ada", "bob"} { // in whatever order
		ada.types("/who")
		ada.sees("  " + name + ", on " + second.Name)
	}
	ada.types("/part")
	ada.types("anybody?")
	ada.sees("! you are in no room: /join ROOM")
	ada.types("/quit")
	bob.types("/quit")
}

// terminal is one of a person.
type terminal struct {
	t     *testing.T
	keys  *io.PipeWriter
	lines chan string
}

func newTerminal(t *testing.T, f *Finder, name string) *terminal {
	in, keys := io.Pipe()
	screen, out := io.Pipe()
	lines := make(chan string, 1000)
	go func() {
		defer close(lines)
		for text := bufio.NewScanner(screen); text.Scan(); {
			lines <- text.Text()
		}
	}()
	over := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { over <- Talk(ctx, f, name, "lobby", in, out) }()
	t.Cleanup(func() {
		cancel()
		_ = screen.Close()
		_ = keys.Close()
		require.NoError(t, <-over)
	})
	return &terminal{t, keys, lines}
}

func (c *terminal) types(line string) {
	_, err := io.WriteString(c.keys, line+"\n")
	require.NoError(c.t, err)
}

// sees waits for a line that begins with the text.
func (c *terminal) sees(text string) {
	c.t.Helper()
	var seen []string
	for late := time.After(20 * time.Second); ; {
		select {
		case line, more := <-c.lines:
			if strings.HasPrefix(strings.TrimSpace(line), strings.TrimSpace(text)) {
				return
			}
			if seen = append(seen, line); more {
				continue
			}
		case <-late:
		}
		require.FailNow(c.t, "no such line", "expected %q, seen %q", text, seen)
	}
}

// The ledger finds what it is there to find.
func TestLedger(t *testing.T) {
	a1, a2, b1 := Message{"r", "a", "1"}, Message{"r", "a", "2"}, Message{"r", "b", "1"}
	for _, tt := range []struct {
		name       string
		one, other []Message
		afresh     bool
		wrong      string
	}{
		{"all is well", []Message{a1, b1, a2}, []Message{a1, b1, a2}, false, ""},
		{"one is missing", []Message{a1, b1, a2}, []Message{a1, b1}, false,
			"other has not heard 1 of 3 messages"},
		{"one is missing and the member knows", []Message{a1, b1, a2}, []Message{a1, b1}, true, ""},
		{"twice", []Message{a1, b1, a2}, []Message{a1, b1, a2, a2}, false,
			`other has heard twice in r, a: "2"`},
		{"another order", []Message{a1, b1, a2}, []Message{a1, a2, b1}, false, "another member"},
		{"a speaker out of order", []Message{a2, a1, b1}, []Message{a2, a1, b1}, false,
			`a's "1" in r after "2"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := NewLedger()
			l.Joined("r", "one")
			l.Joined("r", "other")
			for _, m := range []Message{a1, b1, a2} {
				l.Said(m, true)
			}
			l.Said(Message{"r", "b", "2"}, false)
			for _, m := range tt.one {
				l.Heard("one", m)
			}
			for _, m := range tt.other {
				l.Heard("other", m)
			}
			if tt.afresh {
				l.Missed("r", "other")
			}
			sum := l.Check()
			require.Equal(t, 3, sum.Said)
			require.Equal(t, 1, sum.Unknown)
			require.Zero(t, sum.OfThese)
			if tt.wrong == "" {
				require.Empty(t, sum.Wrong)
				l.Await(context.Background())
				return
			}
			require.Contains(t, strings.Join(sum.Wrong, "\n"), tt.wrong)
		})
	}
}

// Flags that do not fit are errors that say what was expected.
func TestFlags(t *testing.T) {
	const etcds, natses = "-etcd=http://127.0.0.1:2379", "-nats=nats://127.0.0.1:4222"
	for _, tt := range []struct {
		args, want string // an empty want: no error
	}{
		{"", ""},
		{"-people=2 -pause=1s", ""},
		{"-engines", ""},
		{"-server -addr=:9001 " + etcds + " " + natses, ""},
		{"-person=ada " + etcds, ""},
		{etcds + ",http://10.0.0.1:2379 " + natses, ""},
		{"-server", "-server needs -etcd and -nats"},
		{"-person=ada", "-person needs -etcd"},
		{"-person= " + etcds, "the name has 0 characters; expected 1 to 32"},
		{"-person=a:b " + etcds, "the name \"a:b\" has the character ':'"},
		{etcds, "-etcd and -nats: both were expected"},
		{"-addr=:9001", "-addr is not for the show"},
		{"-engines " + etcds, "-etcd is not for -engines"},
		{"-server -person=ada " + etcds + " " + natses, "-person is not for -server"},
		{"-people=1", "-people 1: 2 or more were expected"},
		{"-pause=0s", "-pause 0s: a time above 0 was expected"},
		{"-etcd=127.0.0.1:2379 " + natses, `-etcd "127.0.0.1:2379": expected http:// or https://host:port`},
		{etcds + " -nats=http://127.0.0.1:4222",
			`-nats "http://127.0.0.1:4222": expected nats:// or tls://host:port`},
		{"show", `["show"]: only flags were expected`},
		{"-unknown", "flag provided but not defined"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			_, err := parse(strings.Fields(tt.args), io.Discard)
			if tt.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, tt.want)
		})
	}
}
