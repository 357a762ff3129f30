package tp

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"github.com/henrylee2cn/teleport/internal/inside"
	"github.com/henrylee2cn/teleport/internal/tlsconf"
)

// What package tptest has of a peer beyond its methods.
func init() {
	inside.Accept = func(ctx context.Context, peer any, conn net.Conn) (any, error) {
		return peer.(*Peer).acceptInMemory(ctx, conn)
	}
	inside.Dialled = func(ctx context.Context, peer any, conn net.Conn, address string) (any, error) {
		return peer.(*Peer).dialInMemory(ctx, conn, address)
	}
	inside.Draining = func(peer any) bool { return peer.(*Peer).draining() }
	inside.Made = func(peer any) time.Time { return peer.(*Peer).made }
	inside.Running = func(peer any) []inside.Call { return peer.(*Peer).runningCalls() }
}

// acceptInMemory is Peer.ServeConn, over TLS if the peer is configured for it.
func (p *Peer) acceptInMemory(ctx context.Context, conn net.Conn) (*Session, error) {
	cfg, err := p.serverTLS()
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	if cfg != nil {
		tc := tls.Server(conn, cfg)
		ctx, cancel := bounded(ctx, p.cfg.HandshakeTimeout)
		defer cancel()
		if err := tc.HandshakeContext(ctx); err != nil {
			err = refuseTLS(err)
			_ = conn.Close()
			return nil, err
		}
		conn = tc
	}
	return p.ServeConn(conn)
}

// dialInMemory is Peer.DialConn, over TLS if the peer is configured for it.
func (p *Peer) dialInMemory(ctx context.Context, conn net.Conn, address string) (*Session, error) {
	pair, err := p.loadTLS()
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	asked := false
	if pair.client != nil {
		tlsCtx, cancel := bounded(ctx, p.cfg.DefaultDialTimeout)
		defer cancel()
		if conn, asked, err = tlsconf.Client(tlsCtx, conn, pair.client, address); err != nil {
			return nil, tlsError(err)
		}
	}
	return p.newSession(ctx, conn, p.dialledFrom(nil, asked))
}

// runningCalls returns the calls in the tables of the peer's connections.
func (p *Peer) runningCalls() (running []inside.Call) {
	for _, cn := range p.sessions.live() {
		for _, c := range cn.calls.All() {
			typ, over := c.runs()
			if over || c.handler == nil {
				continue
			}
			running = append(running, inside.Call{Id: c, What: kindOf(typ), Route: c.handler.path,
				From: c.Ip(), Over: func() bool { _, over := c.runs(); return over }})
		}
	}
	return running
}

// runs returns the type of the call's packet, and whether the call is over.
func (c *call) runs() (typ int32, over bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over || c.exchange == nil {
		return 0, true
	}
	return c.typ, false
}
