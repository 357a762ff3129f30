package main

import (
	"context"
	"fmt"
	"sort"
	"sync"
)

// Ledger is what was said in the rooms of a show, and what each member has heard: it says in the end whether
// every member got every message once, in an order that is the same for all. All methods are safe for
// concurrent use.
type Ledger struct {
	mu      sync.Mutex // guards the fields below
	members map[member]*heard
	said    map[string][]Message // by room: what a server has confirmed
	unknown map[Message]bool     // what may have been said
	changed chan struct{}        // closed, and made anew, when something was heard
}

type member struct{ room, name string }

// heard is what one member has heard.
type heard struct {
	list   []Message
	afresh bool // the member was told that messages are missing
}

// NewLedger makes one.
func NewLedger() *Ledger {
	return &Ledger{members: make(map[member]*heard), said: make(map[string][]Message),
		unknown: make(map[Message]bool), changed: make(chan struct{})}
}

// Joined says that the person is in the room, before anything is said there.
func (l *Ledger) Joined(room, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.members[member{room, name}] = &heard{}
}

// Said says that a message was confirmed, or if it was not, that it may have been said.
func (l *Ledger) Said(m Message, confirmed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if confirmed {
		l.said[m.Room] = append(l.said[m.Room], m)
	} else {
		l.unknown[m] = true
	}
}

// Heard says that a member has heard a message.
func (l *Ledger) Heard(name string, m Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.members[member{m.Room, name}]; h != nil {
		h.list = append(h.list, m)
	}
	l.changedLocked()
}

// Missed says that a member was told that messages are missing.
func (l *Ledger) Missed(room, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.members[member{room, name}]; h != nil {
		h.afresh = true
	}
	l.changedLocked()
}

func (l *Ledger) changedLocked() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// Await waits until each member has heard all that was confirmed, or was told that messages are missing.
func (l *Ledger) Await(ctx context.Context) {
	for {
		l.mu.Lock()
		missing, changed := l.missingLocked(), l.changed
		l.mu.Unlock()
		if len(missing) == 0 {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// missingLocked returns what is missing, a line for each member.
func (l *Ledger) missingLocked() (lines []string) {
	for who, h := range l.members {
		got := make(map[Message]bool, len(h.list))
		for _, m := range h.list {
			got[m] = true
		}
		n, first := 0, Message{}
		for _, m := range l.said[who.room] {
			if !got[m] {
				if n++; n == 1 {
					first = m
				}
			}
		}
		if n > 0 && !h.afresh {
			lines = append(lines, fmt.Sprintf("%s has not heard %d of %d messages in %s, the first is %s: %q",
				who.name, n, len(l.said[who.room]), who.room, first.From, first.Text))
		}
	}
	return lines
}

// Sum is the result of a show.
type Sum struct {
	Said, Heard int
	Unknown     int      // messages whose speakers do not know whether they were said
	OfThese     int      // how many of those were
	Afresh      int      // members that were told that messages are missing
	Wrong       []string // what should not be
}

// Check counts, and finds what is wrong.
func (l *Ledger) Check() (s Sum) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.Wrong, s.Unknown = l.missingLocked(), len(l.unknown)
	for _, list := range l.said {
		s.Said += len(list)
	}
	reached := make(map[Message]bool)
	next := make(map[Message]Message) // in a room, by whoever heard it first
	for who, h := range l.members {
		if h.afresh {
			s.Afresh++
		}
		s.Heard += len(h.list)
		times := make(map[Message]int)
		for _, m := range h.list {
			if times[m]++; times[m] == 2 {
				s.Wrong = append(s.Wrong, fmt.Sprintf("%s has heard twice in %s, %s: %q", who.name, m.Room,
					m.From, m.Text))
			}
			if l.unknown[m] {
				reached[m] = true
			}
		}
		for i := 1; i < len(h.list) && !h.afresh; i++ {
			before, m := h.list[i-1], h.list[i]
			if other, ok := next[before]; ok && other != m {
				s.Wrong = append(s.Wrong, fmt.Sprintf("in %s %s has heard %s's %q after %s's %q, and "+
					"another member %s's %q", who.room, who.name, m.From, m.Text, before.From, before.Text,
					other.From, other.Text))
			}
			next[before] = m
		}
		s.Wrong = append(s.Wrong, l.disorderLocked(who, h)...)
	}
	s.OfThese = len(reached)
	sort.Strings(s.Wrong)
	return s
}

// disorderLocked finds speakers who were not heard by a member in the order in which they have spoken.
func (l *Ledger) disorderLocked(who member, h *heard) (lines []string) {
	number := make(map[Message]int)
	for i, m := range l.said[who.room] { // of each speaker in order
		number[m] = i + 1
	}
	last := make(map[string]Message)
	for _, m := range h.list {
		if number[m] == 0 {
			continue // unknown
		}
		if before := last[m.From]; number[m] < number[before] {
			lines = append(lines, fmt.Sprintf("%s has heard %s's %q in %s after %q", who.name, m.From, m.Text,
				who.room, before.Text))
		}
		last[m.From] = m
	}
	return lines
}
