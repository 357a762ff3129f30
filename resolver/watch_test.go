package resolver

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
)

// looked is what a look-up of a test comes to.
type looked struct {
	servers []tp.Server
	err     error
}

func at(addr ...string) looked {
	l := looked{servers: []tp.Server{}}
	for _, a := range addr {
		l.servers = append(l.servers, tp.Server{Addr: a})
	}
	return l
}

// watched runs watch over look-ups that come to these, and returns what was told, "-" for a look-up that has
// told nothing, and how long it has waited before each.
func watched(t *testing.T, every time.Duration, all ...looked) (told []string, waited []time.Duration,
	err error) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n, last, news := 0, time.Now(), "-"
	err = watch(ctx, "test", time.Second, every, func(servers []tp.Server) { news = addrs(servers) },
		func(context.Context) ([]tp.Server, time.Duration, error) {
			waited = append(waited, time.Since(last))
			if last = time.Now(); n > 0 {
				told = append(told, news)
			}
			news = "-"
			if n == len(all) {
				cancel()
				return nil, 0, nil
			}
			n++
			return all[n-1].servers, 5 * time.Second, all[n-1].err
		})
	return told, waited, err
}

func TestWatch(t *testing.T) {
	failed := looked{err: errors.New("nobody answers")}
	for name, c := range map[string]struct {
		looks []looked
		told  []string
	}{
		"the first list":         {[]looked{at("a:1")}, []string{"a:1"}},
		"a list without servers": {[]looked{at()}, []string{""}},
		"the same again":         {[]looked{at("a:1"), at("a:1")}, []string{"a:1", "-"}},
		"unchanged":              {[]looked{at("a:1"), {}}, []string{"a:1", "-"}},
		"another one":            {[]looked{at("a:1"), at("a:1", "b:1")}, []string{"a:1", "a:1 b:1"}},
		"one is gone":            {[]looked{at("a:1", "b:1"), at("b:1")}, []string{"a:1 b:1", "b:1"}},
		"all are gone":           {[]looked{at("a:1"), at(), at()}, []string{"a:1", "", "-"}},
		"an error": {[]looked{at("a:1"), failed, at("b:1")},
			[]string{"a:1", "-", "b:1"}},
		"an error, and the same":        {[]looked{at("a:1"), failed, at("a:1")}, []string{"a:1", "-", "-"}},
		"an error, and nothing changed": {[]looked{at("a:1"), failed, {}}, []string{"a:1", "-", "-"}},
		"an error with servers": {[]looked{at("a:1"), {at("b:1").servers, failed.err}, at("c:1")},
			[]string{"a:1", "-", "c:1"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				told, waited, err := watched(t, time.Minute, c.looks...)
				require.ErrorIs(t, err, context.Canceled)
				require.Equal(t, c.told, told)
				for i, l := range c.looks {
					if l.err == nil {
						require.Equal(t, 5*time.Second, waited[i+1])
					}
				}
			})
		})
	}
}

// Anything about a server is a change.
func TestWatchSeesEveryField(t *testing.T) {
	s := tp.Server{Id: "i", Addr: "a:1", Zone: "z", Weight: 1, Version: "v", Routes: []string{"/r"}}
	for i, change := range []func(s *tp.Server){
		func(s *tp.Server) {},
		func(s *tp.Server) { s.Id = "j" },
		func(s *tp.Server) { s.Addr = "a:2" },
		func(s *tp.Server) { s.Zone = "y" },
		func(s *tp.Server) { s.Weight = 2 },
		func(s *tp.Server) { s.Version = "w" },
		func(s *tp.Server) { s.Routes = []string{"/r", "/s"} },
		func(s *tp.Server) { s.Routes = []string{"/s"} },
	} {
		other := s
		change(&other)
		require.Equal(t, i == 0, same(s, other), "%+v", other)
	}
}

// As long as nothing is known the caller gets the error, and tries again itself.
func TestTheFirstErrorIsReturned(t *testing.T) {
	none := errors.New("nobody answers")
	told, _, err := watched(t, time.Minute, looked{err: none})
	require.Equal(t, none, err)
	require.Empty(t, told)
}

// Later errors are tried again after pauses that grow, within bounds, and there is one line about each kind.
func TestLaterErrors(t *testing.T) {
	log := collectLog(t)
	synctest.Test(t, func(t *testing.T) {
		looks := []looked{at("a:1", "b:1")}
		for range 20 {
			looks = append(looks, looked{err: errors.New("nobody answers")})
		}
		for range 20 {
			looks = append(looks, looked{err: errors.New("no such host")})
		}
		looks = append(looks, at("a:1", "b:1"), looked{err: errors.New("no such host")})
		told, waited, err := watched(t, 30*time.Second, looks...)
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, "a:1 b:1", told[0])
		for i, news := range told[1:] {
			require.Equal(t, "-", news, i)
		}
		for i := range 40 {
			backoff := min(time.Second<<i, 30*time.Second)
			if i > 10 {
				backoff = 30 * time.Second
			}
			require.GreaterOrEqual(t, waited[i+2], backoff/2, i)
			require.Less(t, waited[i+2], backoff*3/2, i)
		}
		require.Less(t, waited[len(waited)-1], 3*time.Second, "the pauses are short again")
	})
	require.Equal(t, 1, log.containing("WARN test: nobody answers; the 2 servers stay as they were"))
	require.Equal(t, 2, log.containing("WARN test: no such host; the 2 servers stay as they were"))
	require.Equal(t, 1, log.containing("INFO test: it works again"))
}

