package nats

import (
	"context"
	"fmt"
	"sync"

	"github.com/nats-io/nats.go/jetstream"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/packet"
)

// maxLogBytes bounds what a server remembers of the history of one group.
const maxLogBytes = 4 << 20

// maxReadBytes bounds what is read of a history for one member: as much as tp.History keeps.
const maxReadBytes = 16 << 20

// groupLog is what one server knows of the history of one group with members here: the tp.HistoryLog of the
// group of the peer. It remembers the pushes that have come, so that members who come back in numbers do not
// all ask the broker, and asks it for older ones.
type groupLog struct {
	hs    *histories
	group string
	class class

	mu    sync.Mutex // guards the fields below
	epoch string     // empty until the room is open
	// All pushes after start up to last are in list. Last is the last one that members here have got.
	start, last uint64
	list        []tp.StoredPush
	bytes       int
	ahead       *aheadRead // what was read for a member that joins now; nil if there is none

	// reading has the word of the one member for which the broker is being asked.
	reading chan struct{}
}

// aheadRead is the pushes after one position, up to the number to, of which the broker was asked before the
// group had to wait for it.
type aheadRead struct {
	after tp.Position
	to    uint64
	list  []tp.StoredPush
	ok    bool
}

// begin forgets what was known: the members here have missed nothing up to last.
func (l *groupLog) begin(epoch string, last uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.epoch == epoch && l.last == last {
		return
	}
	l.epoch, l.start, l.last, l.list, l.bytes = epoch, last, last, nil, 0
}

// skip says that what has the number is no push.
func (l *groupLog) skip(seq uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = max(l.last, seq)
}

func (l *groupLog) now() (epoch string, last uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.epoch, l.last
}

// Append takes a push to which the broker has given its position.
func (l *groupLog) Append(push tp.StoredPush) (tp.Position, error) {
	at, err := tp.ParsePosition(push.Meta[metaAt])
	if err != nil || at == (tp.Position{}) {
		return tp.Position{}, fmt.Errorf("nats: group %q has its history on the broker: push to it by "+
			"Hub.Group, and not by the group of this server", l.group)
	}
	delete(push.Meta, metaAt)
	push.At = at
	l.mu.Lock()
	defer l.mu.Unlock()
	if at.Epoch != l.epoch || at.Seq <= l.last {
		return tp.Position{}, fmt.Errorf("nats: group %q: the push %v comes after %v", l.group, at,
			tp.Position{Epoch: l.epoch, Seq: l.last})
	}
	l.last = at.Seq
	l.list = append(l.list, push)
	l.bytes += costOf(&push)
	l.pruneLocked()
	return at, nil
}

func (l *groupLog) pruneLocked() {
	n := 0
	for len(l.list)-n > l.class.size || l.bytes > maxLogBytes && len(l.list)-n > 0 {
		l.start = l.list[n].At.Seq
		l.bytes -= costOf(&l.list[n])
		l.list[n] = tp.StoredPush{}
		n++
	}
	if l.list = l.list[n:]; len(l.list) == 0 {
		l.list = nil
	}
}

// costOf is what the push takes in memory, more or less.
func costOf(p *tp.StoredPush) int {
	n := 256 + len(p.Uri) + len(p.Body)
	for k, v := range p.Meta {
		n += 64 + len(k) + len(v)
	}
	return n
}

// Last returns the position of the last push that members here have got.
func (l *groupLog) Last() (tp.Position, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return tp.Position{Epoch: l.epoch, Seq: l.last}, nil
}

// Since returns the pushes after the position that members here have got. Nobody appends meanwhile.
func (l *groupLog) Since(at tp.Position) (list []tp.StoredPush, ok bool, err error) {
	l.mu.Lock()
	start, last, ahead := l.start, l.last, l.ahead
	known := at.Epoch == l.epoch && at.Seq <= last
	late := l.list
	l.mu.Unlock()
	if !known {
		return nil, false, nil
	}
	if ahead != nil && ahead.after == at {
		if !ahead.ok {
			return nil, false, nil
		}
		list, at.Seq = append(list, ahead.list...), ahead.to
	}
	if at.Seq < start {
		older, ok, err := l.older(at, start)
		if !ok || err != nil {
			return nil, false, err
		}
		l.prepend(at.Seq, start, older)
		list, at.Seq = append(list, older...), start
	}
	for len(late) > 0 && late[0].At.Seq <= at.Seq {
		late = late[1:]
	}
	return append(list, late...), true, nil
}

