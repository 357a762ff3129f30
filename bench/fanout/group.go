package main

import (
	"errors"
	"net"

	tp "github.com/henrylee2cn/teleport"
)

func groupRooms() []room { return []room{{name: "group", open: openGroup}} }

func groupSystems() []system {
	return []system{
		{"tp.group", "group", 1, "Group.Push"},
		{"tp.gzip", "group", 1, "Group.Push, compressed"},
		{"tp.group20", "group", burst, "20 times Group.Push, gathered by Group.Batch"},
	}
}

// openGroup has all sessions join two groups, of which one gathers.
func openGroup(ln net.Listener, r role, joined func()) (*opened, error) {
	peer := newTPServer(r)
	g, gathers := peer.Group("room"), peer.Group("room20")
	gathers.Batch(batchDelay)
	go accept(ln, func(conn net.Conn) {
		sess, err := peer.ServeConn(conn)
		if err == nil {
			err = errors.Join(g.Join(sess), gathers.Join(sess))
		}
		if err != nil {
			tp.Errorf("a member does not join: %v", err)
			return
		}
		joined()
	})
	push := func(g *tp.Group, settings ...tp.PacketSetting) way {
		return func(messages [][]byte) (failed int) {
			for _, m := range messages {
				d := g.Push(tickURI, m, settings...)
				failed += d.Dropped + d.Replaced + d.CutOff
			}
			return failed
		}
	}
	return &opened{
		ways: map[string]way{"tp.group": push(g), "tp.gzip": push(g, tp.WithGzip(-1)),
			"tp.group20": push(gathers)},
		close: func() { peer.Close() },
	}, nil
}
