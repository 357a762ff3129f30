//go:build unix

package examples

import (
	"bufio"
	"io"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// What the README of examples/reboot says.
func TestRebootExample(t *testing.T) {
	program := build(t, "reboot")
	server := exec.Command(program, "-addr", "127.0.0.1:0")
	stderr, err := server.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, server.Start())
	log := bufio.NewReader(stderr)
	find := func(pattern string) string {
		for {
			line, err := log.ReadString('\n')
			require.NoError(t, err)
			if m := regexp.MustCompile(pattern).FindStringSubmatch(line); m != nil {
				return m[1]
			}
		}
	}
	addr := find(`listening on (\S+)`)
	client := exec.Command(program, "-addr", addr, "-load", "3s")
	stdout, err := client.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, client.Start())
	out := bufio.NewReader(stdout)
	first, err := out.ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, first, "version 1, process ")

	require.NoError(t, server.Process.Signal(syscall.SIGUSR2))
	second, err := out.ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, second, "version 1, process ")
	require.NotEqual(t, first, second)
	rest, err := io.ReadAll(out)
	require.NoError(t, err)
	require.Regexp(t, `^\d+ pulls, 0 failed\n$`, string(rest))
	require.NoError(t, client.Wait())
	successor := strings.TrimSpace(strings.TrimPrefix(second, "version 1, process "))
	require.NoError(t, exec.Command("kill", "-TERM", successor).Run())
	_, err = io.Copy(io.Discard, log) // until both have ended
	require.NoError(t, err)
	require.NoError(t, server.Wait())
}
