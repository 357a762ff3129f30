package places

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The more places are in use, the less time there is.
func TestPatience(t *testing.T) {
	const all = 16 * time.Second
	for n, want := range map[int]time.Duration{0: all, 4: all, 5: all - all*15/16/4, 6: all - all*15/16/2,
		8: time.Second, 9: time.Second} {
		require.Equal(t, want, hurried(all, n, 8), n)
	}
	require.Equal(t, all, hurried(all, 100, -1))
	require.Equal(t, time.Second, hurried(all, 1, 1))
}

// Nothing is kept of addresses that have no connection any more.
func TestAddressesAreForgotten(t *testing.T) {
	var ps Places
	ps.Init(-1, 2, errors.New("closed"))
	for i := range 100 {
		here, _ := net.Pipe()
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 1)
		p, _, err := ps.Enter(addressed{here, net.TCPAddrFromAddrPort(addr)}, -1)
		require.NoError(t, err)
		require.Len(t, ps.byAddr, 1)
		require.True(t, p.Pass())
		p.Done()
		require.Empty(t, ps.byAddr)
	}
}

type addressed struct {
	net.Conn
	addr net.Addr
}

func (a addressed) RemoteAddr() net.Addr { return a.addr }
