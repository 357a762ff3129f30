package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// comments are those of a package, by name: "Type", "Type.Field", "Type.Method", "function".
type comments struct {
	texts    map[string]string
	embedded map[string][]string // types of this package that a struct embeds
	methods  map[string][]string
	all      bool // types that are not exported, too
}

// collect returns the name of the package in a directory, and its comments; own is the file that they go to.
func collect(dir, own string, all bool) (pkg string, texts map[string]string, err error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return "", nil, err
	}
	slices.Sort(names)
	fset := token.NewFileSet()
	files := make(map[string][]*ast.File) // by package
	for _, name := range names {
		if base := filepath.Base(name); strings.HasSuffix(base, "_test.go") || base == own {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return "", nil, err
		}
		files[f.Name.Name] = append(files[f.Name.Name], f)
	}
	pkg, err = packageOf(dir, files)
	if err != nil {
		return "", nil, err
	}
	c := comments{texts: make(map[string]string), embedded: make(map[string][]string),
		methods: make(map[string][]string), all: all}
	for _, f := range files[pkg] {
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.GenDecl:
				c.addTypes(d)
			case *ast.FuncDecl:
				c.addFunc(d)
			}
		}
	}
	c.promote()
	return pkg, c.texts, nil
}

// packageOf returns the name of the package of a directory. Beside it there may be a program that is not
// built with it, in files of package main: go generate says which one is meant.
func packageOf(dir string, files map[string][]*ast.File) (string, error) {
	if len(files) == 0 {
		return "", fmt.Errorf("there are no Go files in %s", dir)
	}
	names := slices.Sorted(maps.Keys(files))
	if want := os.Getenv("GOPACKAGE"); files[want] != nil {
		return want, nil
	}
	if len(names) == 2 {
		names = slices.DeleteFunc(names, func(n string) bool { return n == "main" })
	}
	if len(names) > 1 {
		return "", fmt.Errorf("there are several packages in %s: %s; expected one", dir,
			strings.Join(names, ", "))
	}
	return names[0], nil
}

// add takes a comment in. Of several files for different systems the first one counts.
func (c *comments) add(name string, groups ...*ast.CommentGroup) {
	if c.texts[name] != "" {
		return
	}
	for _, g := range groups {
		if text := strings.TrimSpace(g.Text()); text != "" {
			c.texts[name] = text
			return
		}
	}
}

func (c *comments) wants(name string) bool { return c.all || ast.IsExported(name) }

func (c *comments) addTypes(d *ast.GenDecl) {
	for _, s := range d.Specs {
		spec, ok := s.(*ast.TypeSpec)
		if !ok {
			continue
		}
		name := spec.Name.Name
		group := spec.Doc
		if !d.Lparen.IsValid() {
			group = d.Doc
		}
		if c.wants(name) {
			c.add(name, group, spec.Comment)
		}
		if st, ok := spec.Type.(*ast.StructType); ok {
			c.addFields(name, st)
		}
	}
}

// addFields takes in the exported fields. Those of a struct that is not exported may be in one that is, by
// embedding.
func (c *comments) addFields(typ string, st *ast.StructType) {
	for _, f := range st.Fields.List {
		if len(f.Names) == 0 {
			name := typeName(f.Type)
			c.embedded[typ] = append(c.embedded[typ], name)
			if ast.IsExported(name) {
				c.add(typ+"."+name, f.Doc, f.Comment)
			}
		}
		for _, n := range f.Names {
			if n.IsExported() {
				c.add(typ+"."+n.Name, f.Doc, f.Comment)
			}
		}
	}
}

func (c *comments) addFunc(d *ast.FuncDecl) {
	if d.Recv == nil {
		if isHandler(d.Type) {
			c.add(d.Name.Name, d.Doc)
		}
		return
	}
	if len(d.Recv.List) != 1 || !d.Name.IsExported() && !isHandler(d.Type) {
		return
	}
	typ := typeName(d.Recv.List[0].Type)
	c.add(typ+"."+d.Name.Name, d.Doc)
	c.methods[typ] = append(c.methods[typ], d.Name.Name)
}

// promote gives the methods that a struct has by embedding the comments that they have there.
func (c *comments) promote() {
	for _, typ := range slices.Sorted(maps.Keys(c.embedded)) {
		seen := map[string]bool{typ: true}
		for todo := c.embedded[typ]; len(todo) > 0; {
			from := todo[0]
			todo = append(slices.Clone(todo[1:]), c.embedded[from]...)
			if seen[from] {
				continue
			}
			seen[from] = true
			for _, m := range c.methods[from] {
				if text := c.texts[from+"."+m]; text != "" && !slices.Contains(c.methods[typ], m) &&
					c.texts[typ+"."+m] == "" {
					c.texts[typ+"."+m] = text
				}
			}
		}
	}
}

// isHandler reports whether a function takes a context of a handler first, in whatever way the file names
// the package.
func isHandler(t *ast.FuncType) bool {
	if t.Params == nil || len(t.Params.List) == 0 {
		return false
	}
	switch typeName(t.Params.List[0].Type) {
	case "PullCtx", "PushCtx", "UnknownPullCtx", "UnknownPushCtx":
		return true
	}
	return false
}

// typeName returns the name of a type without its package, its type arguments and a pointer.
func typeName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	case *ast.StarExpr:
		return typeName(e.X)
	case *ast.ParenExpr:
		return typeName(e.X)
	case *ast.IndexExpr:
		return typeName(e.X)
	case *ast.IndexListExpr:
		return typeName(e.X)
	}
	return ""
}

// docsPackage has Add, which the file calls.
const docsPackage = "github.com/henrylee2cn/teleport/plugin/describe/docs"

// render returns the file.
func render(pkg string, texts map[string]string) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "// Code generated by tpdoc; DO NOT EDIT.\n\npackage %s\n\nimport tpdoc %q\n\n"+
		"type tpdocPackage struct{}\n\nfunc init() {\ntpdoc.Add[tpdocPackage](map[string]string{\n", pkg,
		docsPackage)
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		fmt.Fprintf(&b, "%q: %s,\n", name, quoted(texts[name]))
	}
	b.WriteString("})\n}\n")
	return format.Source(b.Bytes())
}

// lineBytes is about how long a line of the file is.
const lineBytes = 90

// quoted returns a text as a Go expression in lines that are not too long.
func quoted(text string) string {
	var lines []string
	for _, line := range strings.SplitAfter(text, "\n") {
		for len(line) > lineBytes {
			at := strings.LastIndexByte(line[:lineBytes], ' ') + 1
			if at == 0 {
				if at = strings.IndexByte(line, ' ') + 1; at == 0 {
					break
				}
			}
			lines = append(lines, fmt.Sprintf("%q", line[:at]))
			line = line[at:]
		}
		if line != "" {
			lines = append(lines, fmt.Sprintf("%q", line))
		}
	}
	return strings.Join(lines, " +\n")
}
