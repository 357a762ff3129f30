package main

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"
	"unicode/utf8"

	tp "github.com/henrylee2cn/teleport"
)

// What both sides know of each other: the routes, with the types of what goes over them.
var (
	Enter = tp.NewMethod[string, Seat]("/lobby/enter")    // client to server: a name for a seat
	Join  = tp.NewMethod[struct{}, State]("/room/join")   // client to server: takes the seat
	Usage = tp.NewMethod[struct{}, Load]("/server/usage") // client to server: what the server costs
	Ready = tp.NewMethod[Seat, bool]("/ready")            // server to client: does it begin?
	Steer = tp.NewNote[Heading]("/room/steer")            // client to server
	Say   = tp.NewNote[string]("/room/say")               // client to server
	Moved = tp.NewNote[Position]("/room/moved")           // server to all players of a room
	Said  = tp.NewNote[Line]("/room/said")                // server to all players of a room
	Came  = tp.NewNote[Player]("/room/came")              // server to all players of a room
	Left  = tp.NewNote[int]("/room/left")                 // server to all players of a room: an id
	Wrong = tp.NewNote[string]("/notice/wrong")           // server to one client: what was wrong with a push
)

type (
	// Seat is a place in a room that is about to begin.
	Seat struct {
		Room    string `json:"room"`
		Players int    `json:"players"` // how many have a seat there
	}
	// State is a room as it is when a player joins.
	State struct {
		Room    string   `json:"room"`
		You     int      `json:"you"` // the id of the player who joins
		Players []Player `json:"players"`
		Chat    []Line   `json:"chat"` // the last lines, the oldest first
	}
	// Player is somebody in a room. Ids are never used again. X and Y are centimetres.
	Player struct {
		Id   int    `json:"id"`
		Name string `json:"name"`
		X    int    `json:"x"`
		Y    int    `json:"y"`
	}
	// Position is where a player is now.
	Position struct {
		Id int   `json:"id"`
		X  int   `json:"x"`
		Y  int   `json:"y"`
		At int64 `json:"at"` // when it was pushed, in Unix nanoseconds
	}
	// Heading is where a player wants to go: metres a second.
	Heading struct {
		Dx float64 `json:"dx"`
		Dy float64 `json:"dy"`
	}
	// Line is a line of chat. N counts the lines of the room, from 1.
	Line struct {
		N    int    `json:"n"`
		From int    `json:"from"`
		Text string `json:"text"`
		At   int64  `json:"at"` // when it was pushed, in Unix nanoseconds
	}
	// Load is what the server has to do, and has used.
	Load struct {
		Players int           `json:"players"`
		Rooms   int           `json:"rooms"`
		CPU     time.Duration `json:"cpu"` // of the process since it began; 0 if the system does not say
	}
)

// Codes of the game's own, for errors that a client may want to tell apart.
const (
	statusNoSeat   int32 = 1001
	statusNotReady int32 = 1002
	statusRoomOver int32 = 1003
)

// The rules of the game.
const (
	tick          = time.Second / 20
	width, height = 4000, 3000 // of a room, in centimetres
	maxSpeed      = 6          // metres a second
	maxName       = 24         // characters
	maxLine       = 200        // bytes
	keptLines     = 10         // of chat, for those who join later
	lobbyWait     = time.Second
	readyWithin   = 5 * time.Second
)

// Server is the game: a lobby, and rooms of up to size players.
type Server struct {
	peer *tp.Peer
	size int

	mu      sync.Mutex // guards the fields below
	table   *table     // where those sit who enter the lobby now; nil if nobody waits
	lastId  int        // of a player
	tables  int        // so far
	players int        // in rooms
	rooms   int        // with players
}

// table is players in the lobby, who will play together.
type table struct {
	room  *Room
	seats int           // guarded by the server's mu, and never changed when begin is closed
	begin chan struct{} // closed when nobody else gets a seat
}

// NewServer makes the game for rooms of up to size players. Its Peer still has to listen.
func NewServer(size int, plugins ...tp.Plugin) *Server {
	s := &Server{peer: tp.NewPeer(nil, plugins...), size: size}
	Enter.Handle(s.peer.PullRouter, s.enter)
	Join.Handle(s.peer.PullRouter, s.join)
	Usage.Handle(s.peer.PullRouter, s.usage)
	Steer.Handle(s.peer.PushRouter, s.steer)
	// The pushes of one player are handled in their order anyway. With OrderedBy those of a whole room are:
	// so the lines of a room have numbers in the order in which they go out.
	Say.Handle(s.peer.PushRouter, s.say, tp.OrderedBy(func(ctx tp.PushCtx) string {
		if p := playerOf(ctx.Session()); p != nil {
			return p.room.name
		}
		return ""
	}))
	return s
}

