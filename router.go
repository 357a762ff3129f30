package tp

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/internal/uri"
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

// Reg registers every exported method of a controller, which is a pointer to a
// struct that embeds [PullCtx]. Each method must be a
// func(*Args) (Reply, [Xerror]). Each call gets a copy of the controller as it
// was when it was registered, with the call's context in every PullCtx and PushCtx that
// the struct, or a struct embedded in it, embeds. What the calls share, with the lock that
// guards it, therefore stands behind a pointer:
//
//	type Rooms struct {
//		tp.PullCtx
//		state *State // has a sync.Mutex and a map
//	}
//
// It panics if something does not fit or a path is taken; if the controller holds a lock
// by value, one of package sync or sync/atomic or whatever go vet says must not be copied;
// and if an embedded pointer leads to a context, which all calls would share.
func (r *PullRouter) Reg(ctrl interface{}, plugins ...Plugin) {
	r.add(controllerHandlers(r.prefix, ctrl, true, r.chain.with(place{caller: fmt.Sprintf("Reg(%T)", ctrl)}, plugins)))
}

// SetUnknown sets what answers the pulls under this router's path that have no
// route, unless a group further inside has an unknown handler too. The body is
// the handler's own: the codec id first, compressed if it was. A handler that
// was set before is replaced.
func (r *PullRouter) SetUnknown(fn func(ctx UnknownPullCtx, body *[]byte) (interface{}, Xerror), plugins ...Plugin) {
	if fn == nil {
		panic("tp: PullRouter.SetUnknown: the handler is nil.")
	}
	r.setUnknown(true, plugins, func(c *call, arg interface{}) (interface{}, Xerror) {
		return fn(c, arg.(*[]byte))
	})
}

// PushRouter registers what takes pushes, as [PullRouter] does for pulls.
type PushRouter struct{ group }

// Group returns a router whose paths begin with this one's and prefix, and whose
// handlers have further plugins.
func (r *PushRouter) Group(prefix string, plugins ...Plugin) *PushRouter {
	return &PushRouter{r.sub(prefix, plugins)}
}

// Reg registers every exported method of a controller, which is a pointer to a
// struct that embeds [PushCtx]. Each method must be a func(*Args). For the rest
// see [PullRouter.Reg].
func (r *PushRouter) Reg(ctrl interface{}, plugins ...Plugin) {
	r.add(controllerHandlers(r.prefix, ctrl, false, r.chain.with(place{caller: fmt.Sprintf("Reg(%T)", ctrl)}, plugins)))
}

// SetUnknown sets what takes the pushes under this router's path that have no
// route. For the rest see [PullRouter.SetUnknown].
func (r *PushRouter) SetUnknown(fn func(ctx UnknownPushCtx, body *[]byte), plugins ...Plugin) {
	if fn == nil {
		panic("tp: PushRouter.SetUnknown: the handler is nil.")
	}
	r.setUnknown(false, plugins, func(c *call, arg interface{}) (interface{}, Xerror) {
		fn(c, arg.(*[]byte))
		return nil, nil
	})
}

// HandlePull registers a function that answers pulls to the path, which stands
// behind that of the router's group: HandlePull(router.Group("a"), "/b", fn)
// serves /a/b. It is to [PullRouter.Reg] as a function is to a method: there is
// no controller, and the compiler checks the types. Args is decoded into a fresh
// A for each call; a nil Xerror means success and sends the reply. A is a type, not a
// pointer to one; a pointer to a protobuf message is possible, and args points to that then.
// It panics if
// the path cannot be a route's or is taken. It is safe for concurrent use.
func HandlePull[A, R any](r *PullRouter, path string, fn func(ctx PullCtx, args *A) (R, Xerror), plugins ...Plugin) {
	if fn == nil {
		panic(fmt.Sprintf("tp: HandlePull(%q): the function is nil.", path))
	}
	r.handle("HandlePull", path, plugins, &Handler{
		pull:      true,
		argType:   reflect.TypeFor[A](),
		replyType: reflect.TypeFor[R](),
		newArg:    newArg[A](),
		target:    target[A](),
		call: func(c *call, arg interface{}) (interface{}, Xerror) {
			return fn(c, arg.(*A))
		},
	})
}

// HandlePush registers a function that takes pushes to the path, as [HandlePull]
// does for pulls.
func HandlePush[A any](r *PushRouter, path string, fn func(ctx PushCtx, args *A), plugins ...Plugin) {
	if fn == nil {
		panic(fmt.Sprintf("tp: HandlePush(%q): the function is nil.", path))
	}
	r.handle("HandlePush", path, plugins, &Handler{
		argType: reflect.TypeFor[A](),
		newArg:  newArg[A](),
		target:  target[A](),
		call: func(c *call, arg interface{}) (interface{}, Xerror) {
			fn(c, arg.(*A))
			return nil, nil
		},
	})
}

