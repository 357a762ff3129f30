package places_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/places"
)

var errClosed = errors.New("the server is closed")

// fromAddr is a connection that comes from an address.
type fromAddr struct {
	net.Conn
	addr net.Addr
}

func (c fromAddr) RemoteAddr() net.Addr { return c.addr }

func from(addr string) net.Conn {
	here, _ := net.Pipe()
	if addr == "" {
		return here
	}
	return fromAddr{here, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))}
}

// Who came first goes first: of its own address when that has too many, and of all; and is told why.
func TestOldestMakesRoom(t *testing.T) {
	for _, c := range []struct {
		name string
		from []string
		gone []int
	}{
		{"room for all", []string{"10.0.0.1:1", "10.0.0.1:2", "10.0.0.2:1"}, nil},
		{"too many of one", []string{"10.0.0.2:1", "10.0.0.1:1", "10.0.0.1:2", "10.0.0.1:3", "10.0.0.1:4"},
			[]int{1, 2}},
		{"too many in all", []string{"10.0.0.2:1", "10.0.0.1:1", "10.0.0.1:2", "10.0.0.3:3", "10.0.0.4:4"},
			[]int{0}},
		{"one network of IPv6", []string{"[2001:db8:0:1::1]:1", "[2001:db8:0:1:2::2]:1",
			"[2001:db8:0:1:ffff::]:1"}, []int{0}},
		{"no address", []string{"", "", "", "", ""}, []int{0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var ps places.Places
			ps.Init(4, 2, errClosed)
			var all []*places.Place
			var gone []int
			for _, addr := range c.from {
				place, displaced, err := ps.Enter(from(addr), -1)
				require.NoError(t, err)
				all = append(all, place)
				for _, d := range displaced {
					for i, p := range all {
						if p == d.Place {
							gone = append(gone, i)
						}
					}
					d.End()
					<-d.Ctx.Done()
					require.ErrorContains(t, context.Cause(d.Ctx), "make room for others")
					require.False(t, d.Pass())
				}
			}
			require.Equal(t, c.gone, gone)
			require.Equal(t, len(all)-len(gone), ps.Pending())
			require.Equal(t, len(all), ps.Len(), "what runs for those that go still does")
			ps.Close()
			_, _, err := ps.Enter(from(""), -1)
			require.ErrorIs(t, err, errClosed)
			for _, p := range all {
				<-p.Ctx.Done()
				p.Done()
			}
			require.Zero(t, ps.Len())
		})
	}
}

// Half of the places may be in use before who comes lets others go on first.
func TestCrowded(t *testing.T) {
	var ps places.Places
	ps.Init(4, -1, errClosed)
	for n := 1; n <= 4; n++ {
		p, _, err := ps.Enter(from(""), -1)
		require.NoError(t, err)
		require.Equal(t, n > 2, ps.Crowded(p), n)
	}
}

// A handshake that waits for nobody takes no place.
func TestNoPatienceIsNoPlace(t *testing.T) {
	var ps places.Places
	ps.Init(0, 0, errClosed)
	p, gone, err := ps.Enter(from("10.0.0.1:1"), 0)
	require.NoError(t, err)
	require.Empty(t, gone)
	require.Zero(t, ps.Pending())
	require.Equal(t, 1, ps.Len())
	require.True(t, p.Pass())
	p.Done()
	require.Zero(t, ps.Len())
}

// A handshake is not told to end any more once it has passed, and is told otherwise:
// whichever comes first.
func TestHandshakePassesOrMakesRoom(t *testing.T) {
	for range 1000 {
		var hs places.Places
		hs.Init(1, -1, errClosed)
		here, there := net.Pipe()
		h, gone, err := hs.Enter(here, -1)
		require.NoError(t, err)
		require.Empty(t, gone)
		passed := make(chan bool)
		go func() {
			ok := h.Pass()
			h.Done()
			passed <- ok
		}()
		other, gone, err := hs.Enter(there, -1)
		require.NoError(t, err)
		require.NotEqual(t, <-passed, len(gone) == 1)
		other.Done()
		require.Zero(t, hs.Len())
		require.NoError(t, errors.Join(here.Close(), there.Close()))
	}
}
