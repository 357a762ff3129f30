package nats

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"
	"weak"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	tp "github.com/henrylee2cn/teleport"
)

// History keeps the last pushes of the group, size of them and each for age, on the broker, so that a member
// that was away can catch up with [Group.JoinAt] on whichever server it is then. The broker needs JetStream:
// groups with the same size and age share one of its streams, which is kept in files, see [Replicas]. Without
// a broker it is tp.History. A size of less than 1, or an age of less than a second, panics.
//
// A push to such a group gets its position from the broker, which puts the pushes of all servers in one
// order, and comes to the members on this server too only when it has one. So it fails as a whole while the
// broker is away. If the broker is lost while a push is under way it is sent again, and kept once.
//
// A member catches up if the broker still has all that the member has missed. That is certain when it still
// has the last push that the member has handled, when none of the stream's pushes has become too old since
// then, or when members of the group were on the server all the time and the stream has no other bound, see
// [MaxHistoryBytes]. Where it is not certain the member is told to start afresh, also if it may have missed
// nothing. Numbers of positions are those of the stream: they grow, and there are gaps between them.
func History(size int, age time.Duration) GroupOption {
	if size < 1 || age < time.Second {
		panic(fmt.Sprintf("nats: History(%d, %v): a size from 1 and an age from a second on were expected.",
			size, age))
	}
	c := &class{size, age}
	return func(g *Group) { g.class = c }
}

// class is of the groups that share a stream.
type class struct {
	size int
	age  time.Duration
}

func (c *class) String() string {
	return strconv.Itoa(c.size) + "-" + strconv.FormatInt(int64(c.age/time.Millisecond), 10)
}

const (
	// metaAt tells the log of a group the position that the broker has given a push.
	metaAt = "tp-nats-at"
	// appendTime is how long a push is sent again before it fails, and appendWait how long each attempt
	// waits.
	appendTime, appendWait = 5 * time.Second, time.Second
	// askTime bounds what is asked of a stream, see options.ask.
	askTime = 5 * time.Second
	// partBytes is how much of a history is read before it is given on; each push counts messageCost more.
	partBytes, messageCost = 256 << 10, 512
)

// histories are the streams that this hub uses, and the logs of the groups whose members it has.
type histories struct {
	h *Hub

	mu      sync.Mutex // guards the fields below
	streams map[class]*stream
	logs    map[string]weak.Pointer[groupLog] // a tp.Group keeps its log
	sweepAt int                               // when logs has so many those that have gone are taken out
}

// stream is the JetStream of one class.
type stream struct {
	jetstream.Stream
	epoch string
	ask   time.Duration // options.ask
}

func (hs *histories) init(h *Hub) {
	hs.h, hs.streams, hs.logs = h, make(map[class]*stream), make(map[string]weak.Pointer[groupLog])
}

// stream returns the class's stream, which is made if there is none. With again the broker is asked in any
// case.
func (hs *histories) stream(ctx context.Context, c *class, again bool) (*stream, error) {
	hs.mu.Lock()
	s := hs.streams[*c]
	hs.mu.Unlock()
	if s != nil && !again {
		return s, nil
	}
	h := hs.h
	if !h.Connected() {
		return nil, away(nil)
	}
	ctx, cancel := context.WithTimeout(ctx, h.o.ask)
	defer cancel()
	cfg := jetstream.StreamConfig{
		Name:              "TP_" + token(h.o.service) + "_" + c.String(),
		Subjects:          []string{h.subj.prefix + "h." + c.String() + ".>"},
		MaxMsgsPerSubject: int64(c.size) + 1, // see groupLog.older
		MaxAge:            c.age,
		Discard:           jetstream.DiscardOld,
		Storage:           jetstream.FileStorage,
		Replicas:          1,
		Duplicates:        min(c.age, 2*time.Minute),
		RePublish: &jetstream.RePublish{
			Source:      h.subj.prefix + "h." + c.String() + ".>",
			Destination: h.subj.prefix + "n." + c.String() + ".>",
		},
	}
	h.o.setIn(&cfg)
	made, err := h.js.Stream(ctx, cfg.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if made, err = h.js.CreateStream(ctx, cfg); errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			made, err = h.js.Stream(ctx, cfg.Name) // another hub was faster
		}
	}
	if err == nil {
		made, err = hs.changed(ctx, made)
	}
	if err != nil {
		return nil, fmt.Errorf("nats: the stream %s: %w", cfg.Name, err)
	}
	s = &stream{made, strconv.FormatInt(made.CachedInfo().Created.UnixNano(), 36), h.o.ask}
	hs.mu.Lock()
	old := hs.streams[*c]
	hs.streams[*c] = s
	hs.mu.Unlock()
	if old == nil {
		// After a change of the leader pushes may have been kept that nobody was told of.
		advisory := "$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED." + cfg.Name
		sub, err := h.nc.Subscribe(advisory, func(*nats.Msg) { h.checkSoon("") })
		if err == nil {
			h.keepSub(sub)
		}
	}
	return s, nil
}

