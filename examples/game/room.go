package main

import (
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	tp "github.com/henrylee2cn/teleport"
)

// Room is a group of sessions, and the players behind them.
type Room struct {
	server *Server
	name   string
	group  *tp.Group
	start  sync.Once

	mu      sync.Mutex // guards the fields below, and the players' places and headings
	players map[*tp.Session]*player
	lines   int    // of chat so far
	chat    []Line // the last of them
	over    bool   // everybody has left
}

// player is a player with a seat.
type player struct {
	id     int
	name   string
	room   *Room
	latest tp.PacketSetting // a push with this replaces an older position of the player

	x, y, dx, dy float64 // centimetres, and centimetres a second; guarded by the room's mu
}

func newPlayer(id int, name string, room *Room) *player {
	// The places to begin at are spread: a step of the golden ratio for each id.
	_, along := math.Modf(float64(id) * (math.Phi - 1))
	return &player{id: id, name: name, room: room, latest: tp.Latest(strconv.Itoa(id)),
		x: width * (0.1 + 0.8*along), y: height * (0.15 + 0.7*float64(id*7%10)/9)}
}

func newRoom(s *Server, name string) *Room {
	r := &Room{server: s, name: name, group: s.peer.Group(name), players: make(map[*tp.Session]*player)}
	// All pushes of a tick go to a player in one write. The room ends its ticks itself, by Flush; this time,
	// which is longer, is for a tick that is late.
	r.group.Batch(2 * tick)
	return r
}

// join puts the session into the room, and returns what the room is like. The session is a member before
// that is looked up: so what happens at this moment comes twice, in the state and as a push, but never not
// at all.
func (r *Room) join(sess *tp.Session, p *player) (State, tp.Xerror) {
	r.mu.Lock()
	again, over := r.players[sess] != nil, r.over
	if !again && !over {
		r.players[sess] = p
	}
	r.mu.Unlock()
	if over {
		sess.Public().Delete(seatKey{})
		return State{}, tp.NewXerror(statusRoomOver, r.name+" is over: "+Enter.Uri()+" gives another one")
	}
	if !again {
		r.server.count(1, 0)
		r.start.Do(func() {
			r.server.count(0, 1)
			stop := r.group.Watch(func(e tp.GroupEvent) {
				if !e.Joined {
					r.left(e.Session)
				}
			})
			go r.run(stop)
		})
		if err := r.group.Join(sess); err != nil {
			r.left(sess)
			return State{}, tp.NewXerror(tp.StatusServiceUnavailable, err.Error())
		}
	}
	r.mu.Lock()
	state, me := State{Room: r.name, You: p.id, Chat: slices.Clone(r.chat)}, p.public()
	for _, other := range r.players {
		state.Players = append(state.Players, other.public())
	}
	r.mu.Unlock()
	if !again {
		Came.PushGroup(r.group, me)
	}
	return state, nil
}

// left takes the player out whose session has left the group, or has ended.
func (r *Room) left(sess *tp.Session) {
	r.mu.Lock()
	p := r.players[sess]
	delete(r.players, sess)
	r.mu.Unlock()
	if p != nil {
		r.server.count(-1, 0)
		Left.PushGroup(r.group, p.id)
	}
}

// run is the room's clock. The first player to join starts it; it ends when there is nobody in the room,
// which is also so when the server was closed.
func (r *Room) run(stopWatching func()) {
	clock := time.NewTicker(tick)
	defer clock.Stop()
	for range clock.C {
		if !r.tick() {
			break
		}
	}
	stopWatching()
	r.server.count(0, -1)
}

// tick moves everybody and pushes where they are now. It reports whether anybody is in the room.
//
// A push is not made under the lock. So a position may go out just after the news that its player has left:
// clients leave positions alone of players whom they do not know.
func (r *Room) tick() bool {
	r.mu.Lock()
	over := len(r.players) == 0
	r.over = over
	moved := make([]*player, 0, len(r.players))
	places := make([]Position, 0, len(r.players))
	now := time.Now().UnixNano()
	for _, p := range r.players {
		if p.move() {
			moved = append(moved, p)
			places = append(places, Position{p.id, int(p.x), int(p.y), now})
		}
	}
	r.mu.Unlock()
	for i, p := range moved {
		Moved.PushGroup(r.group, places[i], p.latest)
	}
	r.group.Flush()
	return !over
}

// say gives a line to everybody in the room, at the end of the tick. One line of a room is said at a time,
// see NewServer.
func (r *Room) say(p *player, text string) {
	r.mu.Lock()
	r.lines++
	line := Line{N: r.lines, From: p.id, Text: text, At: time.Now().UnixNano()}
	r.chat = append(r.chat[max(0, len(r.chat)-keptLines+1):], line)
	r.mu.Unlock()
	Said.PushGroup(r.group, line)
}

// steer takes the heading that the player has from the next tick on.
func (r *Room) steer(p *player, h *Heading) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p.dx, p.dy = h.Dx*100, h.Dy*100
}

// move moves the player for the time of a tick, and reports whether he is elsewhere then.
func (p *player) move() bool {
	x, y := p.x, p.y
	p.x = min(max(x+p.dx*tick.Seconds(), 0), width)
	p.y = min(max(y+p.dy*tick.Seconds(), 0), height)
	return int(p.x) != int(x) || int(p.y) != int(y)
}

func (p *player) public() Player { return Player{p.id, p.name, int(p.x), int(p.y)} }
