package tp

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"path"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/internal/role"
	"github.com/henrylee2cn/teleport/internal/uri"
	"github.com/henrylee2cn/teleport/packet"
)

// PullRouter registers what answers pulls, at the root or in a group. Routes may
// be added while the peer serves. All methods are safe for concurrent use.
//
// A route's path is the group's, the controller's type name and the method's
// name, the names in snake case: method TestUnknown of type Home in the group
// "group" serves /group/home/test_unknown.
type PullRouter struct{ group }

// Group returns a router whose paths begin with this one's and prefix, and whose
// handlers have further plugins.
func (r *PullRouter) Group(prefix string, plugins ...Plugin) *PullRouter {
	return &PullRouter{r.sub(prefix, plugins)}
}

// SetUnknown sets what answers the pulls under this router's path that have no
// route, unless a group further inside has an unknown handler too. The body is
// the handler's own: the codec id first, compressed if it was. A handler that
// was set before is replaced.
func (r *PullRouter) SetUnknown(fn func(ctx UnknownPullCtx, body *[]byte) (interface{}, Xerror),
	plugins ...Plugin) {
	if fn == nil {
		panic("tp: PullRouter.SetUnknown: the handler is nil.")
	}
	h := &Handler{pull: true, code: codeOf(fn), call: func(c *call, arg interface{}) (interface{}, Xerror) {
		return fn(c, arg.(*[]byte))
	}}
	r.setUnknown("SetUnknown", h, plugins)
}

// PushRouter registers what takes pushes, as [PullRouter] does for pulls.
type PushRouter struct{ group }

// Group returns a router whose paths begin with this one's and prefix, and whose
// handlers have further plugins.
func (r *PushRouter) Group(prefix string, plugins ...Plugin) *PushRouter {
	return &PushRouter{r.sub(prefix, plugins)}
}

// SetUnknown sets what takes the pushes under this router's path that have no
// route. For the rest see [PullRouter.SetUnknown].
func (r *PushRouter) SetUnknown(fn func(ctx UnknownPushCtx, body *[]byte), plugins ...Plugin) {
	if fn == nil {
		panic("tp: PushRouter.SetUnknown: the handler is nil.")
	}
	h := &Handler{code: codeOf(fn), call: func(c *call, arg interface{}) (interface{}, Xerror) {
		fn(c, arg.(*[]byte))
		return nil, nil
	}}
	r.setUnknown("SetUnknown", h, plugins)
}

// joinPath returns the canonical path of what is registered in a group. Dots in p
// do not lead out of it.
func joinPath(caller, prefix, p string) string {
	joined := path.Join(prefix, path.Join("/", p))
	if strings.ContainsAny(joined, "?%") {
		panic(fmt.Sprintf("tp: %s(%q): a path has no ? and no %% in it.", caller, p))
	}
	if canonical, err := canonicalURI(joined); err != nil || canonical != joined || !utf8.ValidString(p) {
		panic(fmt.Sprintf("tp: %s(%q): a path has no control characters in it and is UTF-8.", caller, p))
	}
	return joined
}

// group is one place in a tree of routes, where handlers are registered.
type group struct {
	routes *routes
	prefix string // canonical path; "/" at the root
	chain  *pluginChain
	pulls  bool // and not pushes
}

func newGroup(chain *pluginChain, pulls bool) group {
	r := &routes{peer: chain}
	r.table.Store(&routeTable{postReadHeader: chain.postReadHeader})
	return group{routes: r, prefix: "/", chain: chain, pulls: pulls}
}

func (g *group) sub(prefix string, plugins []Plugin) group {
	return group{routes: g.routes, prefix: joinPath("Group", g.prefix, prefix), pulls: g.pulls,
		chain: g.with(fmt.Sprintf("Group(%q)", prefix), plugins)}
}

