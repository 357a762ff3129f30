package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/tptest"
)

func TestMain(m *testing.M) {
	tp.SetLogLevel(tp.LevelOff)
	goleak.VerifyTestMain(m)
}

// gamer is a client of a test, and its line.
type gamer struct {
	*Client
	link *tptest.Link
}

// gamers connects players to a server, each with a peer of his own.
func gamers(t *testing.T, server *Server, names ...string) (all []*gamer) {
	for _, name := range names {
		link := tptest.Pair(t, server.peer, NewPlayerPeer())
		all = append(all, &gamer{NewClient(name, link.Client, new(Meter), true), link})
	}
	return all
}

// enter has them all enter at once, and waits until they know of each other.
func enter(t *testing.T, all ...*gamer) {
	require.NoError(t, each(len(all), func(i int) error { return all[i].Enter(t.Context()) }))
	ticks(1)
}

// seen returns where the player has seen another one at last, and how often.
func (g *gamer) seen(t *testing.T, other *gamer) (last Spot, times int) {
	who := g.View().Players[other.View().You]
	require.NotNil(t, who, "%s does not know %s", g.name, other.name)
	return who.Path[len(who.Path)-1], len(who.Path)
}

// ticks lets so many ticks pass.
func ticks(n int) {
	time.Sleep(time.Duration(n) * tick) // of the bubble's clock
	synctest.Wait()
}

func TestLobby(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := NewServer(2)
		all := gamers(t, server, "ann", "bob", "cid")
		began := time.Now()
		enter(t, all...)
		// Two fill a table; the third has waited for others, and has a room of his own.
		require.Equal(t, lobbyWait+tick, time.Since(began))
		rooms := make(map[string]int)
		for _, g := range all {
			rooms[g.View().Room]++
		}
		require.Equal(t, map[string]int{"room 1": 2, "room 2": 1}, rooms)
		load, err := Usage.Call(t.Context(), all[0].sess, struct{}{})
		require.NoError(t, err)
		require.Equal(t, []int{3, 2}, []int{load.Players, load.Rooms})
	})
}

// A room ends when everybody has left it.
func TestLeaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := NewServer(2)
		all := gamers(t, server, "ann", "bob")
		enter(t, all...)
		all[1].link.Cut()
		ticks(1)
		require.True(t, all[0].View().Players[all[1].View().You].Gone)
		require.False(t, all[0].View().Players[all[0].View().You].Gone)
		room := playerOf(all[0].link.Server).room
		require.NoError(t, all[0].sess.Close())
		ticks(1)
		require.True(t, room.over)
		late := gamers(t, server, "late")[0]
		late.link.Server.Public().Store(seatKey{}, newPlayer(9, "late", room)) // who had a seat there
		require.ErrorContains(t, late.join(t.Context()), "1003 room 1 is over")
		require.NoError(t, late.Enter(t.Context()), "another room")
	})
}

func TestPositions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := gamers(t, NewServer(2), "ann", "bob")
		enter(t, all...)
		from, _ := all[1].seen(t, all[0])
		require.NoError(t, Steer.Push(t.Context(), all[0].sess, Heading{3, 4}))
		ticks(10)
		require.NoError(t, Steer.Push(t.Context(), all[0].sess, Heading{}))
		ticks(10)
		for _, g := range all {
			to, times := g.seen(t, all[0])
			require.Equal(t, []int{from.X + 150, from.Y + 200}, []int{to.X, to.Y})
			require.Equal(t, 11, times, "the first one, and ten ticks")
		}
		_, times := all[0].seen(t, all[1])
		require.Equal(t, 1, times, "bob stands still")

		// Nobody walks through a wall.
		require.NoError(t, Steer.Push(t.Context(), all[0].sess, Heading{-maxSpeed, 0}))
		ticks(20 * 60)
		to, _ := all[1].seen(t, all[0])
		require.Equal(t, 0, to.X)
	})
}

// Of what a player with a bad line cannot take in time he gets the lines of chat all, in order, and of the
// positions the newest.
func TestSlowPlayer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := gamers(t, NewServer(2), "ann", "bob")
		ann, bob := all[0], all[1]
		enter(t, all...)
		bob.link.ToClient.Stall()
		const minutes = 3
		for i := range minutes * 60 * 2 {
			require.NoError(t, Steer.Push(t.Context(), ann.sess, Heading{float64(i%2*2 - 1), 0}))
			if i%10 == 0 {
				require.NoError(t, Say.Push(t.Context(), ann.sess, fmt.Sprint("line ", i/10)))
			}
			ticks(10)
			if i%40 == 0 { // or the server gives bob up, after the write timeout
				bob.link.ToClient.Heal()
				synctest.Wait()
				bob.link.ToClient.Stall()
			}
		}
		require.NoError(t, Steer.Push(t.Context(), ann.sess, Heading{}))
		ticks(1)
		bob.link.ToClient.Heal()
		ticks(1)
		want, all10 := ann.seen(t, ann)
		got, times := bob.seen(t, ann)
		require.Equal(t, []int{want.X, want.Y}, []int{got.X, got.Y})
		require.Equal(t, minutes*60*20+1, all10)
		require.Less(t, times, all10/2)
		require.Len(t, bob.View().Chat, minutes*60*2/10)
		for i, said := range bob.View().Chat {
			require.Equal(t, fmt.Sprint("line ", i), said.Text)
		}
		require.Zero(t, bob.meter.disorder.Load())
	})
}

