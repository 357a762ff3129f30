package workers

import (
	"strings"
	"sync"
)

// Lanes are the lanes of a session: one for its pushes, and one for each key that somebody asks for. All
// methods are safe for concurrent use.
type Lanes struct {
	Pushes Lane

	mu   sync.Mutex // guards more
	more map[any]*Lane
}

// Of returns the lane of the key.
func (l *Lanes) Of(key any) *Lane {
	l.mu.Lock()
	defer l.mu.Unlock()
	lane := l.more[key]
	if lane == nil {
		if l.more == nil {
			l.more = make(map[any]*Lane)
		}
		lane = new(Lane)
		l.more[key] = lane
	}
	return lane
}

// KeyLanes are lanes by texts, as long as calls are in them. The zero value has none. All methods are safe
// for concurrent use.
type KeyLanes struct {
	mu    sync.Mutex // guards the map, and the refs of its lanes
	lanes map[string]*KeyLane
}

// KeyLane is a Lane of KeyLanes.
type KeyLane struct {
	Lane
	of   *KeyLanes
	key  string
	refs int
}

// Take returns the lane of the key, for a call that gives it back.
func (k *KeyLanes) Take(key string) *KeyLane {
	k.mu.Lock()
	defer k.mu.Unlock()
	lane := k.lanes[key]
	if lane == nil {
		if k.lanes == nil {
			k.lanes = make(map[string]*KeyLane)
		}
		lane = &KeyLane{of: k, key: strings.Clone(key)} // of a URI it is a part
		k.lanes[lane.key] = lane
	}
	lane.refs++
	return lane
}

// GiveBack says that a call does not need the lane any more.
func (k *KeyLanes) GiveBack(lane *KeyLane) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if lane.refs--; lane.refs == 0 {
		delete(k.lanes, lane.key)
	}
}

// Of returns what the lane belongs to.
func (l *KeyLane) Of() *KeyLanes { return l.of }

// Len returns how many lanes there are.
func (k *KeyLanes) Len() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.lanes)
}