// with returns the group's chain and these plugins, for what the caller makes.
func (g *group) with(caller string, plugins []Plugin) *pluginChain {
	if g.pulls {
		checkOrder(caller, plugins)
	}
	return g.chain.with(place{caller: caller}, plugins)
}

// Handlers returns the routes and unknown handlers whose paths are under the router's, for a range loop, in
// the order of their registration. The loop sees those that are there when it begins. It is safe for
// concurrent use.
func (g *group) Handlers() iter.Seq[*Handler] {
	under := strings.TrimSuffix(g.prefix, "/") + "/"
	return func(yield func(*Handler) bool) {
		for _, h := range g.routes.table.Load().all {
			if strings.HasPrefix(h.path, under) && !yield(h) {
				return
			}
		}
	}
}

func (g *group) add(handlers []*Handler) {
	for _, h := range handlers {
		g.routes.table.Load().refuseTaken(h)
		h.small = !h.stream && decodesSmall(h)
		h.postReg()
	}
	g.routes.update(func(t *routeTable) {
		for _, h := range handlers {
			t.refuseTaken(h)
			t.handlers[h.path] = h
			t.all = append(t.all, h)
		}
	})
}

func (t *routeTable) refuseTaken(h *Handler) {
	if _, ok := t.handlers[h.path]; ok {
		panic(fmt.Sprintf("tp: the route %s is registered twice.", h.path))
	}
}

func (g *group) setUnknown(caller string, h *Handler, plugins []Plugin) {
	h.path, h.unknown = path.Join(g.prefix, "*"), true
	h.chain = g.with(caller, plugins)
	under := strings.TrimSuffix(g.prefix, "/") + "/"
	h.postReg()
	g.routes.update(func(t *routeTable) {
		t.all = slices.DeleteFunc(t.all, func(old *Handler) bool {
			return old.unknown && old.path == h.path && old.stream == h.stream
		})
		t.all = append(t.all, h)
		t.unknown = slices.DeleteFunc(t.unknown, func(u unknownRoute) bool {
			return u.under == under && u.handler.stream == h.stream
		})
		t.unknown = append(t.unknown, unknownRoute{under, h})
		slices.SortFunc(t.unknown, func(a, b unknownRoute) int {
			return cmp.Compare(len(b.under), len(a.under))
		})
	})
}

// routes holds the table of one tree of routes. Each registration replaces the table as a whole, so that it
// is read without a lock.
type routes struct {
	peer  *pluginChain
	mu    sync.Mutex // one update at a time
	table atomic.Pointer[routeTable]
}

func (r *routes) update(change func(*routeTable)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.table.Load()
	next := &routeTable{
		handlers: maps.Clone(old.handlers),
		unknown:  slices.Clone(old.unknown),
		all:      slices.Clone(old.all),
	}
	if next.handlers == nil {
		next.handlers = make(map[string]*Handler)
	}
	change(next)
	next.postReadHeader = r.peer.postReadHeader
	for _, h := range next.all {
		next.postReadHeader = next.postReadHeader.merge(h.chain.postReadHeader)
	}
	r.table.Store(next)
}

type routeTable struct {
	handlers       map[string]*Handler
	unknown        []unknownRoute // the longest prefix first
	all            []*Handler     // in the order of registration
	postReadHeader hooks[ReadCtx] // of the peer and of everything registered
}

type unknownRoute struct {
	under   string // the group's path with a slash at its end
	handler *Handler
}

// smallDecoded is how many bytes a body of smallPacket bytes may become when it is decoded without being
// counted against the session's budget.
const smallDecoded = 16 << 10

// decodesSmall reports whether no body of up to smallPacket bytes becomes more than smallDecoded for this
// handler.
func decodesSmall(h *Handler) bool {
	data := make([]byte, smallPacket)
	for _, name := range []string{codec.NameJSON, codec.NameProtobuf, codec.NameString} {
		if c, err := codec.GetByName(name); err != nil ||
			codec.DecodedBound(c, data, h.into(h.newArg())) > smallDecoded {
			return false
		}
	}
	return true
}

