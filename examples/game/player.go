package main

import (
	"context"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	tp "github.com/henrylee2cn/teleport"
)

// Client is one player's side of the game: a session, what came by it of the player's room, and here also
// the player, who walks about and talks by himself.
type Client struct {
	name  string
	sess  *tp.Session
	meter *Meter
	trace bool // keep where everybody was, and not only where he is now

	// entered is closed when the view has the room's state, or there will be none. Pushes of the room may
	// come before the reply to Join, which has the state. Their handlers wait for it, one after another.
	entered chan struct{}

	mu     sync.Mutex // guards the fields below
	view   View
	stated int // the last line of the room's state
}

// View is what a player knows of his room. All of it was received.
type View struct {
	Room    string
	You     int
	Began   time.Time     // when the player came
	Players map[int]*Seen // by id; those who have left too
	Chat    []Heard
	Wrong   []string // what the server has said about pushes of this player
}

// Seen is another player, or oneself.
type Seen struct {
	Name string
	Gone bool
	Path []Spot // where he was, the latest last; without Client.trace only that
}

// Spot is a place in centimetres, and when it was received.
type Spot struct {
	X, Y int
	At   time.Time
}

// Heard is a line, and where the one who said it was then.
type Heard struct {
	Line
	Where Spot
}

// NewPlayerPeer makes the peer of the players' side: for one player, or for many that are simulated in one
// process, each with a session of his own.
func NewPlayerPeer(plugins ...tp.Plugin) *tp.Peer {
	// Only a few ticks may wait here to be handled. If this side is slow the rest waits at the server, where
	// a newer position takes the place of an older one. The memory is for a thousand players in one process.
	peer := tp.NewPeer(&tp.PeerConfig{MaxSessionInput: 256 << 10, MaxBufferedBytes: 1 << 30}, plugins...)
	Ready.Handle(peer.PullRouter, func(ctx tp.PullCtx, _ *Seat) (bool, tp.Xerror) {
		return clientOf(ctx.Session()) != nil, nil
	})
	Moved.Handle(peer.PushRouter, by((*Client).moved))
	Said.Handle(peer.PushRouter, by((*Client).said))
	Came.Handle(peer.PushRouter, by((*Client).came))
	Left.Handle(peer.PushRouter, by((*Client).left))
	Wrong.Handle(peer.PushRouter, by((*Client).wrong))
	return peer
}

// clientKey is the key of a session's client among the session's values.
type clientKey struct{}

func clientOf(sess *tp.Session) *Client {
	c, _ := sess.Public().Load(clientKey{})
	found, _ := c.(*Client)
	return found
}

// by makes a handler of a method of the session's client.
func by[A any](f func(*Client, *A)) func(tp.PushCtx, *A) {
	return func(ctx tp.PushCtx, args *A) {
		c := clientOf(ctx.Session())
		if c == nil {
			return
		}
		select {
		case <-c.entered:
		default:
			select {
			case <-c.entered:
			case <-ctx.Context().Done(): // the session has ended
				return
			}
		}
		f(c, args)
	}
}

// NewClient makes the player of a session that a peer of NewPlayerPeer has dialled.
func NewClient(name string, sess *tp.Session, meter *Meter, trace bool) *Client {
	c := &Client{name: name, sess: sess, meter: meter, trace: trace, entered: make(chan struct{}),
		view: View{Players: make(map[int]*Seen)}}
	sess.Public().Store(clientKey{}, c)
	return c
}

// Enter goes through the lobby into a room. It is called once.
func (c *Client) Enter(ctx context.Context) error {
	defer close(c.entered)
	if _, err := Enter.Call(ctx, c.sess, c.name); err != nil {
		return fmt.Errorf("%s, in the lobby: %w", c.name, err)
	}
	return c.join(ctx)
}

