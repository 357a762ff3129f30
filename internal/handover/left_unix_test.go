//go:build unix

package handover_test

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/handover"
)

// A unix socket is taken over from a process that was killed, and from nobody else.
func TestListenOnALeftUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	_, err = handover.Listen("unix", path, "unix:"+path, 0)
	require.ErrorContains(t, err, "tp: listen unix "+path)
	left.SetUnlinkOnClose(false)
	require.NoError(t, left.Close())
	ln, err := handover.Listen("unix", path, "unix:"+path, 0o620)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o620), info.Mode().Perm())
	require.NoError(t, ln.Close())
	require.NoFileExists(t, path)

	require.NoError(t, os.WriteFile(path, []byte("a file"), 0o600))
	_, err = handover.Listen("unix", path, "unix:"+path, 0)
	require.Error(t, err)
	require.FileExists(t, path, "what is no socket stays")
}