// postReg runs the PostReg hooks.
func (h *Handler) postReg() {
	if err := h.chain.postReg.run(h); err != nil {
		panic(fmt.Sprintf("tp: the route %s is refused: %v.", h.path, err))
	}
}

// find returns the handler of the path, nil if there is none: of streams, or of pulls or pushes.
func (t *routeTable) find(p string, stream ...bool) *Handler {
	streams := len(stream) > 0 && stream[0]
	if h := t.handlers[p]; h != nil && h.stream == streams {
		return h
	}
	for _, u := range t.unknown {
		if u.handler.stream != streams {
			continue
		}
		if strings.HasPrefix(p, u.under) || p == u.under[:len(u.under)-1] {
			return u.handler
		}
	}
	return nil
}

// canonicalURI is [uri.Canonical] with an error that the other side and the log may see: without the query.
func canonicalURI(text string) (string, error) {
	canonical, err := uri.Canonical(text)
	if err != nil {
		return "", fmt.Errorf("the URI %q %w", quote(uri.WithoutQuery(text)), err)
	}
	return canonical, nil
}

// Handler is one registered route, as PostReg hooks see it. Its methods are safe
// for concurrent use.
type Handler struct {
	path      string
	pull      bool
	stream    bool
	unknown   bool
	argType   reflect.Type
	replyType reflect.Type
	chain     *pluginChain
	pace      role.Pace
	code      uintptr // where the code of the user's function or method begins; see codeOf
	// small is the result of decodesSmall.
	small bool

	// newArg returns a pointer to a new argument. Target returns the part of the argument that a body is
	// decoded into; if target is nil that is the argument itself.
	newArg func() interface{}
	target func(arg interface{}) interface{}
	// call runs the user's function; arg came from newArg.
	call func(c *call, arg interface{}) (interface{}, Xerror)
}

// takes reports whether the handler is for packets of the type.
func (h *Handler) takes(typ int32) bool { return h.stream == (typ == packet.TypeOpen) }

// into returns what the body is decoded into.
func (h *Handler) into(arg interface{}) interface{} {
	if h.target != nil {
		return h.target(arg)
	}
	return arg
}

// Name returns the route's path; an unknown handler's is its group's, followed
// by "/*".
func (h *Handler) Name() string { return h.path }

// IsPull reports whether the route answers pulls.
func (h *Handler) IsPull() bool { return h.pull && !h.stream }

// IsStream reports whether the route serves streams.
func (h *Handler) IsStream() bool { return h.stream }

// IsPush reports whether the route takes pushes.
func (h *Handler) IsPush() bool { return !h.pull }

// IsUnknown reports whether it handles the URIs that nothing else does.
func (h *Handler) IsUnknown() bool { return h.unknown }

// ArgType returns the type that bodies are decoded into, without the pointer; of a stream that of the values
// that the handler receives; nil for an unknown handler.
func (h *Handler) ArgType() reflect.Type { return h.argType }

// ReplyType returns the type of replies, of a stream that of the values that the handler sends; nil for a
// push and an unknown handler.
func (h *Handler) ReplyType() reflect.Type { return h.replyType }

// Func returns the name of the Go function or method that handles the route, as package runtime spells it:
// "example.com/shop.(*Cart).Add", "example.com/shop.add", or "example.com/shop.New.func1" for a function
// without a name.
func (h *Handler) Func() string {
	if f := runtime.FuncForPC(h.code); f != nil {
		return f.Name()
	}
	return ""
}

// Plugins returns the plugins of the route: the peer's, the groups' from outside in, and those of its
// registration. The slice is the caller's.
func (h *Handler) Plugins() []Plugin { return slices.Clone(h.chain.all) }

// codeOf returns where the code of a function begins.
func codeOf(fn interface{}) uintptr { return reflect.ValueOf(fn).Pointer() }