// Everybody sees the lines of a room in one order, in which those of each player have theirs. Who comes
// later has the last ones from the room's state.
func TestChat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := NewServer(4)
		all := gamers(t, server, "ann", "bob", "cid")
		enter(t, all...)
		const lines = 200
		require.NoError(t, each(len(all), func(i int) error {
			for n := range lines {
				if err := Say.Push(t.Context(), all[i].sess, fmt.Sprint(n)); err != nil {
					return err
				}
			}
			return nil
		}))
		ticks(1)
		next := make(map[int]int)
		order := all[0].View().Chat
		require.Len(t, order, len(all)*lines)
		for i, said := range order {
			require.Equal(t, i+1, said.N)
			require.Equal(t, fmt.Sprint(next[said.From]), said.Text)
			next[said.From]++
		}
		for _, g := range all[1:] {
			for i, said := range g.View().Chat {
				require.Equal(t, order[i].Line, said.Line)
			}
			require.Len(t, g.View().Chat, len(order))
		}

		late := gamers(t, server, "dan")[0]
		late.link.Server.Public().Store(seatKey{}, newPlayer(9, "dan", playerOf(all[0].link.Server).room))
		require.NoError(t, late.join(t.Context()))
		close(late.entered)
		require.NoError(t, Say.Push(t.Context(), late.sess, "hello"))
		ticks(1)
		v := late.View()
		require.Len(t, v.Players, 4)
		require.Len(t, v.Chat, keptLines+1)
		require.Equal(t, order[len(order)-1].Line, v.Chat[keptLines-1].Line)
		require.Equal(t, []any{len(order) + 1, "hello"}, []any{v.Chat[keptLines].N, v.Chat[keptLines].Text})
		require.Equal(t, "dan", all[0].View().Players[9].Name)
	})
}

// A line that was in the state of the room may come again, and one that is missing is noticed.
func TestLinesAreCounted(t *testing.T) {
	c := &Client{meter: new(Meter), view: View{Chat: []Heard{{Line: Line{N: 7}}}}, stated: 7}
	for _, n := range []int{6, 7, 8, 9, 11} {
		c.said(&Line{N: n})
	}
	require.Len(t, c.View().Chat, 4)
	require.Equal(t, int64(1), c.meter.disorder.Load())
}

// Bad input is answered, or told by a push, and costs nothing else.
func TestBadInput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gamers(t, NewServer(1), "ann")[0]
		ctx := t.Context()
		for name, want := range map[string]string{
			"":                      "400 a name of 0 characters; 1 to 24 were expected",
			strings.Repeat("ä", 25): "400 a name of 25 characters; 1 to 24 were expected",
		} {
			_, err := Enter.Call(ctx, g.sess, name)
			require.EqualError(t, err, want)
		}
		_, err := Join.Call(ctx, g.sess, struct{}{})
		require.EqualError(t, err, "1001 no seat: /lobby/enter must be pulled first")
		require.NoError(t, Say.Push(ctx, g.sess, "hello"))
		enter(t, g)
		_, err = Enter.Call(ctx, g.sess, "again")
		require.EqualError(t, err, "400 the session has a seat in room 1 already")
		_, err = Join.Call(ctx, g.sess, struct{}{})
		require.NoError(t, err, "a second time changes nothing")

		require.NoError(t, Steer.Push(ctx, g.sess, Heading{maxSpeed, 1}))
		require.NoError(t, Steer.Push(ctx, g.sess, Heading{math.MaxFloat64, -math.MaxFloat64}))
		require.NoError(t, Say.Push(ctx, g.sess, ""))
		require.NoError(t, Say.Push(ctx, g.sess, strings.Repeat("a", maxLine+1)))
		ticks(1)
		require.ElementsMatch(t, []string{
			"/room/say: no seat: /lobby/enter must be pulled first",
			"/room/steer: a speed of 6.08 m/s; at most 6 was expected",
			"/room/steer: a speed of +Inf m/s; at most 6 was expected",
			"/room/say: a line of 0 bytes; 1 to 200 were expected",
			"/room/say: a line of 201 bytes; 1 to 200 were expected",
		}, g.View().Wrong)
		_, times := g.seen(t, g)
		require.Equal(t, 1, times)
		require.Empty(t, g.View().Chat)
		require.NoError(t, g.sess.Err())
	})
}

