package resolver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	tp "github.com/henrylee2cn/teleport"
)

const (
	dnsEvery = 30 * time.Second
	// dnsLeast is the shortest pause between two look-ups, whatever the records say.
	dnsLeast = time.Second
	// dnsPatience bounds one look-up, with all that package net tries.
	dnsPatience = 30 * time.Second
)

// Zones of servers with [Backups].
const (
	Primary = "primary"
	Backup  = "backup"
)

// DNS returns a [tp.Resolver] that asks DNS. For a name with a port, shop.example.com:9090, each address of
// the name, of A and AAAA records, is a server with that port. For one without, _rpc._tcp.shop.example.com,
// SRV records name the servers, with ports and weights, and of several priorities the first one counts; see
// [Backups].
//
// The name is looked up as package net does that, by /etc/hosts, the name servers of /etc/resolv.conf and its
// search list, unless it ends with a dot. It is looked up again when between 80% and 95% of the shortest time
// to live of its records is over, but not more often than once a second and not more rarely than every 30
// seconds, see [Every]. Where no record has come over the network, from /etc/hosts for example, the 30
// seconds count.
//
// A name that does not exist any more, one without records and a name server that is silent are errors, and
// errors leave the servers as they are: DNS cannot say that a service has no servers. Some name servers
// answer with a part of the records only, another one each time; then the servers change each time. A server
// that has an address of both kinds counts as two, see [Network].
//
// With TLS, servers of A and AAAA records are dialled by their numbers: set ServerName of the peer's TLS
// configuration to the name in their certificates. Servers of SRV records are dialled by their names.
//
// DNS panics if the name is neither of the two.
func DNS(name string, option ...Option) tp.Resolver {
	d := &dns{name: name, option: newOptions("DNS", dnsEvery, option)}
	if host, port, err := net.SplitHostPort(name); err == nil && host != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			panic(fmt.Sprintf("resolver: DNS(%q): the port is %q, a number from 1 to 65535 was expected.",
				name, port))
		}
		d.host, d.port = host, uint16(n)
		d.find = d.addresses
		return d
	}
	if !strings.HasPrefix(name, "_") || strings.ContainsAny(name, ": /") {
		panic(fmt.Sprintf("resolver: DNS(%q): host:port was expected, or the name of SRV records, "+
			"_rpc._tcp.example.com.", name))
	}
	d.find = d.services
	return d
}

// Nameservers has [DNS] ask these name servers, each host:port, by turns, instead of those of the system: an
// agent of Consul for example, at 127.0.0.1:8600. It panics if there is none, or one without a port.
func Nameservers(addrs ...string) Option {
	if len(addrs) == 0 {
		panic("resolver: Nameservers: one address at least was expected.")
	}
	for _, addr := range addrs {
		if _, port, err := net.SplitHostPort(addr); err != nil || port == "" {
			panic(fmt.Sprintf("resolver: Nameservers: %q is no host:port.", addr))
		}
	}
	addrs = slices.Clone(addrs)
	return func(o *options) { o.nameservers, o.ofDNS = addrs, append(o.ofDNS, "Nameservers") }
}

// Network is which addresses [DNS] takes: ip4 or ip6, or ip for both, as without this option. It has no
// effect on SRV records. It panics if it is something else.
func Network(network string) Option {
	if network != "ip" && network != "ip4" && network != "ip6" {
		panic(fmt.Sprintf("resolver: Network(%q): ip, ip4 or ip6 was expected.", network))
	}
	return func(o *options) { o.network, o.ofDNS = network, append(o.ofDNS, "Network") }
}

// Backups has [DNS] tell of the servers of all priorities of SRV records: those of the first one are in the
// zone [Primary], and all others in the zone [Backup]. With tp.InZone(resolver.Primary) the cluster calls the
// others when the first are gone, or cannot take more.
func Backups() Option {
	return func(o *options) { o.backups, o.ofDNS = true, append(o.ofDNS, "Backups") }
}

type dns struct {
	name   string
	host   string
	port   uint16
	option options
	turn   atomic.Uint32 // which of the name servers is next
	// find looks the servers up, by the resolver given.
	find func(ctx context.Context, by *net.Resolver) ([]tp.Server, error)
}

