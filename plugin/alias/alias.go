// Package alias is a plugin that gives pulls and pushes further paths.
package alias

import (
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"

	tp "github.com/henrylee2cn/teleport"
)

// Alias rewrites the paths of arriving pulls and pushes before they are routed.
// Add it to a peer, a group or a registration: wherever it stands, it sees every
// packet of that router. Make it with [New]. All methods are safe for concurrent
// use, while the peer serves too.
type Alias struct {
	mu    sync.Mutex // one writer at a time
	paths atomic.Pointer[map[string]string]
}

var _ tp.PostReadHeaderPlugin = (*Alias)(nil)

// New returns a plugin without aliases.
func New() *Alias {
	a := new(Alias)
	a.paths.Store(&map[string]string{})
	return a
}

// Alias makes packets for the path alias go to the path uri, whatever their
// query, which is kept. For example Alias("/mul", "/arith/mul") routes
// /mul?x=1 as /arith/mul?x=1. It replaces an earlier uri of the same alias; an
// alias of an alias is not followed. It panics if either is not a path that
// begins with a slash and has no query.
func (a *Alias) Alias(alias, uri string) {
	for _, p := range []string{alias, uri} {
		if !strings.HasPrefix(p, "/") || strings.Contains(p, "?") {
			panic(fmt.Sprintf("alias: Alias(%q, %q): %q is not a path that begins with a slash and has "+
				"no query.", alias, uri, p))
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	next := maps.Clone(*a.paths.Load())
	next[alias] = uri
	a.paths.Store(&next)
}

// Name returns "alias".
func (a *Alias) Name() string { return "alias" }

// PostReadHeader rewrites the packet's URI.
func (a *Alias) PostReadHeader(ctx tp.ReadCtx) error {
	h := ctx.Input().Header
	p, query, hasQuery := strings.Cut(h.Uri, "?")
	uri, ok := (*a.paths.Load())[p]
	if !ok {
		return nil
	}
	if hasQuery {
		uri += "?" + query
	}
	h.Uri = uri
	return nil
}
