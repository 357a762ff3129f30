package main

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/henrylee2cn/teleport/bench/stats"
)

// dialsAtOnce is how many members connect at a time.
const dialsAtOnce = 32

// crowd is all members of a room, in a process of their own.
type crowd struct {
	role     role
	room     room
	tally    *tally
	inflated atomic.Pointer[inflated]
	peers    *tpMembers // of members that are sessions; nil without these

	mu      sync.Mutex // guards the fields below
	conns   []net.Conn
	closed  bool
	reading sync.WaitGroup
}

// newCrowd connects the members. They read from then on, but for the one in the middle if that is to be
// stalled.
func newCrowd(r role) (*crowd, error) {
	room, ok := findRoom(r.Room)
	if !ok {
		return nil, fmt.Errorf("no room is called %q", r.Room)
	}
	c := &crowd{role: r, room: room, tally: newTally()}
	if r.WithTP && !room.websocket {
		if r.Stalled {
			return nil, errors.New("a session of a peer reads, so it cannot be the member that does not")
		}
		c.peers = newTPMembers(r.Addr, c.tally)
	}
	conn, err := net.Dial("tcp", r.Link)
	if err == nil && c.keep(conn) {
		c.reading.Go(func() { confirm(conn, c.tally, r.Patience) })
		err = c.connect()
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// connect connects all members.
func (c *crowd) connect() error {
	var next atomic.Int64
	var dialling sync.WaitGroup
	for range min(c.role.Members, dialsAtOnce) {
		dialling.Go(func() {
			for {
				i := int(next.Add(1) - 1)
				if i >= c.role.Members || c.tally.failure() != nil {
					return
				}
				if err := c.connectOne(i); err != nil {
					c.tally.fail(fmt.Errorf("member %d: %w", i, err))
				}
			}
		})
	}
	dialling.Wait()
	return c.tally.failure()
}

func (c *crowd) connectOne(i int) error {
	m := &member{tally: c.tally}
	if c.peers != nil {
		return c.peers.connect(m)
	}
	stalled := c.role.Stalled && !c.role.AllRead && i == c.role.Members/2
	dialer := net.Dialer{Timeout: c.role.Patience}
	if stalled {
		dialer.Control = smallInput
	}
	conn, err := dialer.Dial("tcp", c.role.Addr)
	if err != nil {
		return err
	}
	if !c.keep(conn) {
		return net.ErrClosed
	}
	var reader interface{ serve() error } = newFrameReader(conn, m, &c.inflated)
	if c.room.websocket {
		if err := conn.SetReadDeadline(time.Now().Add(c.role.Patience)); err != nil {
			return err
		}
		w, err := openWebsocket(conn, m)
		if err != nil {
			return err
		}
		if err := conn.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
		reader = w
	}
	if stalled {
		return nil
	}
	c.reading.Go(func() {
		if err := reader.serve(); err != nil {
			c.tally.fail(fmt.Errorf("member %d: %w", i, err))
		}
	})
	return nil
}

// keep has the connection closed with the crowd. If that is closed already, keep closes the connection and
// reports false.
func (c *crowd) keep(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.conns = append(c.conns, conn)
		return true
	}
	conn.Close()
	return false
}

func (c *crowd) close() {
	c.mu.Lock()
	c.closed = true
	conns := c.conns
	c.conns = nil
	c.mu.Unlock()
	c.tally.fail(net.ErrClosed) // unless there was an error before; what the readers report now is none
	for _, conn := range conns {
		conn.Close()
	}
	if c.peers != nil {
		c.peers.close()
	}
	c.reading.Wait()
}

func (c *crowd) hello(*answer) {}

func (c *crowd) do(cmd command, a *answer) error {
	if cmd.Do != doMark {
		return fmt.Errorf("members do not know the command %q", cmd.Do)
	}
	a.Delivered, a.Times = c.tally.delivered.Load(), make(stats.Counts)
	c.tally.took.AddTo(a.Times)
	return c.tally.failure()
}
