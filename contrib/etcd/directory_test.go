package etcd

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
)

func ids(d *directory) string {
	var all []string
	for _, s := range d.servers() {
		all = append(all, s.Id)
	}
	return strings.Join(all, " ")
}

func TestDirectory(t *testing.T) {
	const prefix = "/p/"
	start := time.Unix(1000, 0)
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	rec := &record{Addr: "x:1"}
	put := func(d *directory, id string, rev int64) { d.put(prefix+id, id, rec, rev, at(0)) }
	list := func(d *directory, now time.Time, all ...string) {
		d.begin()
		for i, id := range all {
			put(d, id, int64(i+1))
		}
		d.finish(prefix, now)
	}
	tests := map[string]func(t *testing.T, d *directory){
		"who leaves goes at once, the last one too": func(t *testing.T, d *directory) {
			list(d, at(0), "a", "b")
			d.put(prefix+"a", "a", &record{Leaving: true}, 5, at(0))
			require.Equal(t, "b", ids(d))
			d.put(prefix+"b", "b", &record{Leaving: true}, 6, at(0))
			require.Equal(t, "", ids(d))
			d.remove(prefix+"a", "a", at(1))
			require.Equal(t, "", ids(d))
			require.EqualValues(t, 6, d.newest())
		},
		"whose record goes is kept for a while": func(t *testing.T, d *directory) {
			list(d, at(0), "a", "b")
			d.remove(prefix+"a", "a", at(1))
			require.Equal(t, at(11), d.expire(at(1)))
			require.Equal(t, at(11), d.expire(at(10)))
			require.Equal(t, "a b", ids(d))
			require.Zero(t, d.expire(at(11)))
			require.Equal(t, "b", ids(d))
		},
		"lists that come often keep nobody": func(t *testing.T, d *directory) {
			list(d, at(0), "a", "b")
			for s := 1; s < 11; s++ {
				list(d, at(s), "a")
				require.Equal(t, "a b", ids(d))
				d.touch = at(s + 1)
				d.expire(at(s + 1))
			}
			require.Equal(t, "a", ids(d))
		},
		"the time without etcd does not count": func(t *testing.T, d *directory) {
			list(d, at(0), "a", "b")
			list(d, at(1), "a")
			d.touch = at(5)
			list(d, at(1000), "a")
			require.Equal(t, at(1006), d.expire(at(1000)))
		},
		"an empty list empties nothing": func(t *testing.T, d *directory) {
			list(d, at(0), "a", "b")
			list(d, at(1))
			require.Zero(t, d.expire(at(1000)))
			require.Equal(t, "a b", ids(d))
			// When the first is back the others have some time left.
			d.put(prefix+"a", "a", rec, 7, at(1000))
			require.Equal(t, at(1010), d.expire(at(1000)))
			require.Equal(t, "a b", ids(d))
			d.put(prefix+"a", "a", rec, 8, at(1005))
			require.Zero(t, d.expire(at(1010)))
			require.Equal(t, "a", ids(d))
		},
		"time without a list does not count": func(t *testing.T, d *directory) {
			list(d, at(0), "a", "b")
			list(d, at(1), "a")
			list(d, at(100), "a")
			require.Equal(t, at(110), d.expire(at(100)))
			require.Equal(t, "a b", ids(d))
		},
		"who comes back stays": func(t *testing.T, d *directory) {
			list(d, at(0), "a", "b")
			d.remove(prefix+"a", "a", at(1))
			put(d, "a", 9)
			require.Zero(t, d.expire(at(1000)))
			require.Equal(t, "a b", ids(d))
		},
		"a bad record changes nothing": func(t *testing.T, d *directory) {
			list(d, at(0), "a")
			d.put(prefix+"a", "a", nil, 4, at(0))
			d.put(prefix+"b", "b", nil, 5, at(0))
			require.Equal(t, "a", ids(d))
			require.Zero(t, d.expire(at(1000)))
			d.begin()
			d.put(prefix+"a", "a", nil, 4, at(0))
			d.finish(prefix, at(1))
			require.Equal(t, "a", ids(d))
		},
		"a list that lacks who has left": func(t *testing.T, d *directory) {
			list(d, at(0), "a", "b", "c/d")
			d.begin()
			d.put(prefix+"a", "a", &record{Leaving: true}, 4, at(0))
			put(d, "b", 2)
			d.put(prefix+"c%2Fd", "c/d", rec, 3, at(0))
			d.finish(prefix, at(1))
			require.Equal(t, "b c/d", ids(d))
			require.Zero(t, d.expire(at(1000)))
			require.Equal(t, "b c/d", ids(d))
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) { tt(t, newDirectory(10*time.Second)) })
	}
}

func TestSameServers(t *testing.T) {
	a := tp.Server{Id: "a", Addr: "a:1", Zone: "z", Weight: 1, Version: "v", Routes: []string{"/r"}}
	require.True(t, sameServers([]tp.Server{a}, []tp.Server{a}))
	for name, change := range map[string]func(*tp.Server){
		"id": func(s *tp.Server) { s.Id = "b" }, "addr": func(s *tp.Server) { s.Addr = "b" },
		"zone": func(s *tp.Server) { s.Zone = "" }, "weight": func(s *tp.Server) { s.Weight = 2 },
		"version": func(s *tp.Server) { s.Version = "" }, "routes": func(s *tp.Server) { s.Routes = nil },
	} {
		b := a
		change(&b)
		require.False(t, sameServers([]tp.Server{a}, []tp.Server{b}), name)
	}
	require.False(t, sameServers([]tp.Server{a}, nil))
}

