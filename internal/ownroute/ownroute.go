// Package ownroute says which routes belong to plugins themselves.
package ownroute

import "strings"

// Prefix is how the paths begin of routes on which the two sides' plugins talk to each other.
const Prefix = "/tp-"

// Is reports whether the path is of such a route. Plugins that limit calls, or close routes to some, leave
// them alone: a session that cannot renew its identity, for example, ends.
func Is(path string) bool { return strings.HasPrefix(path, Prefix) }