// enter seats the player at the table in the lobby. When the table is full, or nobody else has come for a
// while, the players are asked whether they are ready, each by the handler of his own pull: the server pulls
// from the client that waits for its reply.
func (s *Server) enter(ctx tp.PullCtx, name *string) (Seat, tp.Xerror) {
	if n := utf8.RuneCountInString(*name); n < 1 || n > maxName {
		return Seat{}, tp.NewXerror(tp.StatusBadRequest,
			fmt.Sprintf("a name of %d characters; 1 to %d were expected", n, maxName))
	}
	if p := playerOf(ctx.Session()); p != nil {
		return Seat{}, tp.NewXerror(tp.StatusBadRequest, "the session has a seat in "+p.room.name+" already")
	}
	t, id := s.sit()
	select {
	case <-t.begin:
	case <-ctx.Context().Done(): // the player has gone
		return Seat{}, tp.NewXerror(tp.StatusCanceled, "nobody waits for the seat any more")
	}
	seat := Seat{t.room.name, t.seats}
	within, cancel := context.WithTimeout(ctx.Context(), readyWithin)
	defer cancel()
	ready, err := Ready.Call(within, ctx.Session(), seat)
	switch {
	case err != nil:
		return Seat{}, tp.NewXerror(statusNotReady, "asked whether the player is ready: "+err.Error())
	case !ready:
		return Seat{}, tp.NewXerror(statusNotReady, "the player is not ready")
	}
	ctx.Session().Public().Store(seatKey{}, newPlayer(id, *name, t.room))
	return seat, nil
}

// sit gives a seat at the table that is being filled.
func (s *Server) sit() (t *table, id int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.table == nil {
		s.tables++
		t := &table{room: newRoom(s, fmt.Sprintf("room %d", s.tables)), begin: make(chan struct{})}
		time.AfterFunc(lobbyWait, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.beginLocked(t)
		})
		s.table = t
	}
	s.lastId++
	t = s.table
	if t.seats++; t.seats == s.size {
		s.beginLocked(t)
	}
	return t, s.lastId
}

func (s *Server) beginLocked(t *table) {
	if s.table == t {
		s.table = nil
		close(t.begin)
	}
}

// join serves the pull of a player who has a seat.
func (s *Server) join(ctx tp.PullCtx, _ *struct{}) (State, tp.Xerror) {
	p := playerOf(ctx.Session())
	if p == nil {
		return State{}, tp.NewXerror(statusNoSeat, "no seat: "+Enter.Uri()+" must be pulled first")
	}
	return p.room.join(ctx.Session(), p)
}

// steer takes where a player wants to go.
func (s *Server) steer(ctx tp.PushCtx, h *Heading) {
	p := seated(ctx)
	if p == nil {
		return
	}
	if speed := math.Hypot(h.Dx, h.Dy); !(speed <= maxSpeed) { // also if it is no number
		wrong(ctx, "a speed of %.3g m/s; at most %d was expected", speed, maxSpeed)
		return
	}
	p.room.steer(p, h)
}

// say takes a line of chat.
func (s *Server) say(ctx tp.PushCtx, text *string) {
	p := seated(ctx)
	if p == nil {
		return
	}
	if n := len(*text); n < 1 || n > maxLine {
		wrong(ctx, "a line of %d bytes; 1 to %d were expected", n, maxLine)
		return
	}
	p.room.say(p, *text)
}

// usage says what the server costs. A server on the internet answers that to its operators only.
func (s *Server) usage(tp.PullCtx, *struct{}) (Load, tp.Xerror) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Load{s.players, s.rooms, cpuTime()}, nil
}

// count adds to the numbers of players and rooms.
func (s *Server) count(players, rooms int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.players += players
	s.rooms += rooms
}

// seatKey is the key of a session's player among the session's values.
type seatKey struct{}

// playerOf returns the player who has a seat by the session, or nil.
func playerOf(sess *tp.Session) *player {
	p, _ := sess.Public().Load(seatKey{})
	found, _ := p.(*player)
	return found
}

// seated is playerOf for a push.
func seated(ctx tp.PushCtx) *player {
	p := playerOf(ctx.Session())
	if p == nil {
		wrong(ctx, "no seat: %s must be pulled first", Enter.Uri())
	}
	return p
}

// wrong tells a client what was wrong with a push. A push has no reply, so it is another push, which does
// not wait for a client that is slow.
func wrong(ctx tp.PushCtx, format string, args ...any) {
	_ = ctx.Session().TryPush(Wrong.Uri(), ctx.Path()+": "+fmt.Sprintf(format, args...))
}