func TestKeys(t *testing.T) {
	for _, id := range []string{"10.0.0.1:9090", "a/b", "a,b:1", "%2F", "ü ", "[::1]:9"} {
		key := keyOf("svc/x", id)
		require.True(t, strings.HasPrefix(key, "/teleport/v1/svc%2Fx/"), key)
		got, err := idOf(prefixOf("svc/x"), key)
		require.NoError(t, err)
		require.Equal(t, id, got)
	}
}

// An Id has one key. Another one that means the same, as other programs may escape it, would have the
// server's own record be taken for missing.
func TestKeysOfOthers(t *testing.T) {
	for _, key := range []string{"10.0.0.1%3A9090", "%41", "a%2fb", "a b", "", "a/b", "%", "%f"} {
		_, err := idOf(prefixOf("x"), prefixOf("x")+key)
		require.Error(t, err, key)
	}
}

// A watch that is only late, among many changes, has missed nothing; one that is silent, or has something
// else at the same revision, has.
func TestCompare(t *testing.T) {
	newFollowing := func(revision int64) *following {
		f := &following{d: newDirectory(time.Second), revision: revision}
		f.d.revisions["a"] = revision
		return f
	}
	has := func(revision int64) *state { return &state{revision: revision, count: 1, newest: revision} }
	t.Run("late", func(t *testing.T) {
		f := newFollowing(1)
		for r := int64(2); r < 20; r++ {
			require.NoError(t, f.compare(has(r)))
			f.revision, f.d.revisions["a"] = r, r
		}
		require.NoError(t, f.compare(has(19)))
		require.Zero(t, f.suspect)
	})
	t.Run("ahead", func(t *testing.T) {
		f := newFollowing(9)
		require.NoError(t, f.compare(has(8)))
		require.NoError(t, f.compare(has(8)))
	})
	t.Run("silent", func(t *testing.T) {
		f := newFollowing(1)
		require.NoError(t, f.compare(has(2)))
		require.ErrorIs(t, f.compare(has(3)), errMissed)
	})
	t.Run("something else", func(t *testing.T) {
		f := newFollowing(5)
		require.NoError(t, f.compare(&state{revision: 5, count: 2, newest: 5}))
		require.ErrorIs(t, f.compare(&state{revision: 5, count: 2, newest: 5}), errMissed)
	})
	t.Run("older data", func(t *testing.T) {
		require.ErrorIs(t, newFollowing(5).compare(&state{revision: 3, known: 5}), errMissed)
	})
}

func TestAdvertised(t *testing.T) {
	tcp := func(s string) net.Addr {
		a, err := net.ResolveTCPAddr("tcp", s)
		require.NoError(t, err)
		return a
	}
	tests := map[string]struct {
		addrs []net.Addr
		hosts []string
		want  string
	}{
		"nothing":     {nil, nil, ""},
		"one":         {[]net.Addr{tcp("10.0.0.1:90")}, nil, "10.0.0.1:90"},
		"all of IPv4": {[]net.Addr{tcp("0.0.0.0:90")}, nil, "10.9.9.9:90"},
		"all":         {[]net.Addr{tcp("[::]:90")}, nil, "10.9.9.9:90"},
		"two": {[]net.Addr{tcp("10.0.0.2:91"), tcp("10.0.0.1:90")}, nil,
			"10.0.0.1:90,10.0.0.2:91"},
		"one for debugging": {[]net.Addr{tcp("10.0.0.1:90"), tcp("127.0.0.1:90")}, nil, "10.0.0.1:90"},
		"this machine only": {[]net.Addr{tcp("127.0.0.1:90")}, nil, "127.0.0.1:90"},
		"unix":              {[]net.Addr{&net.UnixAddr{Name: "/s", Net: "unix"}}, nil, "unix:/s"},
		"unix and TCP": {[]net.Addr{&net.UnixAddr{Name: "/s", Net: "unix"}, tcp("1.2.3.4:5")}, nil,
			"1.2.3.4:5"},
		"a host":       {[]net.Addr{tcp("0.0.0.0:90")}, []string{"example.com"}, "example.com:90"},
		"a host, IPv6": {[]net.Addr{tcp("0.0.0.0:90")}, []string{"2001:db8::7"}, "[2001:db8::7]:90"},
		"in brackets":  {[]net.Addr{tcp("0.0.0.0:90")}, []string{"[2001:db8::7]"}, "[2001:db8::7]:90"},
		"a port":       {[]net.Addr{tcp("0.0.0.0:90")}, []string{"example.com:443"}, "example.com:443"},
		"host, two ports": {[]net.Addr{tcp("0.0.0.0:91"), tcp("0.0.0.0:90")}, []string{"b", "a"},
			"b:90,a:90,b:91,a:91"},
		"host and port, two ports": {[]net.Addr{tcp("0.0.0.0:91"), tcp("0.0.0.0:90")}, []string{"a:1"},
			"a:1"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, tt.want, advertised(tt.addrs, tt.hosts, func() string { return "10.9.9.9" }))
		})
	}
	for _, endpoints := range [][]string{{"127.0.0.1:2379"},
		{"https://etcd.invalid:2379", "http://192.0.2.7:2379"}} {
		require.NotNil(t, net.ParseIP(myHost(endpoints)))
	}
}

func TestPause(t *testing.T) {
	var p pause
	for _, bound := range []time.Duration{100, 200, 400, 800, 1000, 1000} {
		d := p.next()
		require.GreaterOrEqual(t, d, bound*time.Millisecond/2)
		require.LessOrEqual(t, d, bound*time.Millisecond)
	}
	p.reset()
	require.LessOrEqual(t, p.next(), 100*time.Millisecond)
}
