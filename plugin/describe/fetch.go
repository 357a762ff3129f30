package describe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/packet"
)

// ErrNotDescribed is what errors.Is finds in the error of Fetch if the other side does not have the plugin.
var ErrNotDescribed = errors.New("the other side does not describe itself: its peer has not the plugin " +
	"describe")

const (
	// maxFetched is how many bytes of JSON Fetch reads at most, of all pages, and maxSchemas how many schemas
	// and other objects may be in them: a schema takes a KiB, and 3 bytes may be one. 10,000 routes are about
	// 3 MiB and 60,000 of them.
	maxFetched = 64 << 20
	maxSchemas = 250_000
	// maxDepth is how deep the JSON of a page may be: it is read again for each schema in a schema.
	maxDepth = 100
	// leastBytes is the shortest page that Fetch asks for when pages are too long for one of the sides.
	leastBytes = 4 << 10
	// maxChanges is how often Fetch begins again because routes have come meanwhile.
	maxChanges = 3
)

// Fetch returns the description of the session's other side, from all pages. It may be called on either
// side of a connection, and needs no plugin on this one.
//
// In its error errors.Is finds [ErrNotDescribed] if the other side has not the plugin, and otherwise
// errors.As finds the [tp.Xerror] of the pull: what the function of [Access] has returned there, for
// example.
func Fetch(ctx context.Context, sess *tp.Session) (*Description, error) {
	return FetchUnder(ctx, sess, "")
}

// FetchUnder is Fetch for the routes whose paths begin with the prefix.
func FetchUnder(ctx context.Context, sess *tp.Session, prefix string) (*Description, error) {
	q := Query{Prefix: prefix}
	var all *Description
	for read, schemas, changes := 0, 0, 0; ; {
		d, body, err := fetchPage(ctx, sess, q)
		if err != nil {
			var x tp.Xerror
			if errors.As(err, &x) && x.Code() == tp.StatusTooLarge && q.Bytes != leastBytes {
				if q.Bytes == 0 {
					q.Bytes = defaultBytes
				}
				q.Bytes = max(q.Bytes/4, leastBytes)
				continue
			}
			return nil, err
		}
		read, schemas = read+len(body), schemas+schemasIn(body)
		if read > maxFetched || schemas > maxSchemas {
			return nil, fmt.Errorf("describe: the description of %s is too long, with more than %d bytes or "+
				"%d schemas: ask for a part of it", sess.Id(), maxFetched, maxSchemas)
		}
		switch {
		case all == nil:
			all = d
		case d.Revision != all.Revision && changes < maxChanges:
			changes++
			all, q.After = nil, ""
			continue
		default:
			if err := all.append(d); err != nil {
				return nil, err
			}
		}
		if d.Next == "" {
			all.Next = ""
			return all, nil
		}
		if len(d.Routes) == 0 || d.Next == q.After {
			return nil, fmt.Errorf("describe: a page of %s leads to no other: %q", sess.Id(), d.Next)
		}
		q.After = d.Next
	}
}

// FetchPage returns one page of the description of the session's other side. For the errors see [Fetch].
func FetchPage(ctx context.Context, sess *tp.Session, q Query) (*Description, error) {
	d, _, err := fetchPage(ctx, sess, q)
	return d, err
}

// schemasIn returns how many schemas there may be in the JSON: objects, and what is true or false.
func schemasIn(text []byte) int {
	return bytes.Count(text, []byte("{")) + bytes.Count(text, []byte("true")) +
		bytes.Count(text, []byte("false"))
}

// fetchPage returns a page and its body.
func fetchPage(ctx context.Context, sess *tp.Session, q Query) (*Description, packet.RawBody, error) {
	fail := func(err error) (*Description, packet.RawBody, error) {
		return nil, nil, fmt.Errorf("describe: fetching from session %s: %w", sess.Id(), err)
	}
	var body packet.RawBody
	if x := sess.PullContext(ctx, q.uri(), nil, &body).Xerror; x != nil {
		if x.Code() == tp.StatusNotFound {
			return fail(fmt.Errorf("%w (%w)", ErrNotDescribed, x))
		}
		return fail(x)
	}
	// A peer without the plugin may have a handler for what is unknown, which answers anything.
	odd := func(what string) (*Description, packet.RawBody, error) {
		return fail(fmt.Errorf("%w: it has answered %s", ErrNotDescribed, what))
	}
	if len(body) == 0 {
		return odd("without a body")
	}
	if body[0] != codec.IdJSON {
		return odd(fmt.Sprintf("with the codec %d, expected that of json", body[0]))
	}
	var version struct {
		Version int `json:"version"`
	}
	if n := schemasIn(body); n > maxSchemas {
		return fail(fmt.Errorf("the page has %d schemas or more, expected %d at most", n, maxSchemas))
	}
	if err := json.Unmarshal(body[1:], &version); err != nil || version.Version <= 0 {
		return odd("with something else than a description")
	}
	if version.Version != Version {
		return fail(fmt.Errorf("the description is of version %d, expected %d", version.Version, Version))
	}
	d := new(Description)
	if err := decode(body, d); err != nil {
		return fail(fmt.Errorf("the description does not decode: %w", err))
	}
	return d, body, nil
}

// decode decodes the JSON of a body.
func decode(body packet.RawBody, v interface{}) error {
	c, err := codec.GetById(codec.IdJSON)
	if err != nil {
		return err
	}
	return codec.DecodeDepth(c, body[1:], v, maxDepth)
}

// append takes in what the next page has.
func (d *Description) append(next *Description) error {
	d.Routes = append(d.Routes, next.Routes...)
	if d.Definitions == nil {
		d.Definitions = next.Definitions
	} else {
		maps.Copy(d.Definitions, next.Definitions)
	}
	d.Codecs, d.Revision, d.Total = next.Codecs, next.Revision, next.Total
	if len(next.Descriptors) == 0 {
		return nil
	}
	all, more := new(descriptorpb.FileDescriptorSet), new(descriptorpb.FileDescriptorSet)
	for _, part := range []struct {
		encoded []byte
		set     *descriptorpb.FileDescriptorSet
	}{{d.Descriptors, all}, {next.Descriptors, more}} {
		if err := proto.Unmarshal(part.encoded, part.set); err != nil {
			return fmt.Errorf("describe: the descriptors are no FileDescriptorSet: %w", err)
		}
	}
	known := make(map[string]bool)
	for _, f := range all.File {
		known[f.GetName()] = true
	}
	for _, f := range more.File {
		if !known[f.GetName()] {
			all.File = append(all.File, f)
		}
	}
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(all)
	if err != nil {
		return fmt.Errorf("describe: the descriptors do not encode: %w", err)
	}
	d.Descriptors = encoded
	return nil
}