func TestCheck(t *testing.T) {
	const expected = "expected host:port or unix:/path, or several of them with commas between"
	for name, c := range map[string]struct {
		servers []tp.Server
		want    string // in the error; empty for none
	}{
		"none":              {nil, ""},
		"host and port":     {[]tp.Server{{Addr: "a:1"}, {Addr: "[::1]:1"}, {Addr: "a:http"}}, ""},
		"a socket":          {[]tp.Server{{Addr: "unix:/run/a"}}, ""},
		"several addresses": {[]tp.Server{{Addr: "a:1, b:1,unix:/run/a"}}, ""},
		"no address": {[]tp.Server{{Addr: "a:1"}, {}},
			"server 2 of 2: the address is \"\", " + expected},
		"no port":       {[]tp.Server{{Addr: "a"}}, expected},
		"an empty port": {[]tp.Server{{Addr: "a:"}}, expected},
		"an empty one":  {[]tp.Server{{Addr: "a:1,"}}, expected},
		"a port too large": {[]tp.Server{{Addr: "a:1,b:65536"}},
			`the port of the address "a:1,b:65536" is "65536"`},
		"port 0":     {[]tp.Server{{Addr: "a:0"}}, "expected a number from 1 to 65535"},
		"no path":    {[]tp.Server{{Addr: "unix:"}}, expected},
		"the weight": {[]tp.Server{{Addr: "a:1", Weight: -1}}, "the weight is -1, expected 0 to 1000000"},
		"too much weight": {[]tp.Server{{Addr: "a:1", Weight: 1_000_001}},
			"the weight is 1000001, expected 0 to 1000000"},
		"the route": {[]tp.Server{{Addr: "a:1", Routes: []string{"/a", "b"}}},
			`the route "b" does not begin`},
		"two addresses": {[]tp.Server{{Addr: "a:1"}, {Addr: "a:1"}},
			`servers 1 and 2 of 2 have the same id "a:1"`},
		"two ids": {[]tp.Server{{Id: "i", Addr: "a:1"}, {Id: "i", Addr: "b:1"}}, `the same id "i"`},
		"an id and an address": {[]tp.Server{{Id: "b:1", Addr: "a:1"}, {Addr: "b:1"}},
			`the same id "b:1"`},
		"one address with two ids": {[]tp.Server{{Id: "i", Addr: "a:1"}, {Id: "j", Addr: "a:1"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if err := check(c.servers); c.want == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, c.want)
			}
		})
	}
}

// What makes no sense panics where it is written, and says what was expected.
func TestConfigurationsThatMakeNoSense(t *testing.T) {
	const neither = "host:port was expected, or the name of SRV records, _rpc._tcp.example.com."
	for _, c := range []struct {
		want string
		f    func()
	}{
		{"Static: one server at least was expected.", func() { Static() }},
		{"StaticServers: one server at least was expected.", func() { StaticServers() }},
		{`Static: server 2 of 2: the address is "b", expected host:port or unix:/path, or several of them ` +
			"with commas between.", func() { Static("a:1", "b") }},
		{"StaticServers: server 1 of 1: the weight is -1, expected 0 to 1000000.",
			func() { StaticServers(tp.Server{Addr: "a:1", Weight: -1}) }},
		{`DNS("a"): ` + neither, func() { DNS("a") }},
		{`DNS(""): ` + neither, func() { DNS("") }},
		{`DNS(":80"): ` + neither, func() { DNS(":80") }},
		{`DNS("_a._tcp.b/c"): ` + neither, func() { DNS("_a._tcp.b/c") }},
		{`DNS("a:http"): the port is "http", a number from 1 to 65535 was expected.`,
			func() { DNS("a:http") }},
		{`DNS("a:0"): the port is "0", a number from 1 to 65535 was expected.`, func() { DNS("a:0") }},
		{"Every(1ms): 10ms or more was expected.", func() { Every(time.Millisecond) }},
		{`Network("tcp"): ip, ip4 or ip6 was expected.`, func() { Network("tcp") }},
		{"Nameservers: one address at least was expected.", func() { Nameservers() }},
		{`Nameservers: "a" is no host:port.`, func() { Nameservers("a") }},
		{"File: the path is empty.", func() { File("") }},
		{`File("a"): Backups is an option of DNS.`, func() { File("a", Backups()) }},
		{"File: option 1 of 1 is nil.", func() { File("a", nil) }},
		{"DNS: option 2 of 2 is nil.", func() { DNS("a:1", Backups(), nil) }},
	} {
		t.Run(c.want, func(t *testing.T) { require.PanicsWithValue(t, "resolver: "+c.want, c.f) })
	}
}