// Resolve is for [tp.Cluster], see [tp.Resolver].
func (d *dns) Resolve(ctx context.Context, update func(servers []tp.Server)) error {
	every := d.option.every
	return watch(ctx, "the servers of "+d.name, min(dnsLeast, every), every, update,
		func(ctx context.Context) ([]tp.Server, time.Duration, error) {
			servers, ttl, err := d.look(ctx)
			return servers, pauseFor(ttl, every), err
		})
}

// pauseFor returns when to look again at what is true for ttl.
func pauseFor(ttl, every time.Duration) time.Duration {
	pause := time.Duration(float64(ttl) * (0.8 + 0.15*rand.Float64()))
	return min(max(pause, dnsLeast), every)
}

// look looks the servers up. They are true for ttl, as far as anybody says that.
func (d *dns) look(ctx context.Context) (servers []tp.Server, ttl time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, dnsPatience)
	defer cancel()
	var seen ttls
	servers, err = d.find(ctx, d.resolver(ctx, &seen))
	if err != nil {
		return nil, 0, err
	}
	ttl, ok := seen.shortest()
	if !ok {
		ttl = 2 * d.option.every
	}
	return servers, ttl, nil
}

// resolver returns one of package net whose connections are listened to, and end with the look-up: package
// net leaves its goroutines to wait for answers otherwise.
func (d *dns) resolver(lookUp context.Context, seen *ttls) *net.Resolver {
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		if of := d.option.nameservers; len(of) > 0 {
			address = of[int(d.turn.Add(1)-1)%len(of)]
		}
		if err := lookUp.Err(); err != nil {
			return nil, err
		}
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		context.AfterFunc(lookUp, func() { _ = conn.Close() }) // again, if it is closed already
		return seen.listen(conn), nil
	}
	// Strict, because otherwise the A records alone would be the answer while nobody answers for the AAAA
	// records.
	return &net.Resolver{PreferGo: true, StrictErrors: true, Dial: dial}
}

// addresses finds the servers of A and AAAA records.
func (d *dns) addresses(ctx context.Context, by *net.Resolver) ([]tp.Server, error) {
	found, err := by.LookupNetIP(ctx, d.option.network, d.host)
	if err != nil {
		return nil, err
	}
	var servers []tp.Server
	for _, ip := range found {
		servers = append(servers, tp.Server{Addr: netip.AddrPortFrom(ip.Unmap(), d.port).String()})
	}
	return named(servers), nil
}

// services finds the servers of SRV records, see RFC 2782.
func (d *dns) services(ctx context.Context, by *net.Resolver) ([]tp.Server, error) {
	_, records, err := by.LookupSRV(ctx, "", "", d.name)
	if err != nil && len(records) == 0 { // an error with records is about others, whose names are none
		return nil, err
	}
	records = slices.DeleteFunc(records, func(r *net.SRV) bool { return r.Target == "." || r.Port == 0 })
	if len(records) == 0 {
		return nil, errors.New("the records say that the service is not there")
	}
	slices.SortStableFunc(records, func(a, b *net.SRV) int { return cmp.Compare(a.Priority, b.Priority) })
	first := records[0].Priority
	weighed := slices.ContainsFunc(records, func(r *net.SRV) bool { return r.Weight > 0 })
	var servers []tp.Server
	for _, r := range records {
		s := tp.Server{Addr: net.JoinHostPort(strings.TrimSuffix(r.Target, "."), strconv.Itoa(int(r.Port)))}
		if weighed { // 0 is for hardly any calls then, and would be for the usual share here
			s.Weight = max(int(r.Weight), 1)
		}
		switch {
		case d.option.backups && r.Priority == first:
			s.Zone = Primary
		case d.option.backups:
			s.Zone = Backup
		case r.Priority != first:
			continue
		}
		servers = append(servers, s)
	}
	return named(servers), nil
}

// named returns the servers in the order of their addresses, which are their ids, each once.
func named(servers []tp.Server) []tp.Server {
	slices.SortStableFunc(servers, func(a, b tp.Server) int { return strings.Compare(a.Addr, b.Addr) })
	return slices.CompactFunc(servers, func(a, b tp.Server) bool { return a.Addr == b.Addr })
}
