package examples

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

// build builds one of the examples and returns the program's path.
func build(t *testing.T, name string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), name)
	if runtime.GOOS == "windows" {
		program += ".exe"
	}
	out, err := exec.Command("go", "build", "-o", program, "./"+name).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return program
}

func TestExamplesInOneProcess(t *testing.T) {
	for name, want := range map[string]string{
		"quickstart": `^server: quickstart wants 1 \+ 2
plugin: the reply took \S+
client: 1 \+ 2 = 3
client: pushed to me: hello from the server \(about teleport\)
client: /no/such/path: 404 not found: nothing here takes pulls to "/no/such/path"
plugin: the reply took \S+
client: /no/such/path: nothing is at /no/such/path
$`,
		"tls": `^TLS 1.3, CN=teleport example: nobody else can read this
a stranger: .*certificate.*
a missing file: true
$`,
		"proxy": `^apples: 42
pears: 404 no pears
ordered: apples
afterwards: 502 bad gateway: connection closed
$`,
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(build(t, name))
			out, err := cmd.Output()
			require.NoError(t, err, "%s", out)
			require.Regexp(t, want, string(out))
		})
	}
}

func TestServerAndClient(t *testing.T) {
	server := exec.Command(build(t, "server"), "-addr", "127.0.0.1:0")
	stderr, err := server.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, server.Start())
	defer func() { _ = server.Process.Kill() }()
	log := bufio.NewReader(stderr)
	line, err := log.ReadString('\n')
	require.NoError(t, err)
	addr := regexp.MustCompile(`listening on (\S+)`).FindStringSubmatch(line)
	require.Len(t, addr, 2, line)

	out, err := exec.Command(build(t, "client"), "-addr", addr[1]).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "your_args:map[n:1]")
	require.Contains(t, string(out), "your_id:example-client")
	require.Contains(t, string(out), `reply of the unknown handler: ["nobody" "serves" "/some/where"]`)

	if runtime.GOOS != "windows" { // which knows no SIGINT between processes
		require.NoError(t, server.Process.Signal(os.Interrupt))
		require.NoError(t, server.Wait())
	}
}
