package describe

import (
	"bufio"
	"bytes"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The program list prints the routes of the program server, which it does not know, and calls one of them.
func TestPrograms(t *testing.T) {
	dir := t.TempDir()
	programs := make(map[string]string)
	for _, name := range []string{"server", "list"} {
		programs[name] = filepath.Join(dir, name+".exe")
		out, err := exec.Command("go", "build", "-o", programs[name], "./example/"+name).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	deps, err := exec.Command("go", "list", "-deps", "./example/list").Output()
	require.NoError(t, err)
	require.NotContains(t, string(deps), "example/server")

	server := exec.Command(programs["server"], "-addr", "127.0.0.1:0")
	stderr, err := server.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, server.Start())
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	}()
	lines := bufio.NewScanner(stderr)
	addr := ""
	for addr == "" && lines.Scan() {
		_, addr, _ = strings.Cut(lines.Text(), "listening on ")
	}
	require.NotEmpty(t, addr)
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines.Scan() {
		}
	}()
	defer func() { <-read }()
	defer server.Process.Kill()

	for _, tc := range []struct{ call, want string }{
		{"/group/orders/place", `^pull   /\* +unknownPull answers every pull that has no .*
pull   /group/home/test     Test answers with what it was sent\.
pull   /group/orders/place  Place takes an order, and answers with its number\.
push   /note                takeNote writes a note into the log\.
stream /ticks               tick sends the time once a second, until .*

/group/orders/place {"article":"text","count":1,"gift":{"from":"text"},"tags":\["text"\]}
{"number":1,"order":{"article":"text","count":1,"tags":\["text"\],"gift":{"from":"text"}}}
$`},
		{"/group/home/test", `(?s).*\n/group/home/test {}\n{.*"your_args":{}.*}\n$`},
	} {
		cmd := exec.Command(programs["list"], "-addr", addr, "-call", tc.call)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		require.NoError(t, err, "%s", &stderr)
		require.Regexp(t, regexp.MustCompile(tc.want), string(out))
	}
	out, err := exec.Command(programs["list"], "-addr", addr, "-call", "/internal/reset").CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "the server has no pull /internal/reset")
}

// The doc comments of the server are those in its source.
func TestDocsAreUpToDate(t *testing.T) {
	out, err := exec.Command("go", "run", "./cmd/tpdoc", "-check", "example/server").CombinedOutput()
	require.NoError(t, err, "%s", out)
}
