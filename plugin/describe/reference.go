package describe

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"
)

const definitionPrefix = "#/$defs/"

// definitionOf returns the name of the definition that a reference leads to.
func definitionOf(ref string) (string, bool) { return strings.CutPrefix(ref, definitionPrefix) }

// inPlace calls f with the schemas in a schema that are for the same value as that.
func inPlace(s *jsonschema.Schema, f func(*jsonschema.Schema)) {
	for _, list := range [][]*jsonschema.Schema{s.AllOf, s.AnyOf, s.OneOf, {s.Not, s.If, s.Then, s.Else}} {
		each(list, f)
	}
	for _, m := range []map[string]*jsonschema.Schema{s.DependentSchemas, s.DependencySchemas} {
		each(slices.Collect(maps.Values(m)), f)
	}
}

// below calls f with the schemas in a schema that are for parts of the value, or for nothing yet.
func below(s *jsonschema.Schema, f func(*jsonschema.Schema)) {
	for _, list := range [][]*jsonschema.Schema{s.ItemsArray, s.PrefixItems,
		{s.Items, s.AdditionalItems, s.Contains, s.UnevaluatedItems, s.AdditionalProperties, s.PropertyNames,
			s.UnevaluatedProperties, s.ContentSchema}} {
		each(list, f)
	}
	for _, m := range []map[string]*jsonschema.Schema{s.Properties, s.PatternProperties, s.Defs,
		s.Definitions} {
		each(slices.Collect(maps.Values(m)), f)
	}
}

func each(list []*jsonschema.Schema, f func(*jsonschema.Schema)) {
	for _, s := range list {
		if s != nil {
			f(s)
		}
	}
}

// references returns the names of the definitions that a schema refers to itself, sorted.
func references(s *jsonschema.Schema) []string {
	var found []string
	var visit func(s *jsonschema.Schema)
	visit = func(s *jsonschema.Schema) {
		if name, ok := definitionOf(s.Ref); ok {
			found = append(found, name)
		}
		inPlace(s, visit)
		below(s, visit)
	}
	visit(s)
	slices.Sort(found)
	return slices.Compact(found)
}

// onlyDefinitions returns an error if a schema refers to something else than the definitions of a
// description: what the other side has sent must not have this side look for anything elsewhere, or lead to
// itself.
func onlyDefinitions(s *jsonschema.Schema) (err error) {
	var visit func(s *jsonschema.Schema)
	visit = func(s *jsonschema.Schema) {
		_, ok := definitionOf(s.Ref)
		switch {
		case s.Ref != "" && !ok:
			err = fmt.Errorf("it refers to %q, expected %sNAME", s.Ref, definitionPrefix)
		case s.DynamicRef != "" || s.DynamicAnchor != "" || s.Anchor != "" || s.ID != "":
			err = errors.New("it has an $id, an anchor or a dynamic reference, which a description has not")
		}
		inPlace(s, visit)
		below(s, visit)
	}
	visit(s)
	return err
}

// errLoops is the error for schemas that lead to themselves for one and the same value.
var errLoops = errors.New("it leads to itself, and to nothing else")

// loops returns an error if a schema, or one in it, leads to itself with no property or item between: to
// validate a value would not come to an end.
func loops(s *jsonschema.Schema, defs map[string]*jsonschema.Schema) error {
	const open, done = 1, 2
	state := make(map[string]int)
	looped := false
	var follow func(s *jsonschema.Schema)
	follow = func(s *jsonschema.Schema) {
		if name, ok := definitionOf(s.Ref); ok {
			switch state[name] {
			case open:
				looped = true
			case 0:
				state[name] = open
				if def := defs[name]; def != nil {
					follow(def)
				}
				state[name] = done
			}
		}
		inPlace(s, follow)
	}
	var visit func(s *jsonschema.Schema)
	visit = func(s *jsonschema.Schema) {
		follow(s)
		inPlace(s, visit)
		below(s, visit)
	}
	visit(s)
	if looped {
		return errLoops
	}
	return nil
}