// join takes the seat.
func (c *Client) join(ctx context.Context) error {
	state, err := Join.Call(ctx, c.sess, struct{}{})
	if err != nil {
		return fmt.Errorf("%s, joining: %w", c.name, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.view.Room, c.view.You, c.view.Began = state.Room, state.You, time.Now()
	for _, p := range state.Players {
		c.addLocked(p)
	}
	for _, line := range state.Chat {
		c.hearLocked(line)
		c.stated = line.N
	}
	return nil
}

func (c *Client) addLocked(p Player) {
	if c.view.Players[p.Id] == nil {
		c.view.Players[p.Id] = &Seen{Name: p.Name, Path: []Spot{{p.X, p.Y, time.Now()}}}
	}
}

func (c *Client) hearLocked(line Line) {
	said := Heard{Line: line}
	if by := c.view.Players[line.From]; by != nil {
		said.Where = by.Path[len(by.Path)-1]
	}
	said.Where.At = time.Now()
	c.view.Chat = append(c.view.Chat, said)
}

func (c *Client) moved(p *Position) {
	c.meter.position(p.At)
	c.mu.Lock()
	defer c.mu.Unlock()
	who := c.view.Players[p.Id]
	if who == nil || who.Gone {
		return
	}
	if !c.trace {
		who.Path = who.Path[:0]
	}
	who.Path = append(who.Path, Spot{p.X, p.Y, time.Now()})
}

// said takes a line. One that was in the state may come again. After those each line has the next number;
// otherwise a line was lost, or has come out of order.
func (c *Client) said(line *Line) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if line.N <= c.stated {
		return
	}
	last := c.stated
	if n := len(c.view.Chat); n > 0 {
		last = c.view.Chat[n-1].N
	}
	c.meter.line(line.At, line.N == last+1)
	c.hearLocked(*line)
}

func (c *Client) came(p *Player) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.addLocked(*p)
}

func (c *Client) left(id *int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if who := c.view.Players[*id]; who != nil {
		who.Gone = true
	}
}

func (c *Client) wrong(text *string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.view.Wrong = append(c.view.Wrong, *text)
}

// View returns a copy of what the player knows now.
func (c *Client) View() View {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.view
	v.Players, v.Chat, v.Wrong = maps.Clone(v.Players), slices.Clone(v.Chat), slices.Clone(v.Wrong)
	for id, p := range v.Players {
		v.Players[id] = &Seen{p.Name, p.Gone, slices.Clone(p.Path)}
	}
	return v
}

// Play has the player walk about and talk until ctx ends. The error says that he cannot any more.
func (c *Client) Play(ctx context.Context) error {
	toward := rand.Float64() * 2 * math.Pi
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.sess.Done():
			return fmt.Errorf("%s: the session has ended: %w", c.name, c.sess.Err())
		case <-time.After(200*time.Millisecond + rand.N(300*time.Millisecond)):
		}
		toward = c.turn(toward)
		if err := Steer.Push(ctx, c.sess, c.heading(toward)); err != nil && ctx.Err() == nil {
			return fmt.Errorf("%s, steering: %w", c.name, err)
		}
		if rand.IntN(25) > 0 {
			continue
		}
		if err := Say.Push(ctx, c.sess, talk[rand.IntN(len(talk))]); err != nil && ctx.Err() == nil {
			return fmt.Errorf("%s, talking: %w", c.name, err)
		}
	}
}

// turn changes a direction a little, and by more near a wall.
func (c *Client) turn(toward float64) float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	toward += rand.NormFloat64() * 0.4
	me := c.view.Players[c.view.You]
	if me == nil {
		return toward
	}
	at := me.Path[len(me.Path)-1]
	const near = 350
	if at.X > near && at.X < width-near && at.Y > near && at.Y < height-near {
		return toward
	}
	middle := math.Atan2(float64(height/2-at.Y), float64(width/2-at.X))
	return middle + rand.NormFloat64()*0.3
}

// heading is a walk in the direction. Sometimes it is a rest.
func (c *Client) heading(toward float64) Heading {
	if rand.IntN(12) == 0 {
		return Heading{}
	}
	const speed = 3
	sin, cos := math.Sincos(toward)
	return Heading{math.Round(cos*speed*100) / 100, math.Round(sin*speed*100) / 100}
}

var talk = []string{"follow me", "wait for me", "this way", "behind you!", "who has the key?", "to the door",
	"nice one", "I am going back", "there is something here", "look at that", "not so fast", "on my way",
	"meet in the middle", "nothing here", "left side is clear", "anybody there?"}
