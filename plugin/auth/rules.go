package auth

import (
	"fmt"
	"path"
	"slices"
	"strings"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/ownroute"
	"github.com/henrylee2cn/teleport/packet"
)

// rule says who may call what matches its pattern.
type rule struct {
	path   string // without the star
	prefix bool   // the pattern ends with a star
	roles  []string
}

// Rule opens the routes that match the pattern to those who have one of the roles, and without roles to
// everybody who is known: others get 403, and those who are not known 401. The pattern is a path, or a path
// that ends with /* for that path and all below it; Rule("/*") closes all routes that no other rule opens.
// The routes of plugins, whose paths begin with /tp-, have no rules. Of several rules that match the longest
// pattern counts, and among two of the same length the one without a star; a route that none matches is open
// to all sessions. Rules hold for pulls, pushes and streams, for unknown routes too, and see the path as
// other plugins have left it. On the side that has dialled they hold for what the other side calls, which is
// known if the scheme is [Secret].
func Rule(pattern string, roles ...string) Option {
	name, prefix := strings.CutSuffix(pattern, "/*")
	if !strings.HasPrefix(pattern, "/") || strings.ContainsAny(name, "*?") {
		panic(fmt.Sprintf("auth: Rule(%q): expected a path that begins with a slash, and may end with /*.",
			pattern))
	}
	if name != "" && path.Clean(name) != name {
		panic(fmt.Sprintf("auth: Rule(%q): no call has such a path: expected no empty name, no dots, and no "+
			"slash at the end.", pattern))
	}
	if slices.Contains(roles, "") {
		panic(fmt.Sprintf("auth: Rule(%q): a role is empty.", pattern))
	}
	if prefix {
		name += "/"
	}
	return func(a *Auth) {
		if slices.ContainsFunc(a.rules, func(r rule) bool { return r.path == name && r.prefix == prefix }) {
			panic(fmt.Sprintf("auth: there are two rules for %q.", pattern))
		}
		a.rules = append(a.rules, rule{name, prefix, slices.Clone(roles)})
		slices.SortStableFunc(a.rules, func(x, y rule) int {
			if d := len(y.path) - len(x.path); d != 0 || x.prefix == y.prefix {
				return d
			}
			if x.prefix {
				return 1
			}
			return -1
		})
	}
}

func (r *rule) matches(path string) bool {
	return path == r.path || r.prefix && (strings.HasPrefix(path, r.path) || path+"/" == r.path)
}

// PreReadBody checks the rules, and that the caller's identity has not expired.
func (a *Auth) PreReadBody(ctx tp.ReadCtx) error {
	h := ctx.Input().Header
	call, ok := ctx.(tp.RoutedCtx)
	if !ok || ownroute.Is(call.Route()) { // a reply, or a plugin's
		return nil
	}
	p := Identity(ctx)
	if p != nil && !p.Expires.IsZero() && !a.now().Before(p.Expires) {
		return unauthorized("the identity of %q has expired", p.Name)
	}
	if len(a.rules) == 0 {
		return nil
	}
	path, _, _ := strings.Cut(h.Uri, "?")
	for i := range a.rules {
		if a.rules[i].matches(path) {
			return allowed(p, path, a.rules[i].roles)
		}
	}
	return nil
}

// allowed returns the error of a call to the path by somebody who has none of the roles.
func allowed(p *Principal, path string, roles []string) error {
	switch {
	case p == nil:
		return unauthorized("%s is not open to a side that is not known", path)
	case len(roles) > 0 && !p.Has(roles...):
		return tp.NewXerror(tp.StatusForbidden, fmt.Sprintf("%s needs the role %s, which %q does not have",
			path, strings.Join(roles, " or "), p.Name))
	}
	return nil
}

// Require returns a plugin for a group or a registration, whose routes are then open to those who have one of
// the roles, and without roles to everybody who is known. The peer must have an [Auth].
func Require(roles ...string) tp.Plugin { return required(slices.Clone(roles)) }

type required []string

func (r required) Name() string { return "auth: " + strings.Join(r, " or ") }

func (r required) PreReadBody(ctx tp.ReadCtx) error {
	h := ctx.Input().Header
	if h.Type == packet.TypeReply {
		return nil
	}
	path, _, _ := strings.Cut(h.Uri, "?")
	return allowed(Identity(ctx), path, r)
}
