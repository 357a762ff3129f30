package main

import (
	"fmt"
	"sync"

	tp "github.com/henrylee2cn/teleport"
)

// tpMembers are members that are sessions of a peer. Such a peer grants credit as programs' peers do, so it
// costs the server more than a bare connection that takes everything.
type tpMembers struct {
	addr    string
	peer    *tp.Peer
	tally   *tally
	members sync.Map // of *member by *tp.Session
}

func newTPMembers(addr string, t *tally) *tpMembers {
	p := &tpMembers{addr: addr, peer: tp.NewPeer(nil), tally: t}
	tp.HandlePush(p.peer.PushRouter, tickURI, func(ctx tp.PushCtx, message *[]byte) {
		m, ok := p.members.Load(ctx.Session())
		if !ok {
			p.tally.fail(fmt.Errorf("a message came by a session that has no member, %s", ctx.Session().Id()))
			return
		}
		if err := m.(*member).receive(*message); err != nil {
			p.tally.fail(err)
		}
	})
	return p
}

// connect connects the member. Handlers run side by side, so its messages may come in any order.
func (p *tpMembers) connect(m *member) error {
	sess, err := p.peer.Dial(p.addr)
	if err != nil {
		return err
	}
	m.anyOrder = true
	p.members.Store(sess, m)
	return nil
}

func (p *tpMembers) close() { p.peer.Close() }
