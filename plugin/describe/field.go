package describe

import (
	"cmp"
	"reflect"
	"slices"
	"strings"
	"unicode"
)

// jsonField is a field of a struct as encoding/json sees it: those of embedded structs are the struct's own.
type jsonField struct {
	name   string // in JSON
	typ    reflect.Type
	owner  reflect.Type // the struct that declares the field
	goName string
	index  []int // the way to the field through embedded structs
	tagged bool  // the name is from a tag
	quoted bool  // the option string is there, and the type is one that it is for
	zero   bool  // the option omitzero is there
	// optional says that a value may be encoded without the field.
	optional bool
	// unreachable says that the field is in a struct that cannot be made when a value is decoded, as its
	// type is not exported and it is embedded by a pointer.
	unreachable bool
}

// embedded is a struct whose fields are to be looked at.
type embedded struct {
	typ                   reflect.Type
	index                 []int
	optional, unreachable bool
}

// jsonFields returns the fields of a struct in the order of their declaration. Where several have one name
// the rules are those of encoding/json: the one that is embedded least deep counts, among those of the same
// depth the one whose name is from a tag, and if that leaves several none of them.
func jsonFields(t reflect.Type) []jsonField {
	byName := make(map[string][]jsonField)
	seen := make(map[reflect.Type]bool)
	for level := []embedded{{typ: t}}; len(level) > 0; {
		times := make(map[reflect.Type]int)
		for _, e := range level {
			times[e.typ]++
		}
		var next []embedded
		done := make(map[reflect.Type]bool)
		for _, e := range level {
			if seen[e.typ] || done[e.typ] {
				continue
			}
			done[e.typ] = true
			fields, inside := ownFields(e)
			for _, f := range fields {
				byName[f.name] = append(byName[f.name], f)
				if times[e.typ] > 1 { // it is there twice at one depth, so neither counts
					byName[f.name] = append(byName[f.name], f)
				}
			}
			next = append(next, inside...)
		}
		for typ := range done {
			seen[typ] = true
		}
		level = next
	}
	var all []jsonField
	for _, same := range byName {
		if f, ok := dominant(same); ok {
			all = append(all, f)
		}
	}
	slices.SortFunc(all, func(a, b jsonField) int { return slices.Compare(a.index, b.index) })
	return all
}

// dominant returns the one of several fields with the same name that counts.
func dominant(same []jsonField) (jsonField, bool) {
	rank := func(f jsonField) int {
		if f.tagged {
			return 2 * len(f.index)
		}
		return 2*len(f.index) + 1
	}
	slices.SortStableFunc(same, func(a, b jsonField) int { return cmp.Compare(rank(a), rank(b)) })
	if len(same) > 1 && rank(same[0]) == rank(same[1]) {
		return jsonField{}, false
	}
	return same[0], true
}

// ownFields returns the fields that a struct declares, and the structs that are embedded in it without a
// name.
func ownFields(e embedded) (fields []jsonField, inside []embedded) {
	for i := range e.typ.NumField() {
		f := e.typ.Field(i)
		typ, pointer := f.Type, false
		if typ.Name() == "" && typ.Kind() == reflect.Pointer {
			typ, pointer = typ.Elem(), true
		}
		isStruct := typ.Kind() == reflect.Struct
		if !f.IsExported() && !(f.Anonymous && isStruct) {
			continue
		}
		tag := f.Tag.Get("json")
		if tag == "-" {
			continue
		}
		name, options, _ := strings.Cut(tag, ",")
		if !isFieldName(name) {
			name = ""
		}
		index := append(slices.Clone(e.index), i)
		if f.Anonymous && name == "" && isStruct {
			inside = append(inside, embedded{typ: typ, index: index, optional: e.optional || pointer,
				unreachable: e.unreachable || pointer && !f.IsExported()})
			continue
		}
		has := func(option string) bool { return slices.Contains(strings.Split(options, ","), option) }
		fields = append(fields, jsonField{
			name: cmp.Or(name, f.Name), typ: f.Type, owner: e.typ, goName: f.Name, index: index,
			tagged: name != "", quoted: has("string") && canBeQuoted(typ), zero: has("omitzero"),
			optional:    e.optional || has("omitempty") || has("omitzero"),
			unreachable: e.unreachable,
		})
	}
	return fields, inside
}

// isFieldName reports whether encoding/json takes the name of a tag.
func isFieldName(name string) bool {
	for _, c := range name {
		if !unicode.IsLetter(c) && !unicode.IsDigit(c) &&
			!strings.ContainsRune("!#$%&()*+-./:;<=>?@[]^_{|}~ ", c) {
			return false
		}
	}
	return name != ""
}

// canBeQuoted reports whether the option string has a meaning for the type.
func canBeQuoted(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Bool, reflect.String, reflect.Float32, reflect.Float64,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return true
	}
	return false
}
