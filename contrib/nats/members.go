package nats

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	tp "github.com/henrylee2cn/teleport"
)

// Member is a session in a group, and where it is connected.
type Member struct {
	Session  string   `json:"s"`           // its id
	Identity []string `json:"i,omitempty"` // what it was added with, see [Hub.Add]
	Server   Server   `json:"-"`
}

const (
	// membersTime bounds the wait for the servers' answers if the context has no deadline.
	membersTime = 2 * time.Second
	// settleTime is how long after it was connected a hub does not take the servers that it knows for all.
	settleTime = 250 * time.Millisecond
	// maxMembers is how many bytes of members go in one message.
	maxMembers = 256 << 10
)

// Members asks all servers for the group's members, and returns them by the servers' names and the sessions'
// ids. Nothing of that is kept anywhere: it is one message to each server, and one or more back, so that it
// is for a list that somebody looks at and not for each push. A session that connects to another server
// meanwhile may be in the list twice, or not at all.
//
// The wait ends when all servers that are known have answered, and with ctx, or after two seconds if ctx has
// no deadline. The error then names those that have not, or wraps [ErrAway]; the members that are known are
// returned beside it.
func (g *Group) Members(ctx context.Context) ([]Member, error) {
	list := g.membersHere()
	others, err := g.ask(ctx, false)
	for _, a := range others {
		list = append(list, a.members...)
	}
	slices.SortFunc(list, func(a, b Member) int {
		return cmp.Or(cmp.Compare(a.Server.Name, b.Server.Name), cmp.Compare(a.Server.Id, b.Server.Id),
			cmp.Compare(a.Session, b.Session))
	})
	return list, err
}

// Count asks all servers how many members the group has. For the wait and the error see [Group.Members].
func (g *Group) Count(ctx context.Context) (int, error) {
	n := g.Local().Len()
	others, err := g.ask(ctx, true)
	for _, a := range others {
		n += a.count
	}
	return n, err
}

func (g *Group) membersHere() []Member {
	h := g.h
	list := []Member{}
	for _, sess := range g.Local().Members() {
		list = append(list, Member{Session: sess.Id(), Identity: h.identities(sess),
			Server: Server{h.id, h.o.name}})
	}
	return list
}

// identities returns those that the session was added with.
func (h *Hub) identities(sess *tp.Session) (list []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range h.sessions[sess] {
		if k.kind == ofIdentity {
			list = append(list, k.name)
		}
	}
	return list
}

// answers are those of one server.
type answers struct {
	server  Server
	members []Member
	count   int
	over    bool
}

// ask asks the other servers for the group's members, or how many there are.
func (g *Group) ask(ctx context.Context, count bool) (map[string]*answers, error) {
	h := g.h
	switch {
	case h.isClosed():
		return nil, closed()
	case ctx == nil:
		return nil, errors.New("nats: the context is nil; expected one such as context.Background()")
	case h.nc == nil:
		return nil, nil
	}
	var mu sync.Mutex // guards all
	all := make(map[string]*answers)
	came := make(chan struct{}, 1)
	lost := make(chan tp.Xerror, 1)
	w := &waiter{
		waits: true,
		fail: func(x tp.Xerror) {
			select {
			case lost <- x:
			default:
			}
		},
		reply: func(msg *message, err error) {
			if msg == nil || err != nil || msg.kind != kindMembers {
				return
			}
			mu.Lock()
			takeMembers(all, msg)
			mu.Unlock()
			select {
			case came <- struct{}{}:
			default:
			}
		},
	}
	w.state.Store(isTaken)
	h.waiting.add(w)
	defer h.waiting.remove(w)
	m := &message{kind: kindAsk, from: h.id, name: g.name}
	if count {
		m.number = 1
	}
	if x := h.publish(h.subj.hubs(), h.subj.replies(h.id)+strconv.FormatUint(w.number, 10),
		m.append(nil)); x != nil {
		return nil, x
	}
	settled := time.NewTimer(settleTime - time.Since(time.Unix(0, h.back.Load())))
	defer settled.Stop()
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, membersTime)
		defer cancel()
	}
	again := time.NewTicker(h.o.beat) // servers that are gone are not waited for any more
	defer again.Stop()
	isSettled := time.Since(time.Unix(0, h.back.Load())) >= settleTime
	var err error
	for err == nil {
		mu.Lock()
		missing := h.missingAnswers(all)
		mu.Unlock()
		if isSettled && len(missing) == 0 {
			break
		}
		select {
		case <-came:
		case <-again.C:
		case <-settled.C:
			isSettled = true
		case x := <-lost:
			err = x
		case <-ctx.Done():
			err = fmt.Errorf("nats: the members of group %q on %s are not known: %w", g.name,
				strings.Join(missing, ", "), ctx.Err())
		}
	}
	mu.Lock()
	defer mu.Unlock()
	return copyOf(all), err
}

// copyOf returns a copy: answers that come late are taken into the other one.
func copyOf(all map[string]*answers) map[string]*answers {
	list := make(map[string]*answers, len(all))
	for id, a := range all {
		one := *a
		list[id] = &one
	}
	return list
}

// missingAnswers returns the names of the servers that have not answered yet.
func (h *Hub) missingAnswers(all map[string]*answers) (list []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, o := range h.others {
		if a := all[id]; a == nil || !a.over {
			list = append(list, o.Name)
		}
	}
	slices.Sort(list)
	return list
}

// membersText is what an answer has.
type membersText struct {
	Server  Server   `json:"server"`
	Members []Member `json:"members,omitempty"`
	Count   int      `json:"count"`
}

// takeMembers takes in a part of a server's answer; the number of the last part is 0.
func takeMembers(all map[string]*answers, msg *message) {
	var text membersText
	if json.Unmarshal(msg.more, &text) != nil {
		return
	}
	a := all[msg.from]
	if a == nil {
		a = &answers{server: text.Server}
		all[msg.from] = a
	}
	for i := range text.Members {
		text.Members[i].Server = text.Server
	}
	a.members = append(a.members, text.Members...)
	a.count += text.Count
	a.over = a.over || msg.number == 0
}

// asked answers another server that asks for the members of a group.
func (h *Hub) asked(m *nats.Msg, msg *message) {
	g := &Group{h: h, name: msg.name}
	text := membersText{Server: Server{h.id, h.o.name}}
	send := func(left uint64) {
		more, _ := json.Marshal(text)
		answer := &message{kind: kindMembers, number: left, from: h.id, more: more}
		_ = h.publish(m.Reply, "", answer.append(nil)) // who asks finds out that it is missing
		text.Members, text.Count = nil, 0
	}
	if msg.number == 1 {
		text.Count = g.Local().Len()
		send(0)
		return
	}
	bytes := 0
	for _, one := range g.membersHere() {
		size := 32 + 6*len(one.Session)
		for _, name := range one.Identity {
			size += 8 + 6*len(name)
		}
		if bytes += size; bytes > maxMembers && len(text.Members) > 0 {
			send(1)
			bytes = size
		}
		text.Members = append(text.Members, one)
		text.Count++
	}
	send(0)
}
