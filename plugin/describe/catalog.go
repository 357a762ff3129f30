package describe

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"reflect"
	"slices"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/plugin/describe/docs"
)

// catalog is the description of a peer's routes, each part of it encoded. It is not changed after it was
// made.
type catalog struct {
	// All that the routers had, and the codecs: when they are others the catalog is old.
	handlers []*tp.Handler
	codecs   []Codec

	revision string
	header   json.RawMessage // of codecs
	routes   []entry         // by path and kind
	defs     map[string]part
	files    files
	first    packet.RawBody // the answer to the zero Query; nobody changes it
}

// entry is a route.
type entry struct {
	path string
	kind Kind
	part
	files []string // paths of protobuf files
}

// part is something that is encoded, with the names of the definitions that it refers to.
type part struct {
	encoded json.RawMessage
	refs    []string
}

// handlersOf returns what the routers of the peer have.
func handlersOf(p *tp.Peer) iter.Seq[*tp.Handler] {
	return func(yield func(*tp.Handler) bool) {
		for _, all := range []iter.Seq[*tp.Handler]{p.PullRouter.Handlers(), p.PushRouter.Handlers()} {
			for h := range all {
				if !yield(h) {
					return
				}
			}
		}
	}
}

// knownCodecs returns the codecs that are registered, by id.
func knownCodecs() (all []Codec) {
	for _, c := range codec.All() {
		all = append(all, Codec{Name: c.Name(), Id: int(c.Id())})
	}
	return all
}

// current reports whether the catalog is still that of the peer.
func (c *catalog) current(p *tp.Peer) bool {
	i := 0
	for h := range handlersOf(p) {
		if i == len(c.handlers) || c.handlers[i] != h {
			return false
		}
		i++
	}
	return i == len(c.handlers) && slices.Equal(c.codecs, knownCodecs())
}

// newCatalog describes the routes of the peer that are not hidden.
func newCatalog(p *tp.Peer, d *Describe) (*catalog, error) {
	c := &catalog{codecs: knownCodecs(), defs: make(map[string]part), files: make(files)}
	c.handlers = slices.Collect(handlersOf(p))
	shown := slices.DeleteFunc(slices.Clone(c.handlers), d.hidden)
	slices.SortStableFunc(shown, func(a, b *tp.Handler) int {
		return cmp.Or(cmp.Compare(a.Name(), b.Name()), cmp.Compare(kindOf(a), kindOf(b)))
	})
	var err error
	if c.header, err = json.Marshal(c.codecs); err != nil {
		return nil, err
	}
	types := newSchemas()
	for _, h := range shown {
		r, need := c.route(types, h)
		e := entry{path: r.Path, kind: r.Kind, files: need}
		for _, v := range []*Value{r.Argument, r.Reply} {
			if v != nil && v.Schema != nil {
				e.refs = append(e.refs, references(v.Schema)...)
			}
		}
		if e.encoded, err = encode(r); err != nil {
			return nil, fmt.Errorf("describe: the route %s: %w", r.Path, err)
		}
		c.routes = append(c.routes, e)
	}
	for name, schema := range types.defs {
		text, err := encode(schema)
		if err != nil {
			return nil, fmt.Errorf("describe: the definition %s: %w", name, err)
		}
		c.defs[name] = part{text, references(schema)}
	}
	c.revision = c.hash()
	c.first = c.page(Query{}, d.bytes)
	return c, nil
}

// encode is json.Marshal without the escapes for HTML.
func encode(v interface{}) (json.RawMessage, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// hash returns the revision.
func (c *catalog) hash() string {
	sum := sha256.New()
	write := func(b []byte) { fmt.Fprintf(sum, "%d:%s\n", len(b), b) }
	write(c.header)
	for _, r := range c.routes {
		write(r.encoded)
	}
	for _, name := range slices.Sorted(maps.Keys(c.defs)) {
		write([]byte(name))
		write(c.defs[name].encoded)
	}
	for _, path := range slices.Sorted(maps.Keys(c.files)) {
		write(c.files[path].encoded)
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}

func kindOf(h *tp.Handler) Kind {
	switch {
	case h.IsStream():
		return Stream
	case h.IsPull():
		return Pull
	}
	return Push
}

// route describes a handler, and returns the protobuf files of its messages.
func (c *catalog) route(types *schemas, h *tp.Handler) (Route, []string) {
	r := Route{Path: h.Name(), Kind: kindOf(h), Unknown: h.IsUnknown()}
	r.Doc, r.Deprecated = described(docOf(h))
	var need []string
	value := func(t reflect.Type, dir direction) *Value {
		if t == nil {
			return nil
		}
		v, path := c.value(types, t, dir, h.IsStream())
		if path != "" && !slices.Contains(need, path) {
			need = append(need, path)
		}
		return v
	}
	r.Argument = value(h.ArgType(), decoded)
	r.Reply = value(h.ReplyType(), encoded)
	return r, need
}

// docOf returns what a handler has of About, and otherwise its doc comment.
func docOf(h *tp.Handler) string {
	plugins := h.Plugins()
	for _, p := range slices.Backward(plugins) {
		if a, ok := p.(about); ok {
			return string(a)
		}
	}
	return docs.OfFunc(h.Func())
}

var (
	bytesType    = reflect.TypeFor[[]byte]()
	rawBodyType  = reflect.TypeFor[packet.RawBody]()
	rawValueType = reflect.TypeFor[tp.RawValue]()
)

// value describes a type, and returns the path of its protobuf file if it is a message.
func (c *catalog) value(types *schemas, t reflect.Type, dir direction, stream bool) (*Value, string) {
	v := &Value{GoType: t.String()}
	switch {
	case stream && t == bytesType:
		v.Raw, v.Note = true, "the bytes go as they are, without a codec"
		return v, ""
	case t == rawBodyType || t == rawValueType:
		v.Raw, v.Note = true, "a body as it stands on the wire: the id of its codec first"
		return v, ""
	}
	path := ""
	message, err := messageOf(t)
	if err == nil && message != nil {
		path, err = c.files.add(message.ParentFile())
	}
	if err != nil {
		v.Note, path = err.Error(), ""
	} else if message != nil {
		v.Message = string(message.FullName())
	}
	if v.Schema, err = types.of(t, dir); err != nil {
		v.Note = notes(v.Note, "the codec json has no form of it: "+err.Error())
	}
	return v, path
}

func notes(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}
