package main

import (
	"errors"
	"fmt"
	"unicode"
	"unicode/utf8"

	tp "github.com/henrylee2cn/teleport"
)

// What people ask of a server.
var (
	Join = tp.NewMethod[JoinArgs, tp.Recovery]("/room/join")
	Part = tp.NewMethod[string, bool]("/room/part")
	Say  = tp.NewMethod[SayArgs, struct{}]("/room/say")
	Who  = tp.NewMethod[string, Presence]("/room/who")
	Tell = tp.NewMethod[TellArgs, struct{}]("/person/tell")
	Ask  = tp.NewMethod[string, string]("/person/ask")
)

// What servers ask of people, and push to them.
var (
	AreYouThere = tp.NewMethod[string, string]("/are_you_there")
	Said        = tp.NewNote[Message]("/said")
	Told        = tp.NewNote[Message]("/told")
)

// Stats is what back ends ask of any server. To ask twice does no harm.
var Stats = tp.NewMethod[struct{}, State]("/stats", tp.WithIdempotent())

// JoinArgs says which room to join, and how far the person has come in it.
type JoinArgs struct {
	Room string      `json:"room"`
	At   tp.Position `json:"at"`
}

// SayArgs is what a person says in a room.
type SayArgs struct {
	Room string `json:"room"`
	Text string `json:"text"`
}

// TellArgs is what a person whispers to another one.
type TellArgs struct {
	To   string `json:"to"`
	Text string `json:"text"`
}

// Message is what somebody has said in a room, or whispered: then Room is empty.
type Message struct {
	Room string `json:"room,omitempty"`
	From string `json:"from"`
	Text string `json:"text"`
}

// Presence is who is in a room.
type Presence struct {
	People  []Present `json:"people"`
	Missing string    `json:"missing,omitempty"` // why there may be more: a server that does not answer
}

// Present is somebody in a room, and the server that the person is connected to.
type Present struct {
	Name   string `json:"name"`
	Server string `json:"server"`
}

// State is what a server says of itself.
type State struct {
	Server   string `json:"server"`
	Sessions int    `json:"sessions"`
	Messages int64  `json:"messages"` // those that this server was asked to bring to a room
}

const maxName, maxText = 32, 4096

// checkName returns what is wrong with the name of a person or a room.
func checkName(what, name string) error {
	if n := utf8.RuneCountInString(name); n == 0 || n > maxName {
		return fmt.Errorf("the %s has %d characters; expected 1 to %d", what, n, maxName)
	}
	for _, r := range name {
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '-' && r != '_' {
			return fmt.Errorf("the %s %q has the character %q; expected letters, digits, - and _", what,
				name, r)
		}
	}
	return nil
}

// asXerror returns the error as the answer of a handler: one of this framework as it is, so that the caller
// learns whether anything was done, and any other as the fault of the caller.
func asXerror(err error) tp.Xerror {
	if err == nil {
		return nil
	}
	var x tp.Xerror
	if errors.As(err, &x) {
		return x
	}
	return tp.NewXerror(tp.StatusBadRequest, err.Error())
}
