package handover

import (
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A socket of systemd's is that of an address if it could have been made for it.
func TestSameAddr(t *testing.T) {
	tcp := func(ip string, port int) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: port} }
	for _, c := range []struct {
		have net.Addr
		want string
		same bool
	}{
		{tcp("127.0.0.1", 80), "127.0.0.1:80", true},
		{tcp("127.0.0.1", 80), "127.0.0.1:81", false},
		{tcp("127.0.0.1", 80), "127.0.0.2:80", false},
		{tcp("127.0.0.1", 80), ":80", false},
		{tcp("0.0.0.0", 80), ":80", true},
		{tcp("::", 80), ":80", true},
		{tcp("::", 80), "0.0.0.0:80", true},
		{tcp("::1", 80), "[::1]:80", true},
		{tcp("::", 80), "no such host.:80", false},
		{&net.UnixAddr{Name: "/a/b", Net: "unix"}, "unix:/a/b", true},
		{&net.UnixAddr{Name: "/a/b", Net: "unix"}, "unix:/a/c", false},
		{&net.UnixAddr{Name: "/a/b", Net: "unix"}, "127.0.0.1:80", false},
	} {
		network, address := "tcp", c.want
		if path, ok := strings.CutPrefix(c.want, "unix:"); ok {
			network, address = "unix", path
		}
		require.Equal(t, c.same, sameAddr(c.have, network, address), "%v %s", c.have, c.want)
	}
}