// changed returns the stream with what the options say. If the broker refuses that the stream is used as it
// is: others may have set what is right for the broker, and pushes must not end for that.
func (hs *histories) changed(ctx context.Context, s jetstream.Stream) (jetstream.Stream, error) {
	h := hs.h
	cfg := s.CachedInfo().Config
	if !h.o.setIn(&cfg) {
		return s, nil
	}
	made, err := h.js.UpdateStream(ctx, cfg)
	if isRefusal(err) {
		h.lines.warnf("the stream %s stays as it is, the broker has refused what the options say: %s",
			cfg.Name, err)
		return s, nil
	}
	return made, err
}

// setIn sets in the configuration of a stream what the options say, and reports whether that was a change.
// What is not said stays as somebody else has set it.
func (o *options) setIn(cfg *jetstream.StreamConfig) (changed bool) {
	old := *cfg
	if o.replicas > 0 {
		cfg.Replicas = o.replicas
	}
	if o.maxBytes > 0 {
		cfg.MaxBytes = o.maxBytes
	}
	return cfg.Replicas != old.Replicas || cfg.MaxBytes != old.MaxBytes
}

// refresh asks the broker for the streams again, which may be others than before, and reports whether they
// all are the same.
func (hs *histories) refresh(ctx context.Context) (same bool) {
	hs.mu.Lock()
	old := make(map[class]*stream, len(hs.streams))
	for c, s := range hs.streams {
		old[c] = s
	}
	hs.mu.Unlock()
	same = true
	for c, s := range old {
		now, err := hs.stream(ctx, &c, true)
		same = same && err == nil && now.epoch == s.epoch
	}
	return same
}

// keepSub has Close end the subscription.
func (h *Hub) keepSub(sub *nats.Subscription) {
	h.mu.Lock()
	if !h.closed {
		h.subs = append(h.subs, sub)
		sub = nil
	}
	h.mu.Unlock()
	if sub != nil {
		_ = sub.Unsubscribe()
	}
}

// append has the broker keep the push, which comes back from there to all servers.
func (hs *histories) append(c *class, group string, number uint64, payload []byte) tp.Xerror {
	h := hs.h
	if !h.Connected() {
		return away(nil)
	}
	if most := int(h.most.Load()); len(payload)+headerRoom > most {
		return tooLarge(len(payload)+headerRoom, most)
	}
	ctx, cancel := context.WithTimeout(h.ctx, appendTime)
	defer cancel()
	if _, err := hs.stream(ctx, c, false); err != nil {
		return asAway(err, "nothing was sent")
	}
	m := &nats.Msg{Subject: h.subj.history(c.String(), group), Data: payload}
	id := jetstream.WithMsgID(h.id + "." + strconv.FormatUint(number, 10))
	var last error
	for attempt := 0; ; attempt++ {
		one, cancel := context.WithTimeout(ctx, appendWait)
		_, err := h.js.PublishMsg(one, m, id, jetstream.WithRetryAttempts(0))
		cancel()
		if err == nil {
			if attempt > 0 { // it may have been kept before without anybody being told
				h.tell(&message{kind: kindCheck, name: group})
				h.checkSoon(group)
			}
			return nil
		}
		last = err
		var refused *jetstream.APIError
		if errors.As(err, &refused) {
			return unrun(tp.StatusServiceUnavailable, err, "the broker has not kept the push: %v", err)
		}
		if errors.Is(err, jetstream.ErrNoStreamResponse) { // it has gone, or has no leader now
			if !hs.refresh(ctx) {
				group = "" // all groups have another history now
			}
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return unknown(tp.StatusServiceUnavailable, errors.Join(ErrAway, last),
				"the broker has not said within %v that it has kept the push, the outcome is unknown: %v",
				appendTime, last)
		}
	}
}

