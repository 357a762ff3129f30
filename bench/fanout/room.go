package main

import (
	"net"
	"slices"
	"time"
)

// A room is a kind of server. Each runs in a process of its own, and its members in another.
type room struct {
	name string
	// websocket is set if its members speak to centrifuge; all others receive frames of this framework.
	websocket bool
	// open has the members that connect to the listener join, and calls joined for each one that has.
	open func(ln net.Listener, r role, joined func()) (*opened, error)
}

// opened is a room that runs.
type opened struct {
	// ways has a function for each system that sends in the room. It sends all messages to all members, and
	// returns to how many members that has failed, summed up over the messages. It may return before they
	// have come, and may use the messages' memory until then.
	ways  map[string]way
	close func()
}

type way func(messages [][]byte) (failed int)

// system is one way to send.
type system struct {
	Name string `json:"name"`
	Room string `json:"room"`
	// Burst is how many messages are sent at a time.
	Burst int    `json:"burst"`
	About string `json:"about"`
}

// burst is how many messages a system sends at a time that gathers them.
const burst = 20

// batchDelay is for how long systems gather messages that are told to wait for more.
const batchDelay = 50 * time.Millisecond

// stalledTimeout bounds every write where a member is stalled: it is the default of centrifuge.
const stalledTimeout = time.Second

// The systems that the others are compared with, by how many messages they send at a time.
const (
	floorOne  = "floor"
	floorMany = "floor20"
)

// rooms are all there are.
var rooms = append([]room{
	{name: "floor", open: openFloor},
	{name: "tp", open: openTP},
	{name: "centrifuge", websocket: true, open: openCentrifuge},
	{name: "centrifuge-delay", websocket: true, open: openCentrifugeDelay},
}, groupRooms()...)

// allSystems returns the systems in the order in which they are printed.
func allSystems() []system {
	return slices.Concat([]system{
		{floorOne, "floor", 1, "write(2) of one prepared frame on each connection"},
		{floorMany, "floor", burst, "the same with 20 frames in one write"},
		{"tp.push", "tp", 1, "Session.Push on each session"},
		{"tp.trypush", "tp", 1, "Session.TryPush on each session"},
		{"tp.push20", "tp", burst, "20 times Session.Push on each session"},
	}, groupSystems(), []system{
		{"centrifuge", "centrifuge", 1, "Node.Publish, as it is by default"},
		{"centrifuge20", "centrifuge-delay", burst, "20 times Node.Publish, gathered by WriteDelay"},
	})
}

// findRoom returns the room with the name.
func findRoom(name string) (room, bool) {
	i := slices.IndexFunc(rooms, func(r room) bool { return r.name == name })
	if i < 0 {
		return room{}, false
	}
	return rooms[i], true
}

// accept accepts connections until the listener is closed, and calls each with every one.
func accept(ln net.Listener, each func(net.Conn)) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		each(conn)
	}
}
