package describe

import (
	"encoding/json"
	"fmt"

	"github.com/google/jsonschema-go/jsonschema"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// Version is the version of the format. A field more does not change it: readers leave alone what they do
// not know.
const Version = 1

// dialect is the JSON Schema draft of all schemas.
const dialect = "https://json-schema.org/draft/2020-12/schema"

// Description is what a peer says of itself, whole or one page of it. Its JSON is a JSON Schema document
// too: the references of the schemas in it, "#/$defs/NAME", lead to the definitions at its top. A
// Description is not changed by its methods, which are safe for concurrent use as long as nobody else
// changes it.
type Description struct {
	// Dialect is the draft of the schemas.
	Dialect string `json:"$schema"`
	// Version is that of the format, see the constant.
	Version int `json:"version"`
	// Revision is another one when anything in the whole description is another. It is the same for all pages
	// and prefixes.
	Revision string `json:"revision"`
	// Codecs are the body codecs that the peer knows, by id.
	Codecs []Codec `json:"codecs"`
	// Total is how many routes match the query, on all pages.
	Total int `json:"total"`
	// Routes are sorted by path, and those with the same path by kind.
	Routes []Route `json:"routes"`
	// Definitions are the schemas of types with names that the routes refer to.
	Definitions map[string]*jsonschema.Schema `json:"$defs,omitempty"`
	// Descriptors is a google.protobuf.FileDescriptorSet with the files of the messages that the routes name,
	// and all that these import, each behind those that it imports. In JSON it is base64.
	Descriptors []byte `json:"descriptors,omitempty"`
	// Next is what the query for the next page has for its After; empty on the last page.
	Next string `json:"next,omitempty"`
}

// Codec is a body codec.
type Codec struct {
	Name string `json:"name"`
	Id   int    `json:"id"` // the byte on the wire
}

// Kind says how a route is called.
type Kind string

// The kinds of routes.
const (
	Pull   Kind = "pull"
	Push   Kind = "push"
	Stream Kind = "stream"
)

// Route is one route, or one handler of unknown URIs.
type Route struct {
	// Path is the path of the URI. That of an unknown handler is its group's, followed by "/*": it takes all
	// paths under the group's that no other route has.
	Path string `json:"path"`
	Kind Kind   `json:"kind"`
	// Unknown says that the route is an unknown handler. It has no argument and no reply.
	Unknown bool `json:"unknown,omitempty"`
	// Doc is the doc comment of the method or function, or what the route has from [About].
	Doc string `json:"doc,omitempty"`
	// Deprecated says that a paragraph of Doc begins with "Deprecated:".
	Deprecated bool `json:"deprecated,omitempty"`
	// Argument is what the route takes; of a stream that is each value that its handler receives.
	Argument *Value `json:"argument,omitempty"`
	// Reply is what the route answers, nil for a push; of a stream that is each value that its handler sends.
	Reply *Value `json:"reply,omitempty"`
}

// Value is an argument, a reply, or a value of a stream.
type Value struct {
	// GoType is the Go type, as package reflect spells it.
	GoType string `json:"go_type"`
	// Schema is the JSON that the codec json makes of it, or takes for it. It is nil where there is none;
	// Note says why.
	Schema *jsonschema.Schema `json:"schema,omitempty"`
	// Message is the full name of the protobuf message that it is, see Description.Descriptors. The codec
	// protobuf makes that message of it; Schema, if there is one, is not the JSON that protobuf defines.
	Message string `json:"message,omitempty"`
	// Raw says that its bytes are not encoded by a codec at all.
	Raw bool `json:"raw,omitempty"`
	// Note is for people: what there is to know beside the rest.
	Note string `json:"note,omitempty"`
}

// Find returns the route with the path and the kind, and nil if there is none.
func (d *Description) Find(path string, kind Kind) *Route {
	for i := range d.Routes {
		if r := &d.Routes[i]; r.Path == path && r.Kind == kind {
			return r
		}
	}
	return nil
}

// Bundle returns a schema of the value that stands alone: with the definitions that it needs, and no
// others. The schema is the caller's. The error says why there is none.
func (d *Description) Bundle(v *Value) (*jsonschema.Schema, error) {
	if v == nil || v.Schema == nil {
		return nil, fmt.Errorf("describe: %s has no schema: %s", v.goType(), v.why())
	}
	all := v.Schema.CloneSchemas()
	if err := onlyDefinitions(all); err != nil {
		return nil, fmt.Errorf("describe: the schema of %s: %w", v.goType(), err)
	}
	all.Schema = dialect
	all.Defs = make(map[string]*jsonschema.Schema)
	need := references(v.Schema)
	for len(need) > 0 {
		name := need[len(need)-1]
		need = need[:len(need)-1]
		if all.Defs[name] != nil {
			continue
		}
		def := d.Definitions[name]
		if def == nil {
			return nil, fmt.Errorf("describe: the schema of %s refers to %q, and the description has no "+
				"such definition", v.goType(), name)
		}
		if err := onlyDefinitions(def); err != nil {
			return nil, fmt.Errorf("describe: the definition %q: %w", name, err)
		}
		all.Defs[name] = def.CloneSchemas()
		need = append(need, references(def)...)
	}
	return all, nil
}

// Validate reports whether a text of JSON fits the schema of the value: before it is sent as an argument, for
// example. The error says what does not fit.
func (d *Description) Validate(v *Value, text []byte) error {
	schema, err := d.Bundle(v)
	if err != nil {
		return err
	}
	resolved, err := schema.Resolve(nil)
	if err != nil {
		return fmt.Errorf("describe: the schema of %s: %w", v.goType(), err)
	}
	var value interface{}
	if err := json.Unmarshal(text, &value); err != nil {
		return fmt.Errorf("describe: the value for %s is no JSON: %w", v.goType(), err)
	}
	if err := loops(schema, schema.Defs); err != nil {
		return fmt.Errorf("describe: the schema of %s: %w", v.goType(), err)
	}
	if err := resolved.Validate(value); err != nil {
		return fmt.Errorf("describe: the value does not fit %s: %w", v.goType(), err)
	}
	return nil
}

// Files returns the protobuf files of the description.
func (d *Description) Files() (*protoregistry.Files, error) {
	set := new(descriptorpb.FileDescriptorSet)
	if err := proto.Unmarshal(d.Descriptors, set); err != nil {
		return nil, fmt.Errorf("describe: the descriptors are no FileDescriptorSet: %w", err)
	}
	files, err := protodesc.NewFiles(set)
	if err != nil {
		return nil, fmt.Errorf("describe: the descriptors do not fit together: %w", err)
	}
	return files, nil
}

func (v *Value) goType() string {
	if v == nil {
		return "nothing"
	}
	return v.GoType
}

func (v *Value) why() string {
	if v == nil {
		return "there is no value"
	}
	return v.Note
}
