package describe

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/packet"
)

// Query says which part of a description is wanted. The zero value is for the first page of all.
type Query struct {
	// Prefix is what the paths of routes begin with.
	Prefix string
	// After is behind which route the page begins: Next of the page before.
	After string
	// Limit is how many routes the page has at most; 0 is for as many as fit.
	Limit int
	// Bytes is about how many bytes the page has at most, if that is less than the other side's own bound;
	// 0 is for that bound.
	Bytes int
}

// uri returns the URI of the query.
func (q Query) uri() string {
	values := make(url.Values)
	for key, value := range map[string]string{"prefix": q.Prefix, "after": q.After} {
		if value != "" {
			values.Set(key, value)
		}
	}
	for key, value := range map[string]int{"limit": q.Limit, "bytes": q.Bytes} {
		if value > 0 {
			values.Set(key, strconv.Itoa(value))
		}
	}
	if len(values) == 0 {
		return Path
	}
	return Path + "?" + values.Encode()
}

// parseQuery reads the query of a URI.
func parseQuery(values url.Values) (q Query, err error) {
	for _, key := range slices.Sorted(maps.Keys(values)) {
		value := values[key]
		if len(value) != 1 {
			return q, fmt.Errorf("describe: the query has %q %d times, expected once", key, len(value))
		}
		var number *int
		switch key {
		case "prefix":
			q.Prefix = value[0]
		case "after":
			q.After = value[0]
		case "limit":
			number = &q.Limit
		case "bytes":
			number = &q.Bytes
		default:
			return q, fmt.Errorf("describe: the query has %q, expected prefix, after, limit and bytes only",
				key)
		}
		if number != nil {
			if *number, err = strconv.Atoi(value[0]); err != nil || *number <= 0 {
				return q, fmt.Errorf("describe: the query's %s is %q, expected a positive number", key,
					value[0])
			}
		}
	}
	return q, nil
}

// cursor is what After has for the routes behind the entry. No kind has a space in it.
func (e *entry) cursor() string { return e.path + " " + string(e.kind) }

// behind returns the number of routes that are not behind the cursor. One without a kind is behind all kinds.
func (c *catalog) behind(cursor string) int {
	path, kind := cursor, Kind("\xff")
	if i := strings.LastIndexByte(cursor, ' '); i >= 0 {
		switch k := Kind(cursor[i+1:]); k {
		case Pull, Push, Stream:
			path, kind = cursor[:i], k
		}
	}
	return sort.Search(len(c.routes), func(i int) bool {
		r := &c.routes[i]
		return r.path > path || r.path == path && r.kind > kind
	})
}

// within returns the routes whose paths begin with the prefix, as numbers from and to.
func (c *catalog) within(prefix string) (from, to int) {
	from = sort.Search(len(c.routes), func(i int) bool { return c.routes[i].path >= prefix })
	to = from + sort.Search(len(c.routes)-from, func(i int) bool {
		return !strings.HasPrefix(c.routes[from+i].path, prefix)
	})
	return from, to
}

// page returns the body of an answer, with the id of its codec first.
func (c *catalog) page(q Query, most int) packet.RawBody {
	if q.Bytes > 0 {
		most = min(most, q.Bytes)
	}
	from, to := c.within(q.Prefix)
	first := from
	if q.After != "" {
		first = min(max(from, c.behind(q.After)), to)
	}
	p := pageBuilder{catalog: c, defs: make(map[string]bool), seen: make(map[string]bool)}
	last := first
	for ; last < to && (q.Limit <= 0 || last-first < q.Limit); last++ {
		if !p.add(&c.routes[last], most, last == first) {
			break
		}
	}
	next := ""
	if last < to && last > first {
		next = c.routes[last-1].cursor()
	}
	return p.encode(to-from, c.routes[first:last], next)
}

// pageBuilder collects what the routes of a page need.
type pageBuilder struct {
	catalog *catalog
	bytes   int
	defs    map[string]bool
	seen    map[string]bool // protobuf files
	files   []*file
}

// add takes the route in, unless the page would become too long.
func (p *pageBuilder) add(e *entry, most int, anyway bool) bool {
	size := len(e.encoded) + 1
	var defs []string // that the page does not have yet
	inside := make(map[string]bool)
	for need := slices.Clone(e.refs); len(need) > 0; {
		name := need[len(need)-1]
		need = need[:len(need)-1]
		if p.defs[name] || inside[name] {
			continue
		}
		inside[name] = true
		defs = append(defs, name)
		size += len(name) + len(p.catalog.defs[name].encoded) + len(`"":,`)
		need = append(need, p.catalog.defs[name].refs...)
	}
	seen := p.seen
	var files []*file
	if len(e.files) > 0 {
		seen = maps.Clone(p.seen)
		for _, path := range e.files {
			files = p.catalog.files.collect(path, seen, files)
		}
		for _, f := range files {
			size += base64.StdEncoding.EncodedLen(len(f.encoded))
		}
	}
	if p.bytes+size > most && !anyway {
		return false
	}
	p.bytes += size
	for _, name := range defs {
		p.defs[name] = true
	}
	p.seen, p.files = seen, append(p.files, files...)
	return true
}

// encode returns the page. It is the JSON of a Description, made of parts that are encoded already.
func (p *pageBuilder) encode(total int, routes []entry, next string) packet.RawBody {
	var b bytes.Buffer
	b.Grow(p.bytes + 512 + len(p.catalog.header))
	b.WriteByte(codec.IdJSON)
	fmt.Fprintf(&b, `{"$schema":%q,"version":%d,"revision":%q,"codecs":%s,"total":%d,"routes":[`, dialect,
		Version, p.catalog.revision, p.catalog.header, total)
	for i := range routes {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(routes[i].encoded)
	}
	b.WriteByte(']')
	before := `,"$defs":{`
	for _, name := range slices.Sorted(maps.Keys(p.defs)) {
		fmt.Fprintf(&b, "%s%q:%s", before, name, p.catalog.defs[name].encoded)
		before = ","
	}
	if len(p.defs) > 0 {
		b.WriteByte('}')
	}
	if len(p.files) > 0 {
		var set []byte
		for _, f := range p.files {
			set = append(set, f.encoded...)
		}
		fmt.Fprintf(&b, `,"descriptors":"%s"`, base64.StdEncoding.EncodeToString(set))
	}
	if next != "" {
		text, _ := json.Marshal(next) // a text always encodes
		fmt.Fprintf(&b, `,"next":%s`, text)
	}
	b.WriteByte('}')
	return b.Bytes()
}
