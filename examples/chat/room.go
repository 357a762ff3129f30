package main

import (
	"fmt"
	"sync/atomic"
	"time"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/contrib/nats"
	"github.com/henrylee2cn/teleport/plugin/auth"
)

// Rooms are groups on all servers with a history: the broker keeps the last messages of each, in one order.
const (
	historySize = 1000
	historyAge  = time.Hour
)

// rooms is what one server does for the people that are connected to it.
type rooms struct {
	hub      *nats.Hub
	messages atomic.Int64
}

func (r *rooms) room(name string) *nats.Group {
	return r.hub.Group(name, nats.History(historySize, historyAge))
}

// register registers the routes on the hub's peer.
func (r *rooms) register(peer *tp.Peer) {
	Join.Handle(peer.PullRouter, r.join)
	Part.Handle(peer.PullRouter, r.part)
	Say.Handle(peer.PullRouter, r.say)
	Who.Handle(peer.PullRouter, r.who)
	Tell.Handle(peer.PullRouter, r.tell)
	Ask.Handle(peer.PullRouter, r.ask)
}

// join has the person get what is said in the room: what was said after the position, and all from now on.
func (r *rooms) join(ctx tp.PullCtx, args *JoinArgs) (tp.Recovery, tp.Xerror) {
	if err := checkName("room", args.Room); err != nil {
		return tp.Recovery{}, asXerror(err)
	}
	rec, err := r.room(args.Room).JoinAt(ctx.Session(), args.At)
	return rec, asXerror(err)
}

func (r *rooms) part(ctx tp.PullCtx, room *string) (bool, tp.Xerror) {
	return r.room(*room).Leave(ctx.Session()), nil
}

// say answers when the broker has kept the message. Everybody in the room gets it, on whichever server.
func (r *rooms) say(ctx tp.PullCtx, args *SayArgs) (struct{}, tp.Xerror) {
	err := checkName("room", args.Room)
	if n := len(args.Text); err == nil && (n == 0 || n > maxText) {
		err = fmt.Errorf("the text has %d bytes; expected 1 to %d", n, maxText)
	}
	if err != nil {
		return struct{}{}, asXerror(err)
	}
	d := r.room(args.Room).Push(Said.Uri(), Message{args.Room, auth.Name(ctx), args.Text})
	if d.Err == nil {
		r.messages.Add(1)
	}
	return struct{}{}, d.Err
}

// who asks all servers. What some of them have answered is worth having without the others.
func (r *rooms) who(ctx tp.PullCtx, room *string) (all Presence, _ tp.Xerror) {
	members, err := r.room(*room).Members(ctx.Context())
	if err != nil {
		all.Missing = err.Error()
	}
	for _, m := range members {
		for _, name := range m.Identity {
			all.People = append(all.People, Present{name, m.Server.Name})
		}
	}
	return all, nil
}

// tell pushes to one person, wherever that person is connected.
func (r *rooms) tell(ctx tp.PullCtx, args *TellArgs) (struct{}, tp.Xerror) {
	msg := Message{From: auth.Name(ctx), Text: args.Text}
	return struct{}{}, r.hub.Identity(args.To).Push(ctx.Context(), Told.Uri(), msg)
}

// ask pulls from one person, and answers with the person's answer.
func (r *rooms) ask(ctx tp.PullCtx, name *string) (answer string, x tp.Xerror) {
	x = r.hub.Identity(*name).Pull(ctx.Context(), AreYouThere.Uri(), auth.Name(ctx), &answer)
	return answer, x
}