// headerRoom is for the headers that the broker adds when it tells of a push.
const headerRoom = 1 << 10

// asAway returns the error of the broker as a tp.Xerror of what has not begun. It is ErrAway unless the
// broker is there and has refused.
func asAway(err error, what string) tp.Xerror {
	var x tp.Xerror
	if errors.As(err, &x) {
		return x
	}
	if isRefusal(err) {
		return unrun(tp.StatusServiceUnavailable, err, "%s: %v", what, err)
	}
	return unrun(tp.StatusServiceUnavailable, errors.Join(ErrAway, err), "%s: %v", what, err)
}

// isRefusal reports whether the broker has refused something, and not for want of a leader, or of the stream.
func isRefusal(err error) bool {
	var x *jetstream.APIError
	return errors.As(err, &x) && x.Code != http.StatusServiceUnavailable && x.Code != http.StatusNotFound
}

// notJoined returns the error of the broker for who wanted to join.
func notJoined(group string, err error) error {
	return asAway(err, "group "+strconv.Quote(group)+" has not been joined")
}

// open makes a room of a group with a history: its log begins with the last push that there is.
func (hs *histories) open(r *room) (err error) {
	h := hs.h
	ctx, cancel := context.WithTimeout(h.ctx, 2*h.o.ask)
	defer cancel()
	s, err := hs.stream(ctx, r.class, false)
	if err != nil {
		return notJoined(r.name, err)
	}
	r.core = h.peer.Group(r.name, tp.HistoryIn(hs, r.class.size, r.class.age))
	hs.mu.Lock()
	r.log = hs.logs[r.name].Value()
	hs.mu.Unlock()
	if r.log == nil || r.log.class != *r.class {
		return fmt.Errorf("nats: group %q: the peer's group has another history", r.name)
	}
	r.turn <- struct{}{} // pushes that come meanwhile wait
	defer r.giveBack()
	if r.sub, err = h.nc.Subscribe(h.subj.kept(r.class.String(), r.name), r.kept); err != nil {
		return fmt.Errorf("nats: group %q: %w", r.name, err)
	}
	h.flush()
	last, err := s.last(ctx, h.subj.history(r.class.String(), r.name))
	if err != nil {
		_ = r.sub.Unsubscribe()
		return notJoined(r.name, err)
	}
	r.log.begin(s.epoch, last)
	r.sure = time.Now()
	return nil
}

// Open is for the core: it makes the log of a group.
func (hs *histories) Open(group string, size int, age time.Duration) tp.HistoryLog {
	l := &groupLog{hs: hs, group: group, class: class{size, age}, reading: make(chan struct{}, 1)}
	hs.mu.Lock()
	defer hs.mu.Unlock()
	hs.logs[group] = weak.Make(l)
	if len(hs.logs) >= hs.sweepAt { // seldom enough that each log is looked at twice in all
		for name, ref := range hs.logs {
			if ref.Value() == nil {
				delete(hs.logs, name)
			}
		}
		hs.sweepAt = 2*len(hs.logs) + 16
	}
	return l
}

// last returns the number of the last push on the subject, or of the last of all if there is none on it.
func (s *stream) last(ctx context.Context, subject string) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, s.ask)
	defer cancel()
	m, err := s.GetLastMsgForSubject(ctx, subject)
	if err == nil {
		return m.Sequence, nil
	}
	if !errors.Is(err, jetstream.ErrMsgNotFound) {
		return 0, err
	}
	info, err := s.Info(ctx)
	if err != nil {
		return 0, err
	}
	return info.State.LastSeq, nil
}

