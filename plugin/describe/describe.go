// Package describe is a plugin that tells the other side of a connection what can be called: the routes of
// a peer with the types of their arguments and replies, as JSON Schema and as protobuf descriptors, and
// with their doc comments.
//
//	srv := tp.NewPeer(cfg, describe.New())                 // the side that is described
//	d, err := describe.Fetch(ctx, sess)                    // the other side: any peer, without the plugin
//
// The side that accepts a connection and the side that dials are the same: whoever has the plugin is
// described. A peer without it tells nothing. What is told is a [Description], whose JSON programs in other
// languages read too; the README of the package has its format. Doc comments come along where the command
// tpdoc has collected them.
//
// The plugin belongs on a peer, whose sessions may all ask unless [Access] says otherwise; rules of
// plugin/auth and limits of plugin/limit do not hold for its route.
package describe

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"sync/atomic"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/option"
	"github.com/henrylee2cn/teleport/internal/ownroute"
	"github.com/henrylee2cn/teleport/internal/printable"
	"github.com/henrylee2cn/teleport/internal/weakset"
	"github.com/henrylee2cn/teleport/packet"
)

// Path is the route on which a peer describes itself. It answers a pull with any body, which it does not
// look at, and with the query that [Query] has.
const Path = ownroute.Prefix + "describe"

// Describe is the plugin. Make it with [New]; it may be added to several peers. All methods are safe for
// concurrent use.
type Describe struct {
	access func(ctx tp.PullCtx) tp.Xerror
	hide   []pattern
	own    bool
	bytes  int
	peers  weakset.Set[tp.Peer] // those that have the route
}

// Option is an option of [New].
type Option func(*Describe)

// maxLine is how many bytes of a line of the log are written.
const maxLine = 1 << 10

// defaultBytes is how long a page may be.
const defaultBytes = 1 << 20

// New returns the plugin. It panics if an option is nil.
func New(options ...Option) *Describe {
	d := &Describe{bytes: defaultBytes}
	option.Apply("describe: New", d, options)
	return d
}

// Access asks the function before each answer: its error is what the other side gets in the place of a
// description. The function is called by many goroutines. With plugin/auth it may look at
// auth.Identity(ctx). It panics if the function is nil.
func Access(allow func(ctx tp.PullCtx) tp.Xerror) Option {
	if allow == nil {
		panic("describe: Access: the function is nil.")
	}
	return func(d *Describe) { d.access = allow }
}

// Hide leaves out the routes that match a pattern: a path, or a path that ends with /* for that path and
// all below it. It panics if a pattern is none.
func Hide(patterns ...string) Option {
	var hide []pattern
	for _, text := range patterns {
		name, below := strings.CutSuffix(text, "/*")
		if !strings.HasPrefix(text, "/") || name != "" && path.Clean(name) != name ||
			strings.ContainsAny(name, "?") || !below && strings.HasSuffix(name, "*") {
			panic(fmt.Sprintf("describe: Hide(%q): expected a path that begins with a slash, without a "+
				"query, dots or a slash at its end, and perhaps with /* behind it.", text))
		}
		hide = append(hide, pattern{name, below})
	}
	return func(d *Describe) { d.hide = append(d.hide, hide...) }
}

// Own shows the routes of plugins, whose paths begin with /tp-, too.
func Own() Option { return func(d *Describe) { d.own = true } }

// PageBytes changes about how many bytes a page of the description has at most, 1 MiB without this option.
// A page has one route at least, however long that is. A page must fit into the MaxBodyBytes of both peers;
// a side that takes less asks for less, see [Query]. It panics if the number is not positive.
func PageBytes(n int) Option {
	if n <= 0 {
		panic(fmt.Sprintf("describe: PageBytes(%d): expected a positive number.", n))
	}
	return func(d *Describe) { d.bytes = n }
}

// pattern is a path, or all below it and itself.
type pattern struct {
	path  string
	below bool
}

func (p pattern) matches(name string) bool {
	return name == p.path || p.below && strings.HasPrefix(name, p.path+"/")
}