// joining asks the broker for the pushes after the position that are not remembered here, and calls join,
// which has Since called: so pushes to the group do not wait for the broker. What was read is remembered
// until join returns; there is that of one member at a time.
func (l *groupLog) joining(ctx context.Context, at tp.Position,
	join func() (tp.Recovery, error)) (tp.Recovery, error) {
	if _, missing := l.missing(at); !missing {
		return join()
	}
	select {
	case l.reading <- struct{}{}:
	case <-ctx.Done():
		return tp.Recovery{}, closed()
	}
	defer func() { <-l.reading }()
	if start, missing := l.missing(at); missing { // and no other member had the same read meanwhile
		older, ok, err := l.older(at, start)
		if err != nil {
			return tp.Recovery{}, notJoined(l.group, err)
		}
		if !ok || !l.prepend(at.Seq, start, older) {
			l.setAhead(&aheadRead{at, start, older, ok})
			defer l.setAhead(nil)
		}
	}
	return join()
}

// missing reports whether some of the pushes after the position are not remembered, which are those up to
// start.
func (l *groupLog) missing(at tp.Position) (start uint64, is bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.start, at.Epoch == l.epoch && at.Seq < l.start
}

func (l *groupLog) setAhead(a *aheadRead) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ahead = a
}

// prepend remembers the older pushes, from after the number first up to start, and reports whether there is
// room for them.
func (l *groupLog) prepend(first, start uint64, older []tp.StoredPush) bool {
	bytes := 0
	for i := range older {
		bytes += costOf(&older[i])
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.start != start || len(older)+len(l.list) > l.class.size || bytes+l.bytes > maxLogBytes {
		return false
	}
	l.list = append(append([]tp.StoredPush(nil), older...), l.list...)
	l.start, l.bytes = first, l.bytes+bytes
	return true
}

// older asks the broker for the pushes after the position, up to the number to. It reports false if it is
// not certain that these are all, or they are too many to be read in askTime, or have more than maxReadBytes.
func (l *groupLog) older(at tp.Position, to uint64) (list []tp.StoredPush, ok bool, err error) {
	ctx, cancel := context.WithTimeout(l.hs.h.ctx, l.hs.h.o.ask)
	defer cancel()
	s, err := l.hs.stream(ctx, &l.class, false)
	if err != nil {
		return nil, false, err
	}
	subject := l.hs.h.subj.history(l.class.String(), l.group)
	messages, all, err := s.after(ctx, subject, at.Seq+1, to, maxReadBytes)
	if err == nil && !all {
		return nil, false, nil
	}
	if err != nil && len(messages) > 0 && l.hs.h.ctx.Err() == nil && ctx.Err() != nil {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	switch ok, err := s.hasAll(ctx, &l.class, subject, at.Seq, false); {
	case err != nil:
		return nil, false, err
	case !ok || s.epoch != at.Epoch:
		return nil, false, nil
	}
	for _, m := range messages {
		push, err := stored(m, at.Epoch)
		if err != nil {
			l.hs.h.lines.warnf("group %s: the push %d: %s", l.group, m.Sequence, err)
			continue // nobody has got it
		}
		list = append(list, push)
	}
	return list, true, nil
}

// stored is a push that the broker has kept.
func stored(m *jetstream.RawStreamMsg, epoch string) (push tp.StoredPush, err error) {
	msg, err := parse(m.Data)
	if err != nil {
		return push, err
	}
	p, err := msg.packet()
	if err != nil {
		return push, err
	}
	return tp.StoredPush{At: tp.Position{Epoch: epoch, Seq: m.Sequence},
		Uri: p.Header.Uri, Meta: p.Header.Meta,
		HeaderCodec: p.HeaderCodec, Gzip: p.Header.Gzip, Body: p.Body.(packet.RawBody)}, nil
}
