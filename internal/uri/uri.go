// Package uri brings URIs to the one form that is used to find routes, that hooks see and that is logged. If
// a path could be written in two forms, a hook could check one of them and a handler of the other be called.
package uri

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Canonical returns the one form of a URI: the path unescaped, then "?" and the query as it came,
// if there is one. A URI whose path could be understood in more than one way has none. The error
// is the rest of a sentence that begins with "the URI".
func Canonical(uri string) (string, error) {
	bad := func(why string) (string, error) { return "", errors.New(why) }
	p, query, hasQuery := strings.Cut(uri, "?")
	if p == "" || p[0] != '/' {
		return bad("does not begin with a slash")
	}
	if !utf8.ValidString(uri) {
		return bad("is not UTF-8")
	}
	if strings.ContainsFunc(uri, unicode.IsControl) {
		return bad("has a control character in it")
	}
	if strings.IndexByte(p, '%') >= 0 {
		var b strings.Builder
		for i := 0; i < len(p); i++ {
			c := p[i]
			if c == '%' {
				n, err := strconv.ParseUint(p[i+1:min(i+3, len(p))], 16, 8)
				if err != nil || i+3 > len(p) {
					return bad("has an escape in it that is not % and two hexadecimal digits")
				}
				c = byte(n)
				i += 2
				if c == '/' || c == '%' || c == '?' {
					return bad(fmt.Sprintf("has an escaped %q in its path", c))
				}
			}
			b.WriteByte(c)
		}
		if p = b.String(); !utf8.ValidString(p) || strings.ContainsFunc(p, unicode.IsControl) {
			return bad("is not UTF-8, or has a control character in it, when unescaped")
		}
		uri = p
		if hasQuery {
			uri += "?" + query
		}
	}
	for rest := p[1:]; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		switch name {
		case "":
			return bad("has an empty name in its path")
		case ".", "..":
			return bad("has dots for a name in its path")
		}
	}
	return uri, nil
}

// Split takes a canonical URI apart into the path and the query as it came.
func Split(uri string) (p, rawQuery string) {
	p, rawQuery, _ = strings.Cut(uri, "?")
	return p, rawQuery
}

// WithoutQuery returns the part of a URI that may be in a log or a status text: not its query, which may have
// a token in it. An escaped question mark begins a query too.
func WithoutQuery(uri string) string {
	for _, begins := range []string{"?", "%3f", "%3F"} {
		uri, _, _ = strings.Cut(uri, begins)
	}
	return uri
}