// newArg returns a function that makes an argument for a body. One that is a pointer to a
// protobuf message points to one, as the codec wants the message itself.
func newArg[A any]() func() interface{} {
	if newMessage[A]() == nil {
		return func() interface{} { return new(A) }
	}
	return func() interface{} {
		arg := newMessage[A]().(A)
		return &arg
	}
}

func target[A any]() func(arg interface{}) interface{} {
	if newMessage[A]() == nil {
		return nil
	}
	return func(arg interface{}) interface{} { return *arg.(*A) }
}

// handle registers h, which lacks a path and plugins.
func (g *group) handle(caller, p string, plugins []Plugin, h *Handler) {
	if path.Join("/", p) == "/" {
		panic(fmt.Sprintf("tp: %s(%q): the path has no name in it.", caller, p))
	}
	h.path = joinPath(caller, g.prefix, p)
	h.chain = g.chain.with(place{caller: fmt.Sprintf("%s(%q)", caller, p)}, plugins)
	g.add([]*Handler{h})
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

// group is one place in a tree of routes.
type group struct {
	routes *routes
	prefix string // canonical path; "/" at the root
	chain  *pluginChain
}

func newGroup(chain *pluginChain) group {
	r := &routes{peer: chain}
	r.table.Store(&routeTable{postReadHeader: chain.postReadHeader})
	return group{routes: r, prefix: "/", chain: chain}
}

func (g *group) sub(prefix string, plugins []Plugin) group {
	return group{routes: g.routes, prefix: joinPath("Group", g.prefix, prefix), chain: g.chain.with(place{caller: fmt.Sprintf("Group(%q)", prefix)}, plugins)}
}

func (g *group) add(handlers []*Handler) {
	for _, h := range handlers {
		g.routes.table.Load().refuseTaken(h)
		h.small = decodesSmall(h)
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

func (g *group) setUnknown(pull bool, plugins []Plugin, call func(*call, interface{}) (interface{}, Xerror)) {
	h := &Handler{
		path:    path.Join(g.prefix, "*"),
		pull:    pull,
		unknown: true,
		chain:   g.chain.with(place{caller: "SetUnknown"}, plugins),
		call:    call,
	}
	under := strings.TrimSuffix(g.prefix, "/") + "/"
	h.postReg()
	g.routes.update(func(t *routeTable) {
		t.all = slices.DeleteFunc(t.all, func(old *Handler) bool { return old.unknown && old.path == h.path })
		t.all = append(t.all, h)
		t.unknown = slices.DeleteFunc(t.unknown, func(u unknownRoute) bool { return u.under == under })
		t.unknown = append(t.unknown, unknownRoute{under, h})
		slices.SortFunc(t.unknown, func(a, b unknownRoute) int { return cmp.Compare(len(b.under), len(a.under)) })
	})
}

// routes is the table of one tree, replaced as a whole by whoever registers and
// read without a lock.
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

// smallDecoded is what a body of smallPacket bytes may become, if it is not to be counted.
const smallDecoded = 16 << 10

// decodesSmall reports whether every small body of the handler's becomes little.
func decodesSmall(h *Handler) bool {
	data := make([]byte, smallPacket)
	for _, name := range []string{codec.NameJSON, codec.NameProtobuf, codec.NameString} {
		if c, err := codec.GetByName(name); err != nil || codec.DecodedBound(c, data, h.into(h.newArg())) > smallDecoded {
			return false
		}
	}
	return true
}

// postReg runs the hooks of registration.
func (h *Handler) postReg() {
	if err := h.chain.postReg.run(h); err != nil {
		panic(fmt.Sprintf("tp: the route %s is refused: %v.", h.path, err))
	}
}

// find returns what handles the path, nil if nothing does.
func (t *routeTable) find(p string) *Handler {
	if h := t.handlers[p]; h != nil {
		return h
	}
	for _, u := range t.unknown {
		if strings.HasPrefix(p, u.under) || p == u.under[:len(u.under)-1] {
			return u.handler
		}
	}
	return nil
}

// canonicalURI is [uri.Canonical] with an error for the other side and the log, which says nothing
// of the query.
func canonicalURI(text string) (string, error) {
	canonical, err := uri.Canonical(text)
	if err != nil {
		return "", fmt.Errorf("the URI %q %w", quote(uri.WithoutQuery(text)), err)
	}
	return canonical, nil
}