// Whoever is not ready, or does not say so, has no seat; the others play.
func TestReady(t *testing.T) {
	tests := map[string]struct {
		answer func(ctx tp.PullCtx) (bool, tp.Xerror)
		want   string
	}{
		"no":    {func(tp.PullCtx) (bool, tp.Xerror) { return false, nil }, "1002 the player is not ready"},
		"error": {func(tp.PullCtx) (bool, tp.Xerror) { return false, tp.NewXerror(7, "busy") }, "7 busy"},
		"silent": {func(ctx tp.PullCtx) (bool, tp.Xerror) {
			<-ctx.Session().Done()
			return true, nil
		}, "deadline"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := NewServer(2)
				all := gamers(t, server, "ann")
				peer := tp.NewPeer(nil)
				Ready.Handle(peer.PullRouter, func(ctx tp.PullCtx, seat *Seat) (bool, tp.Xerror) {
					if *seat != (Seat{"room 1", 2}) {
						return false, tp.NewXerror(8, fmt.Sprint(*seat))
					}
					return test.answer(ctx)
				})
				link := tptest.Pair(t, server.peer, peer)
				refused := make(chan error, 1)
				go func() {
					_, err := Enter.Call(t.Context(), link.Client, "bob")
					refused <- err
				}()
				enter(t, all...)
				require.ErrorContains(t, <-refused, test.want)
				require.Len(t, all[0].View().Players, 1)
			})
		})
	}
}

// Play walks and talks by itself, and says when the server has gone.
func TestPlay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := NewServer(2)
		all := gamers(t, server, "ann", "bob")
		enter(t, all...)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		all[1].meter.begin(time.Now())
		require.NoError(t, each(2, func(i int) error { return all[i].Play(ctx) }))
		require.Equal(t, time.Minute, all[1].meter.end())
		_, times := all[1].seen(t, all[0])
		require.Greater(t, times, 60*20/2)
		require.Greater(t, len(all[1].View().Chat), 1)
		require.Empty(t, all[0].View().Wrong)
		require.Greater(t, all[1].meter.positions.Load(), int64(times))
		require.Zero(t, all[1].meter.quantile(0.99), "in memory, without a delay")

		closed := make(chan error)
		time.AfterFunc(time.Second, func() { closed <- server.peer.Close() })
		require.ErrorContains(t, all[0].Play(t.Context()), "ann")
		<-closed
	})
}

// The picture is XML, whatever the names are, and has what was received.
func TestPicture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := gamers(t, NewServer(3), "<ann> & co", "bob\x00\"", "cid")
		enter(t, all...)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		require.NoError(t, each(2, func(i int) error { return all[i].Play(ctx) }))
		require.NoError(t, Say.Push(t.Context(), all[0].sess, "a < b"))
		all[2].link.Cut()
		ticks(1)
		var b bytes.Buffer
		v := all[0].View()
		require.NoError(t, v.Draw(&b))
		texts := xmlTexts(t, b.Bytes())
		require.Contains(t, texts, v.Room+", as <ann> & co has seen it")
		require.Contains(t, texts, "<ann> & co")
		require.Contains(t, texts, "cid (has left)")
		require.Contains(t, texts, "a < b")
		require.Contains(t, texts, fmt.Sprint(v.Chat[len(v.Chat)-1].N))
		require.NotContains(t, b.String(), "NaN")

		// Nothing was received yet.
		b.Reset()
		require.NoError(t, View{}.Draw(&b))
		xmlTexts(t, b.Bytes())
	})
}

// xmlTexts returns the texts of an XML file.
func xmlTexts(t *testing.T, file []byte) (texts []string) {
	for d := xml.NewDecoder(bytes.NewReader(file)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return texts
		}
		require.NoError(t, err)
		if text, ok := token.(xml.CharData); ok && len(bytes.TrimSpace(text)) > 0 {
			texts = append(texts, string(text))
		}
	}
}

func TestMeter(t *testing.T) {
	m := new(Meter)
	m.position(time.Now().UnixNano()) // before the beginning
	m.begin(time.Now().Add(-time.Hour))
	for range 98 {
		m.position(time.Now().Add(time.Second).UnixNano()) // a clock that was set back
	}
	m.position(time.Now().Add(-time.Minute).UnixNano())
	m.position(time.Now().Add(-time.Minute).UnixNano())
	require.Equal(t, int64(100), m.positions.Load())
	require.Zero(t, m.quantile(0.5))
	require.Zero(t, m.quantile(0.98))
	require.Equal(t, 2*time.Second-step, m.quantile(0.99), "the last step")
	require.GreaterOrEqual(t, m.end(), time.Hour)
	m.position(time.Now().UnixNano())
	require.Equal(t, int64(100), m.positions.Load())
}

func TestNames(t *testing.T) {
	seen := make(map[string]bool)
	for i := range 5000 {
		name := nameOf(i)
		require.False(t, seen[name], name)
		require.LessOrEqual(t, len(name), maxName)
		seen[name] = true
	}
	require.Equal(t, "calm otter", nameOf(0))
}