// hidden reports whether the handler is left out.
func (d *Describe) hidden(h *tp.Handler) bool {
	name := h.Name()
	if !d.own && ownroute.Is(name) {
		return true
	}
	for _, p := range d.hide {
		if p.matches(name) {
			return true
		}
	}
	for _, p := range h.Plugins() {
		if _, ok := p.(hidden); ok {
			return true
		}
	}
	return false
}

// Name returns "describe".
func (d *Describe) Name() string { return "describe" }

// PostAccept has the peer describe itself.
func (d *Describe) PostAccept(fore tp.ForeSession) error { return d.serve(fore.Peer()) }

// PostDial has the peer describe itself.
func (d *Describe) PostDial(fore tp.ForeSession) error { return d.serve(fore.Peer()) }

func (d *Describe) serve(p *tp.Peer) error {
	if d.peers.Add(p) {
		s := &served{plugin: d}
		tp.HandlePull(p.PullRouter, Path, s.answer)
	}
	return nil
}

// served is the description of one peer.
type served struct {
	plugin *Describe
	last   atomic.Pointer[catalog]

	mu     sync.Mutex // guards the fields below
	making *making    // nil while nobody makes a catalog
}

// making is a catalog that is made; done is closed when the rest is set.
type making struct {
	done    chan struct{}
	catalog *catalog
	err     error
}

// answer handles the route. The body of the pull is not looked at, so that it may be of any codec.
func (s *served) answer(ctx tp.PullCtx, _ *packet.RawBody) (packet.RawBody, tp.Xerror) {
	if s.plugin.access != nil {
		if x := s.plugin.access(ctx); x != nil {
			return nil, x
		}
	}
	q, err := parseQuery(ctx.Query())
	if err != nil {
		return nil, tp.NewXerror(tp.StatusBadRequest, err.Error())
	}
	c, err := s.catalog(ctx.Context(), ctx.Peer())
	if err != nil {
		tp.Errorf("%s", printable.Text(fmt.Sprintf("describe: %v", err), maxLine))
		return nil, tp.NewXerror(tp.StatusInternalServerError, "the description could not be made")
	}
	ctx.SetGzip(0)
	if q == (Query{}) {
		return c.first, nil
	}
	return c.page(q, s.plugin.bytes), nil
}

// catalog returns the catalog of the peer as it is now. When routes have come one of those who ask makes it
// anew, and the others wait for that.
func (s *served) catalog(ctx context.Context, p *tp.Peer) (*catalog, error) {
	for {
		if c := s.last.Load(); c != nil && c.current(p) {
			return c, nil
		}
		m, mine := s.make()
		if mine {
			s.finish(m, p)
			return m.catalog, m.err
		}
		select {
		case <-m.done:
			if m.err != nil {
				return nil, m.err
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// make returns the catalog that is made, and true if the caller is to make it.
func (s *served) make() (m *making, mine bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.making != nil {
		return s.making, false
	}
	s.making = &making{done: make(chan struct{})}
	return s.making, true
}

// finish makes the catalog, also if that panics.
func (s *served) finish(m *making, p *tp.Peer) {
	m.err = errors.New("the description was not made to its end")
	defer func() {
		if r := recover(); r != nil {
			m.err = fmt.Errorf("making the description panicked: %v", r)
		}
		if m.err == nil {
			s.last.Store(m.catalog)
		}
		s.mu.Lock()
		s.making = nil
		s.mu.Unlock()
		close(m.done)
	}()
	m.catalog, m.err = newCatalog(p, s.plugin)
}

// Hidden returns a plugin for a registration or a group whose routes no description shows.
func Hidden() tp.Plugin { return hidden{} }

type hidden struct{}

func (hidden) Name() string              { return "describe: hidden" }
func (hidden) PostReg(*tp.Handler) error { return nil }

// About returns a plugin for a registration that says what the route does: in the place of a doc comment,
// which a function without a name cannot have. A paragraph that begins with "Deprecated: " has the meaning
// that it has in a doc comment.
func About(text string) tp.Plugin { return about(text) }

type about string

func (about) Name() string              { return "describe: about" }
func (about) PostReg(*tp.Handler) error { return nil }