// after returns the pushes on the subject from the number first on, up to the number last, as messages: all,
// or so many that they have more than the bytes; with an error those before it.
func (s *stream) after(ctx context.Context, subject string, first, last uint64,
	bytes int) (list []*jetstream.RawStreamMsg, all bool, _ error) {
	for first <= last {
		if bytes < 0 {
			return list, false, nil
		}
		m, err := s.GetMsg(ctx, first, jetstream.WithGetMsgSubject(subject))
		if errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && m.Sequence > last {
			break
		}
		if err != nil {
			return list, false, err
		}
		list = append(list, m)
		bytes -= messageCost + len(m.Data)
		first = m.Sequence + 1
	}
	return list, true, nil
}

// hasAll reports whether all pushes on the subject after the number from are there that there were. The
// broker removes the oldest pushes of a group when there are more than the class's size and one, and those
// of the whole stream that are too old. So all after the number are there if that, or an older one, is
// there. They are there too if the group has so few that none was too much, and nothing of the stream that
// came after the number was too old: young says that this is known, and otherwise the stream's first number
// tells. That tells too if the stream has a bound in all, or a shorter age, by which the broker removes what
// is young. As more may be removed meanwhile the pushes are to be read first.
func (s *stream) hasAll(ctx context.Context, c *class, subject string, from uint64,
	young bool) (bool, error) {
	first, err := s.GetMsg(ctx, 1, jetstream.WithGetMsgSubject(subject))
	switch {
	case err == nil && first.Sequence <= from:
		return true, nil
	case err != nil && !errors.Is(err, jetstream.ErrMsgNotFound):
		return false, err
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(subject))
	if err != nil {
		return false, err
	}
	cfg := &info.Config
	young = young && cfg.MaxBytes <= 0 && cfg.MaxMsgs <= 0 && (cfg.MaxAge <= 0 || cfg.MaxAge >= c.age)
	most := int64(c.size)
	if n := cfg.MaxMsgsPerSubject; n > 0 { // the last of which may have made room for itself
		most = min(most, n-1)
	}
	return info.State.Subjects[subject] <= uint64(most) && (young || info.State.FirstSeq <= from+1), nil
}

// kept takes a push that the broker has kept, with its number.
func (r *room) kept(m *nats.Msg) {
	seq, err := strconv.ParseUint(m.Header.Get(jetstream.SequenceHeader), 10, 64)
	before, err2 := strconv.ParseUint(m.Header.Get(jetstream.LastSequenceHeader), 10, 64)
	msg, err3 := parse(m.Data)
	if err := errors.Join(err, err2); err != nil {
		r.h.foreign(m, errors.Join(errForeign, err))
		return
	}
	if !r.take(r.h.ctx) {
		return
	}
	defer r.giveBack()
	if r.isOver() {
		return
	}
	epoch, last := r.log.now()
	at, _ := time.Parse(time.RFC3339Nano, m.Header.Get(jetstream.TimeStampHeaer))
	if seq <= last { // it was fetched before, or comes from another stream in the place of the old one
		if at.After(r.lastAt) {
			r.h.checkSoon("")
		}
		return
	}
	if before > last {
		if r.fetch(r.h.ctx) != nil {
			return // the next check fetches it
		}
		if epoch, last = r.log.now(); seq <= last {
			return
		}
	}
	r.sure, r.lastAt = time.Now(), at
	if err3 != nil || msg.name != r.name {
		r.h.foreign(m, errors.Join(errForeign, err3))
		r.log.skip(seq)
		return
	}
	r.give(m.Subject, &msg, tp.WithMeta(metaAt, tp.Position{Epoch: epoch, Seq: seq}.String()))
}

// check looks whether the members have missed pushes, and gives them those. If the stream is another one than
// before, the members are told to start afresh.
func (r *room) check(ctx context.Context) {
	if r.isOver() || !r.take(ctx) {
		return
	}
	defer r.giveBack()
	for attempt := 0; ; attempt++ {
		err := r.fetch(ctx)
		if err == nil || !r.h.Connected() { // when it is back there is another check
			return
		}
		if attempt == 20 {
			r.h.lines.warnf("group %s: what the broker has kept cannot be read: %s", r.name, err)
			return
		}
		select {
		case <-time.After(250 * time.Millisecond): // the stream has no leader yet, for example
		case <-ctx.Done():
			return
		}
	}
}

