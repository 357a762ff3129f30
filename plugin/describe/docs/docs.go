// Package docs has the doc comments of a program's own source, so that plugin/describe can tell them to the
// other side. The command tpdoc, next to this package, writes the calls of [Add]. The package imports
// nothing but the standard library: who uses a package with such a file gets nothing else by that.
package docs

import (
	"maps"
	"reflect"
	"strings"
	"sync"
)

var comments struct {
	mu sync.RWMutex // guards the fields below
	of map[string]map[string]string
}

// Add says what the doc comments of the package are that the type T is declared in. The names are those of
// types and functions, as "Cart", and those of fields and methods behind their type, as "Cart.Items". Of
// two texts for one name the later one counts. It is safe for concurrent use; the map is copied.
func Add[T any](texts map[string]string) {
	pkg := reflect.TypeFor[T]().PkgPath()
	comments.mu.Lock()
	defer comments.mu.Unlock()
	if comments.of == nil {
		comments.of = make(map[string]map[string]string)
	}
	if comments.of[pkg] == nil {
		comments.of[pkg] = make(map[string]string, len(texts))
	}
	maps.Copy(comments.of[pkg], texts)
}

// Of returns the doc comment of a name in a package, and "" if none is known.
func Of(pkg, name string) string {
	comments.mu.RLock()
	defer comments.mu.RUnlock()
	return comments.of[pkg][name]
}

// OfType returns the doc comment of a type that has a name, and "" if none is known.
func OfType(t reflect.Type) string { return Of(t.PkgPath(), typeName(t)) }

// OfField returns the doc comment of a field that the struct type declares, and "" if none is known.
func OfField(t reflect.Type, field string) string {
	if name := typeName(t); name != "" {
		return Of(t.PkgPath(), name+"."+field)
	}
	return ""
}

// OfFunc returns the doc comment of a function or method by the name that package runtime has for it, as
// "example.com/shop.(*Cart).Add", and "" if none is known.
func OfFunc(name string) string {
	pkg, symbol := splitFunc(name)
	return Of(pkg, symbol)
}

// typeName returns the name without type arguments.
func typeName(t reflect.Type) string {
	name, _, _ := strings.Cut(t.Name(), "[")
	return name
}

// splitFunc returns the package, and the function as Add has it.
func splitFunc(name string) (pkg, symbol string) {
	path, generic, _ := strings.Cut(name, "[") // the path of a type argument may have slashes too
	if _, behind, ok := strings.Cut(generic, "]"); ok {
		path += behind
	}
	slash := strings.LastIndexByte(path, '/') + 1
	last, symbol, _ := strings.Cut(path[slash:], ".")
	pkg = strings.ReplaceAll(path[:slash]+last, "%2e", ".") // the runtime escapes points there
	symbol = strings.TrimSuffix(symbol, "-fm")              // of a method that was taken as a function
	return pkg, strings.NewReplacer("(*", "", ")", "").Replace(symbol)
}
