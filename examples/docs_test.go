package examples

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// block is a piece of code of a document, and what is to come of it: the next block, if that
// is no code.
type block struct{ code, output string }

// blocks returns the whole programs, and tests, of a document.
func blocks(t *testing.T, document string) (found []block) {
	text, err := os.ReadFile(document)
	require.NoError(t, err)
	all := regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$").FindAllStringSubmatch(string(text), -1)
	for i, m := range all {
		if m[1] != "go" || !strings.HasPrefix(m[2], "package ") {
			continue
		}
		b := block{code: m[2]}
		if i+1 < len(all) && all[i+1][1] == "" {
			b.output = all[i+1][2]
		}
		found = append(found, b)
	}
	return found
}

// module makes a module of a program of its own that uses this checkout, with what the
// checkout itself needs, so that nothing is fetched. It returns its directory.
func module(t *testing.T, file, code string) string {
	dir := t.TempDir()
	root, err := filepath.Abs("..")
	require.NoError(t, err)
	own, err := os.ReadFile(filepath.Join(root, "go.mod"))
	require.NoError(t, err)
	_, needs, _ := strings.Cut(string(own), "\nrequire ")
	mod := fmt.Sprintf("module program\n\ngo 1.26.0\n\nrequire github.com/henrylee2cn/teleport "+
		"v0.0.0\n\nreplace github.com/henrylee2cn/teleport => %s\n\nrequire %s", root, needs)
	sums, err := os.ReadFile(filepath.Join(root, "go.sum"))
	require.NoError(t, err)
	for name, text := range map[string]string{"go.mod": mod, "go.sum": string(sums), file: code} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	return dir
}

func goCommand(t *testing.T, dir string, args ...string) string {
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}

// program builds code into a program and returns its path.
func program(t *testing.T, code string) string {
	dir := module(t, "main.go", code)
	goCommand(t, dir, "vet", ".")
	path := filepath.Join(dir, "program")
	if runtime.GOOS == "windows" {
		path += ".exe"
	}
	goCommand(t, dir, "build", "-o", path, ".")
	return path
}

// The recipes of the cookbook run, and print what stands below them.
func TestCookbook(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a recipe is about signals")
	}
	recipes := blocks(t, "../docs/cookbook.md")
	require.Len(t, recipes, 7)
	for i, r := range recipes {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			cmd := exec.Command(program(t, r.code))
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			require.NoError(t, err)
			require.NotEmpty(t, r.output)
			require.Equal(t, r.output, string(out))
		})
	}
}

// The tests of the document about testing pass.
func TestTestingDocument(t *testing.T) {
	tests := blocks(t, "../docs/testing.md")
	require.Len(t, tests, 3)
	for i, b := range tests {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			require.Contains(t, goCommand(t, module(t, "it_test.go", b.code), "test", "-count=5", "."), "ok")
		})
	}
}

// README's server and client, but for the address, print what README says, each time.
func TestReadme(t *testing.T) {
	both := blocks(t, "../README.md")
	require.Len(t, both, 2)
	const addr = "127.0.0.1:9090"
	dir, err := os.MkdirTemp("", "readme") // a short path, for the socket
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	socket := "unix:" + filepath.Join(dir, "s")
	var programs []string
	for _, b := range both {
		require.Contains(t, b.code, addr)
		programs = append(programs, program(t, strings.ReplaceAll(b.code, addr, socket)))
	}
	want := regexp.MustCompile(`(?m)^\[INFO\] .*$`).FindAllString(both[1].output, -1)
	require.Len(t, want, 2, both[1].output)

	server := exec.Command(programs[0])
	stderr, err := server.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, server.Start())
	listening := make([]byte, 4096)
	_, err = stderr.Read(listening)
	require.NoError(t, err)
	require.Contains(t, string(listening), "listening on "+filepath.Join(dir, "s"))
	for range 50 {
		out, err := exec.Command(programs[1]).CombinedOutput()
		require.NoError(t, err, "%s", out)
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		require.Len(t, lines, 2)
		require.True(t, strings.HasSuffix(lines[0], want[0]), lines[0])
		said, _, _ := strings.Cut(want[1], " for ")
		require.Contains(t, lines[1], said)
	}
	if runtime.GOOS != "windows" {
		require.NoError(t, server.Process.Signal(os.Interrupt))
	} else {
		require.NoError(t, server.Process.Kill())
	}
	_ = server.Wait()
}
