package main

import (
	"fmt"
	"net"
	"time"
)

// smallBuffer is what the kernel may hold for each connection, in bytes, where a member is stalled: at the
// server for all members, and at the member that does not read. So that shows after a few messages.
const smallBuffer = 4 << 10

// host is the server's side: a room and the link to its members.
type host struct {
	role    role
	room    *opened
	addr    net.Addr
	links   net.Listener
	link    *link
	joined  chan struct{} // has a value for each member that has joined
	sent    int64         // how many deliveries there were
	number  uint64        // of the next message
	message [burst][]byte
}

// mostMembers is more than any room has.
const mostMembers = 1 << 17

func newHost(r role) (*host, error) {
	room, ok := findRoom(r.Room)
	if !ok {
		return nil, fmt.Errorf("no room is called %q", r.Room)
	}
	h := &host{role: r, joined: make(chan struct{}, mostMembers)}
	for i := range h.message {
		h.message[i] = newMessage()
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	h.addr = ln.Addr()
	if h.links, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		ln.Close()
		return nil, err
	}
	if r.Stalled {
		ln = smallOutputs{ln}
	}
	if h.room, err = room.open(ln, r, func() { h.joined <- struct{}{} }); err != nil {
		ln.Close()
		h.links.Close()
		return nil, err
	}
	closeRoom := h.room.close
	h.room.close = func() {
		ln.Close()
		closeRoom()
	}
	return h, nil
}

// smallOutputs is a listener whose connections have small buffers for output.
type smallOutputs struct{ net.Listener }

func (l smallOutputs) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		err = conn.(*net.TCPConn).SetWriteBuffer(smallBuffer)
	}
	return conn, err
}

func (h *host) hello(a *answer) { a.Addr, a.Link = h.addr.String(), h.links.Addr().String() }

func (h *host) do(c command, a *answer) error {
	switch c.Do {
	case doReady:
		return h.ready(c.Members)
	case doSettle:
		a.RSS = settled()
		return nil
	case doSend:
		return h.send(c, a)
	}
	return fmt.Errorf("servers do not know the command %q", c.Do)
}

// ready waits until so many members have joined, and the link is there.
func (h *host) ready(members int) error {
	timer := time.NewTimer(h.role.Patience)
	defer timer.Stop()
	for n := range members {
		select {
		case <-h.joined:
		case <-timer.C:
			return fmt.Errorf("%d of %d members have joined in %v", n, members, h.role.Patience)
		}
	}
	if h.link != nil {
		return nil
	}
	if err := h.links.(*net.TCPListener).SetDeadline(time.Now().Add(h.role.Patience)); err != nil {
		return err
	}
	conn, err := h.links.Accept()
	if err == nil {
		h.link = &link{conn: conn, patience: h.role.Patience}
	}
	return err
}

// send sends bursts of messages, each when all readers have the one before it.
func (h *host) send(c command, a *answer) error {
	send, ok := h.room.ways[c.System]
	switch {
	case !ok:
		return fmt.Errorf("the room %s has no system %q", h.role.Room, c.System)
	case c.Burst < 1 || c.Burst > burst:
		return fmt.Errorf("%d messages at a time, where 1 to %d can be sent", c.Burst, burst)
	case h.link == nil:
		return fmt.Errorf("there are no members yet, to whom %s could send", c.System)
	}
	used := begin()
	for range c.Times {
		h.sent += int64(c.Readers) * int64(c.Burst)
		if err := h.link.expect(h.sent); err != nil {
			return err
		}
		now := time.Now()
		for _, m := range h.message[:c.Burst] {
			stamp(m, h.number, now)
			h.number++
		}
		a.Failed += send(h.message[:c.Burst])
		if err := h.link.await(h.sent); err != nil {
			return err
		}
	}
	used.end(a)
	return nil
}

func (h *host) close() {
	h.links.Close()
	if h.link != nil {
		h.link.conn.Close()
	}
	h.room.close()
}
