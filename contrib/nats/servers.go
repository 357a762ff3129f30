package nats

import (
	"cmp"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
)

// The hubs of a service know each other: each says every second that it is there, and when it goes away.

// Server is a hub of the service.
type Server struct {
	Id   string // random, of the hub
	Name string // see [Name]
}

// other is another hub. The hub's mu guards it.
type other struct {
	Server
	heard time.Time
}

// Servers returns the hubs of the service that are heard now, this one too, by their names.
func (h *Hub) Servers() []Server {
	list := []Server{{h.id, h.o.name}}
	h.mu.Lock()
	for _, o := range h.others {
		list = append(list, o.Server)
	}
	h.mu.Unlock()
	slices.SortFunc(list, func(a, b Server) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Id, b.Id))
	})
	return list
}

// hello says that this hub is there. With ask the others say so too, and forget the names that this hub had;
// its claims follow.
func (h *Hub) hello(ask bool) {
	m := &message{kind: kindHello, more: []byte(h.o.name)}
	if ask {
		m.number = 1
	}
	h.tell(m)
}

// fromHub takes what is for all hubs.
func (h *Hub) fromHub(m *nats.Msg) {
	msg, err := parse(m.Data)
	if err != nil {
		h.foreign(m, err)
		return
	}
	if msg.from == h.id {
		h.echoed.Store(time.Now().UnixNano())
		return
	}
	if h.isClosed() {
		return
	}
	switch msg.kind {
	case kindHello:
		if known := h.heard(&msg); msg.number == 1 || !known {
			h.hello(false)
		}
		if msg.number == 1 { // it claims anew what it has, and may have lost the word that it has left a name
			h.claim(func(p *place) bool { return p.away.hub == msg.from })
		}
	case kindBye:
		h.gone(msg.from)
	case kindClaim:
		h.claimed(msg.from, msg.more)
	case kindRelease:
		h.released(msg.from, msg.more)
	case kindAsk:
		h.asked(m, &msg)
	case kindCheck:
		h.checkSoon(msg.name)
	}
}

// heard notes that the hub is there, and reports whether it was known.
func (h *Hub) heard(msg *message) (known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	o := h.others[msg.from]
	if o == nil {
		o = &other{Server: Server{Id: msg.from}}
		h.others[msg.from] = o
	} else {
		known = true
	}
	o.Name, o.heard = string(msg.more), time.Now()
	return known
}

// missing finds the hubs that have not been heard for long. While the broker is away that says nothing.
func (h *Hub) missing() {
	if !h.Connected() {
		return
	}
	before := time.Now().Add(-missedBeats * h.o.beat)
	var list []string
	h.mu.Lock()
	for id, o := range h.others {
		if o.heard.Before(before) {
			list = append(list, id)
		}
	}
	h.mu.Unlock()
	for _, id := range list {
		h.gone(id)
	}
}

// gone forgets the hub. Names that it had are those of older sessions again.
func (h *Hub) gone(id string) {
	h.mu.Lock()
	delete(h.others, id)
	h.mu.Unlock()
	h.claim(func(p *place) bool { return p.away.hub == id })
}
