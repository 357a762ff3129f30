package main

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/plugin/auth"
	"github.com/henrylee2cn/teleport/plugin/follow"
)

// Ears are what a person does about what comes. Those of one person are called one after another, but for
// Asked. All of them must be there.
type Ears struct {
	Said   func(Message)            // in a room
	Told   func(Message)            // by one person to this one
	Missed func(room string)        // some messages of the room are missing here
	Asked  func(from string) string // "are you there?"
}

// Person is somebody who chats, by one session that goes on with another server when its server goes away.
// All methods are safe for concurrent use.
type Person struct {
	Name     string
	peer     *tp.Peer
	sess     *tp.Session
	follower *follow.Follower

	mu    sync.Mutex // guards the rooms
	rooms map[string]bool
}

// Connect connects a person to one of the servers. It tries for as long as ctx lasts.
func Connect(ctx context.Context, f *Finder, name string, ears Ears) (*Person, error) {
	p := &Person{Name: name, rooms: make(map[string]bool)}
	p.follower = follow.New(follow.Afresh(func(_ *tp.Session, room string) { ears.Missed(room) }))
	token := func(context.Context) (string, error) { return name, nil }
	p.peer = tp.NewPeer(&tp.PeerConfig{
		DialContext: f.Dial, // again for each connection
		Redial:      &tp.Redial{First: true, MaxBackoff: time.Second},
	}, auth.New(auth.Token(token)), p.follower, rejoin{p})
	Said.Handle(p.peer.PushRouter, func(_ tp.PushCtx, m *Message) { ears.Said(*m) })
	Told.Handle(p.peer.PushRouter, func(_ tp.PushCtx, m *Message) { ears.Told(*m) })
	AreYouThere.Handle(p.peer.PullRouter, func(_ tp.PullCtx, from *string) (string, tp.Xerror) {
		return ears.Asked(*from), nil
	})
	var err error
	if p.sess, err = p.peer.DialContext(ctx, "any-server"); err != nil {
		_ = p.peer.Close()
		return nil, err
	}
	return p, nil
}

// Close ends the person's session.
func (p *Person) Close() { _ = p.peer.Close() }

// rejoinTime is how long a person waits until all rooms are joined again.
const rejoinTime = 5 * time.Second

// rejoin is a plugin that has the person join again all rooms when there is another connection, at the
// position that the person has come to.
type rejoin struct{ p *Person }

func (rejoin) Name() string { return "rejoin" }

// PostConnect returns the error of a room that could not be joined. It ends the connection, and the session
// tries again, perhaps with another server: without the room messages would be missed.
func (r rejoin) PostConnect(sess *tp.Session) error {
	ctx, cancel := context.WithTimeout(context.Background(), rejoinTime)
	defer cancel()
	for _, room := range r.p.joined() {
		args := JoinArgs{room, r.p.follower.Position(room)}
		if _, err := Join.Call(ctx, sess, args); err != nil {
			return err
		}
	}
	return nil
}

func (p *Person) joined() (list []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for room := range p.rooms {
		list = append(list, room)
	}
	return list
}

// Join has the person be in the room, now and by later connections.
func (p *Person) Join(ctx context.Context, room string) error {
	p.mu.Lock()
	p.rooms[room] = true
	p.mu.Unlock()
	err := again(ctx, func() error {
		_, err := Join.Call(ctx, p.sess, JoinArgs{room, p.follower.Position(room)})
		return err
	})
	if err != nil {
		p.forget(room)
	}
	return err
}

func (p *Person) forget(room string) {
	p.mu.Lock()
	delete(p.rooms, room)
	p.mu.Unlock()
	p.follower.Forget(room)
}

// Part ends that.
func (p *Person) Part(ctx context.Context, room string) error {
	p.forget(room)
	_, err := Part.Call(ctx, p.sess, room)
	return err
}

// Say says something in a room. After an error that tp.NotRun is not true of others may have got it.
func (p *Person) Say(ctx context.Context, room, text string) error {
	return again(ctx, func() error {
		_, err := Say.Call(ctx, p.sess, SayArgs{room, text})
		return err
	})
}

// Tell whispers to one person.
func (p *Person) Tell(ctx context.Context, to, text string) error {
	return again(ctx, func() error {
		_, err := Tell.Call(ctx, p.sess, TellArgs{to, text})
		return err
	})
}

// Ask asks one person "are you there?", and returns the answer.
func (p *Person) Ask(ctx context.Context, name string) (answer string, err error) {
	err = again(ctx, func() error {
		answer, err = Ask.Call(ctx, p.sess, name)
		return err
	})
	return answer, err
}

// Who returns who is in a room.
func (p *Person) Who(ctx context.Context, room string) (all Presence, err error) {
	err = again(ctx, func() error {
		all, err = Who.Call(ctx, p.sess, room)
		return err
	})
	return all, err
}

// again calls f again while its error is one that is worth another attempt, and certainly nothing was done:
// the broker is away, or a server that shuts down had forwarded nothing yet.
func again(ctx context.Context, f func() error) error {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := f()
		after, ok := tp.Retryable(err)
		if !ok || ctx.Err() != nil {
			return err
		}
		wait(ctx, max(after, pause/2+rand.N(pause)))
	}
}
