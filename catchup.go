package tp

import (
	"fmt"

	"github.com/henrylee2cn/teleport/internal/outbox"
	"github.com/henrylee2cn/teleport/packet"
)

// JoinAt is [Group.Join] for a member of a group with a [History] that may have missed pushes: at is the
// last position that the member has handled, as plugin/follow keeps it at the client's side. The member
// gets all pushes after it, in order and once, and then those that come from now on. If they are not all
// kept any more, or would be more than half of what may wait for the member, see
// [PeerConfig].MaxSessionOutput, it gets none of them, and Recovery.Afresh says that the member must
// start afresh: what the pushes were about has to come in another way. A session that is a member already
// gets what came after the position once more.
//
// The zero Position is that of somebody who was never there, and has missed nothing: what there was
// before has to come in another way, in the reply of the handler that calls JoinAt for example.
// Recovery.Afresh is false then. A position with the history's epoch and the number 0 is before the first
// push.
//
// Of a position that is not the one given the member is told in the order of its pushes, see [JoinedURI],
// before JoinAt returns. A push that was left out for the member, by [Except] or as the member was slow,
// comes when the member catches up from an older position. The error says that the session has ended or
// is of another peer, that the group has no history, or is that of the history's store.
func (g *Group) JoinAt(sess *Session, at Position) (Recovery, error) {
	if err := g.check("JoinAt", sess); err != nil {
		return Recovery{}, err
	}
	if g.history.Load() == nil {
		return Recovery{}, fmt.Errorf("tp: JoinAt of group %q: the group has no history: it is given to "+
			"Peer.Group(name, tp.History(...)), and lasts as long as the group", g.name)
	}
	rec, err := g.joinAt(sess, at)
	if err == nil {
		sess.askForCredit()
	}
	return rec, err
}

// joinAt has a pass call catchUp.
func (g *Group) joinAt(sess *Session, at Position) (rec Recovery, err error) {
	err = fmt.Errorf("tp: JoinAt of group %q: the history has ended the goroutine", g.name)
	j := &groupPush{}
	j.op = func() {
		err = g.guarded(func() (err error) {
			rec, err = g.catchUp(sess, at, j.seq)
			return err
		})
	}
	g.mu.Lock()
	g.addLocked(j)
	g.awaitPassLocked(j)
	return rec, err
}

// catchUp makes the session a member whose next push has a number greater than seq, and sends what it has
// missed. No pass is under way.
func (g *Group) catchUp(sess *Session, at Position, seq uint64) (Recovery, error) {
	log := g.history.Load()
	now, err := log.Last()
	if err != nil {
		return Recovery{}, err
	}
	var list []StoredPush
	ok := false
	if at != (Position{}) {
		if list, ok, err = log.Since(at); err != nil {
			return Recovery{}, err
		}
	}
	var missed []*groupPush
	if ok {
		missed, ok = g.missed(list)
	}
	rec := Recovery{Position: now, Pushes: len(list)}
	if !ok {
		rec.Pushes, rec.Afresh = 0, at != (Position{})
		if missed, err = g.joined(now, rec.Afresh); err != nil {
			return Recovery{}, err
		}
	}
	g.newPass(missed, []*member{{sess: sess}}).run()
	g.mu.Lock()
	defer g.mu.Unlock()
	return rec, g.joinLocked(sess, seq)
}

// missed makes what sends the pushes again. It reports false if they are too many.
func (g *Group) missed(list []StoredPush) (pushes []*groupPush, ok bool) {
	var bytes int64
	for i := range list {
		p := &groupPush{policy: outbox.Policy{Of: g}, seq: 1}
		if err := g.finish(p, list[i].packet(g.name)); err != nil {
			return nil, false
		}
		bytes += int64(len(p.b)) + outbox.ItemCost
		if most := g.peer.cfg.MaxSessionOutput; most >= 0 && bytes > most/2 {
			return nil, false
		}
		pushes = append(pushes, p)
	}
	return pushes, true
}

// joined makes the push that tells a member its position.
func (g *Group) joined(at Position, afresh bool) ([]*groupPush, error) {
	meta := map[string]string{MetaGroup: g.name, MetaAt: at.String()}
	if afresh {
		meta[MetaAfresh] = "1"
	}
	p := &groupPush{policy: outbox.Policy{Of: g}, seq: 1}
	err := g.finish(p, &packet.Packet{HeaderCodec: g.peer.cfg.DefaultHeaderCodec,
		Header: &packet.Header{Type: packet.TypePush, Uri: JoinedURI, Meta: meta}})
	return []*groupPush{p}, err
}