// reach has the members here get all up to the position: a member that comes from a server which was faster
// has got that already, and has nothing to start afresh for.
func (r *room) reach(ctx context.Context, at tp.Position) error {
	if r.log == nil {
		return nil
	}
	behind := func() bool {
		epoch, last := r.log.now()
		return at.Epoch == epoch && at.Seq > last
	}
	if !behind() {
		return nil
	}
	s, err := r.h.histories.stream(ctx, r.class, false)
	if err != nil {
		return notJoined(r.name, err)
	}
	to, err := s.last(ctx, r.h.subj.history(r.class.String(), r.name))
	if err != nil {
		return notJoined(r.name, err)
	}
	if to < at.Seq { // what a client may say keeps no pushes waiting
		return nil
	}
	if !r.take(ctx) {
		return closed()
	}
	defer r.giveBack()
	if !behind() {
		return nil
	}
	if err := r.fetch(ctx); err != nil {
		return notJoined(r.name, err)
	}
	return nil
}

// fetch gives the members what the broker has kept and they have not got. The caller has the room's turn.
func (r *room) fetch(ctx context.Context) error {
	h := r.h
	s, err := h.histories.stream(ctx, r.class, false)
	if err != nil {
		return err
	}
	subject := h.subj.history(r.class.String(), r.name)
	to, err := s.last(ctx, subject)
	if err != nil {
		return err
	}
	epoch, last := r.log.now()
	if epoch != s.epoch || to < last {
		r.startAfresh(s, to)
		return nil
	}
	young := r.isYoung()
	for all := false; !all && last < to && !r.isOver(); {
		list, more, err := r.part(ctx, s, subject, last, to, young)
		if errors.Is(err, errTooLate) {
			h.lines.warnf("group %s: the broker has no longer all pushes that were missed here", r.name)
			r.startAfresh(s, to)
			return nil
		}
		if err != nil {
			return err
		}
		for _, m := range list {
			last, r.lastAt = m.Sequence, m.Time
			msg, err := parse(m.Data)
			if err != nil {
				h.lines.warnf("group %s: the push %d: %s", r.name, m.Sequence, err)
				r.log.skip(m.Sequence)
				continue
			}
			at := tp.Position{Epoch: epoch, Seq: m.Sequence}
			r.give(m.Subject, &msg, tp.WithMeta(metaAt, at.String()))
		}
		all = !more
	}
	r.sure = time.Now()
	return nil
}

// errTooLate says that the broker may have removed some of what is asked for.
var errTooLate = errors.New("the pushes are not all there any more")

// part reads some of the pushes after the number last, in a time of its own. More says that there are others.
func (r *room) part(ctx context.Context, s *stream, subject string, last, to uint64,
	young bool) (list []*jetstream.RawStreamMsg, more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.h.o.ask)
	defer cancel()
	list, all, err := s.after(ctx, subject, last+1, to, partBytes)
	if err != nil {
		return nil, false, err
	}
	ok, err := s.hasAll(ctx, r.class, subject, last, young)
	if err == nil && !ok {
		err = errTooLate
	}
	return list, !all, err
}

// startAfresh has the members go on from the number, with the word that they have missed something.
func (r *room) startAfresh(s *stream, to uint64) {
	r.log.begin(s.epoch, to)
	r.sure = time.Now()
	for _, sess := range r.core.Members() {
		// Of no history that there is: the member is told to start afresh.
		_, _ = r.core.JoinAt(sess, tp.Position{Epoch: "gone", Seq: 1})
	}
}

// isYoung reports whether nothing that the members may have missed is so old that the broker has removed it.
func (r *room) isYoung() bool {
	sure := r.sure
	if sure.UnixNano() > r.h.back.Load() { // there was a connection all the time since then
		return true
	}
	if lost := time.Unix(0, r.h.good.Load()); lost.After(sure) {
		sure = lost
	}
	return time.Since(sure) < r.class.age-time.Second
}
