package examples

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
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

// The game ends by itself, and when it is interrupted, and says what was measured in either case.
func TestGame(t *testing.T) {
	program, picture := build(t, "game"), filepath.Join(t.TempDir(), "room.svg")
	begin := `the server listens on 127.0.0.1:\d+
30 players are in their rooms
`
	report := `30 players in 3 rooms, 20 ticks a second, for \d+\.\d s
server: .*
delivered: [1-9]\d* positions and \d+ lines of chat, \d+ pushes a second
chat:      0 lines lost or out of order
positions: p50 \S+, p99 \S+ from the tick's push to the player's handler
$`
	cmd := exec.Command(program, "-n", "30", "-for", "1s", "-svg", picture)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Regexp(t, "^"+begin+report, string(out))
	svg, err := os.ReadFile(picture)
	require.NoError(t, err)
	require.Contains(t, string(svg), "as calm otter has seen it")

	for name, args := range map[string][]string{
		"-n 0":                       {"-n", "0"},
		"only flags were expected":   {"now"},
		"one of them was expected":   {"-server", "-players"},
		"of 30 players have failed":  {"-players", "-n", "30", "-addr", "127.0.0.1:1"},
		"no-such-directory/room.svg": {"-n", "10", "-for", "1ms", "-svg", "no-such-directory/room.svg"},
	} {
		out, err := exec.Command(program, args...).CombinedOutput()
		require.Error(t, err, name)
		require.Contains(t, string(out), name)
	}

	if runtime.GOOS == "windows" { // which knows no SIGINT between processes
		return
	}
	cmd = exec.Command(program, "-n", "30", "-for", "1h")
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewReader(stdout)
	for range 2 {
		_, err := lines.ReadString('\n')
		require.NoError(t, err)
	}
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	rest, err := io.ReadAll(lines)
	require.NoError(t, err)
	require.Regexp(t, `^30 players in 3 rooms(.|\n)*handler\n$`, string(rest))
	require.NoError(t, cmd.Wait())

	cmd = exec.Command(program, "-n", "30", "-for", "1h", "-room", "50")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdout, err = cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	require.NoError(t, cmd.Process.Signal(os.Interrupt)) // while they wait in the lobby, at the latest
	require.Error(t, cmd.Wait())
	require.Contains(t, stderr.String(), "game: interrupted before all players were in their rooms")
}
