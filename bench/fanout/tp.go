package main

import (
	"net"

	tp "github.com/henrylee2cn/teleport"
)

// newTPServer returns a peer as it is by default, but for the codec of bodies: messages are bytes.
func newTPServer(r role) *tp.Peer {
	cfg := &tp.PeerConfig{DefaultBodyCodec: "string"}
	if r.Stalled {
		cfg.DefaultWriteTimeout = stalledTimeout
	}
	return tp.NewPeer(cfg)
}

func openTP(ln net.Listener, r role, joined func()) (*opened, error) {
	peer := newTPServer(r)
	go accept(ln, func(conn net.Conn) {
		if _, err := peer.ServeConn(conn); err != nil {
			tp.Errorf("a member does not join: %v", err)
			return
		}
		joined()
	})
	each := func(push func(*tp.Session, []byte) tp.Xerror) way {
		return func(messages [][]byte) (failed int) {
			for _, m := range messages {
				peer.RangeSession(func(sess *tp.Session) bool {
					if push(sess, m) != nil {
						failed++
					}
					return true
				})
			}
			return failed
		}
	}
	push := each(func(sess *tp.Session, m []byte) tp.Xerror { return sess.Push(tickURI, m) })
	try := each(func(sess *tp.Session, m []byte) tp.Xerror { return sess.TryPush(tickURI, m) })
	return &opened{
		ways:  map[string]way{"tp.push": push, "tp.push20": push, "tp.trypush": try},
		close: func() { peer.Close() },
	}, nil
}
