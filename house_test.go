package tp

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// A stranger reads one file at a time. Files that use each other, by however many others
// between, can only be understood together: that is a knot. The largest one, and how many
// pairs of files use each other directly, are bounded here.
const (
	maxKnot  = 12
	maxPairs = 12
)

func TestFilesAreNoKnot(t *testing.T) {
	t.Parallel()
	uses := usesOfFiles(t)
	require.Greater(t, len(uses), 20, "the files were not found")
	knot, pairs := slices.MaxFunc(knots(uses), func(a, b []string) int { return len(a) - len(b) }),
		pairsOf(uses)
	why := func(files []string) string {
		var b strings.Builder
		for _, from := range files {
			for _, to := range files {
				if names := uses[from][to]; len(names) > 0 {
					fmt.Fprintf(&b, "%s -> %s: %s\n", from, to, strings.Join(slices.Sorted(maps.Keys(names)),
						" "))
				}
			}
		}
		return b.String()
	}
	require.LessOrEqual(t, len(knot), maxKnot, why(knot))
	require.LessOrEqual(t, len(pairs), maxPairs, strings.Join(pairs, "\n"))
}

// The packages under internal know nothing of this one; their tests may.
func TestInternalPackagesStandBelow(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", "-f", "{{.ImportPath}}", "./internal/...").Output()
	require.NoError(t, err)
	deps := strings.Fields(string(out))
	require.Contains(t, deps, "github.com/henrylee2cn/teleport/internal/calltable")
	require.NotContains(t, deps, "github.com/henrylee2cn/teleport")
}

// There is one of these for every call, so a field more is memory and time: the sizes are those of classes
// of the allocator, and for a pull that of two cache lines.
func TestCallsAreSmall(t *testing.T) {
	require.LessOrEqual(t, unsafe.Sizeof(PullCmd{}), uintptr(128))
	require.LessOrEqual(t, unsafe.Sizeof(call{}), uintptr(64))
	require.LessOrEqual(t, unsafe.Sizeof(pending{}), uintptr(512))
}

// maxWidth is how many columns a line of code takes at most; a tab counts for four. Lines that cannot be
// broken, because of a text or a tag in backquotes, may be wider in tests.
const maxWidth = 110

func TestNoLineIsWide(t *testing.T) {
	t.Parallel()
	seen := 0
	require.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, ".pb.go") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		seen++
		for i, line := range strings.Split(string(text), "\n") {
			wide := utf8.RuneCountInString(strings.ReplaceAll(line, "\t", "    ")) > maxWidth
			free := strings.HasPrefix(line, "//go:generate") ||
				strings.HasSuffix(path, "_test.go") && strings.Contains(line, "`")
			if wide && !free {
				t.Errorf("%s:%d is wider than %d columns", path, i+1, maxWidth)
			}
		}
		return nil
	}))
	require.Greater(t, seen, 100)
}

// The pages under docs name tests as proofs, and files; all of them exist.
func TestDocsNameWhatExists(t *testing.T) {
	t.Parallel()
	var files, tests strings.Builder
	require.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		fmt.Fprintln(&files, "/"+filepath.ToSlash(path))
		if strings.HasSuffix(path, "_test.go") {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			tests.Write(text)
		}
		return nil
	}))
	pages, err := filepath.Glob("docs/*.md")
	require.NoError(t, err)
	require.NotEmpty(t, pages)
	inTests := regexp.MustCompile("`(?:[a-z]+\\.)?((?:Test|Fuzz|Benchmark)[A-Z][A-Za-z]*)`")
	inFiles := regexp.MustCompile("`([a-z_/0-9]+\\.go)`")
	seen := 0
	for _, page := range append(pages, "README.md") {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		own, _, _ := strings.Cut(string(text), "## What others do")
		for _, m := range inTests.FindAllStringSubmatch(own, -1) {
			seen++
			require.Contains(t, tests.String(), "func "+m[1]+"(", "%s names a test that is not there", page)
		}
		for _, m := range inFiles.FindAllStringSubmatch(own, -1) {
			seen++
			require.Contains(t, files.String(), "/"+m[1]+"\n", "%s names a file that is not there", page)
		}
	}
	require.Greater(t, seen, 50)
}

// usesOfFiles returns which names of which other files of the package each one uses: of types,
// functions, methods and fields. Tests, and files of other systems, do not count.
func usesOfFiles(t *testing.T) map[string]map[string]map[string]bool {
	list := exec.Command("go", "list", "-export", "-deps", "-f", "{{.ImportPath}}={{.Export}}", ".")
	out, err := list.Output()
	require.NoError(t, err)
	exports := make(map[string]string)
	for line := range strings.Lines(string(out)) {
		path, file, _ := strings.Cut(strings.TrimSpace(line), "=")
		exports[path] = file
	}
	names, err := exec.Command("go", "list", "-f", `{{join .GoFiles "\n"}}`, ".").Output()
	require.NoError(t, err)
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range strings.Fields(string(names)) {
		f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		files = append(files, f)
	}
	lookup := func(path string) (io.ReadCloser, error) {
		b, err := os.ReadFile(exports[path])
		return io.NopCloser(bytes.NewReader(b)), err
	}
	info := types.Info{Uses: make(map[*ast.Ident]types.Object),
		Selections: make(map[*ast.SelectorExpr]*types.Selection)}
	conf := types.Config{Importer: importer.ForCompiler(fset, "gc", lookup)}
	pkg, err := conf.Check("tp", fset, files, &info)
	require.NoError(t, err)
	uses := make(map[string]map[string]map[string]bool)
	fileOf := func(pos token.Pos) string { return filepath.Base(fset.Position(pos).Filename) }
	for _, f := range files {
		uses[fileOf(f.Pos())] = make(map[string]map[string]bool)
	}
	for id, obj := range info.Uses {
		if obj.Pkg() != pkg || !obj.Pos().IsValid() {
			continue
		}
		from, to := fileOf(id.Pos()), fileOf(obj.Pos())
		if from == to {
			continue
		}
		if uses[from][to] == nil {
			uses[from][to] = make(map[string]bool)
		}
		uses[from][to][obj.Name()] = true
	}
	return uses
}

// pairsOf returns the pairs of files that use each other.
func pairsOf(uses map[string]map[string]map[string]bool) (pairs []string) {
	for _, a := range slices.Sorted(maps.Keys(uses)) {
		for _, b := range slices.Sorted(maps.Keys(uses[a])) {
			if a < b && len(uses[b][a]) > 0 {
				pairs = append(pairs, a+" and "+b)
			}
		}
	}
	return pairs
}

// knots returns the strongly connected components, by Tarjan's algorithm.
func knots(uses map[string]map[string]map[string]bool) (all [][]string) {
	index, low, onStack := make(map[string]int), make(map[string]int), make(map[string]bool)
	var stack []string
	var visit func(v string)
	visit = func(v string) {
		index[v] = len(index) + 1
		low[v] = index[v]
		stack = append(stack, v)
		onStack[v] = true
		for w := range uses[v] {
			if index[w] == 0 {
				visit(w)
				low[v] = min(low[v], low[w])
			} else if onStack[w] {
				low[v] = min(low[v], index[w])
			}
		}
		if low[v] == index[v] {
			at := slices.Index(stack, v)
			knot := slices.Clone(stack[at:])
			slices.Sort(knot)
			for _, w := range knot {
				onStack[w] = false
			}
			stack = stack[:at]
			all = append(all, knot)
		}
	}
	for _, v := range slices.Sorted(maps.Keys(uses)) {
		if index[v] == 0 {
			visit(v)
		}
	}
	return all
}
