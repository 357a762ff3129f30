// Package resolver tells a [tp.Cluster] which servers a service has: from a list, from DNS, or from a file.
// None of them needs more than this module; contrib/etcd has a registration centre.
//
//	cluster := tp.NewCluster(peer, resolver.DNS("_rpc._tcp.shop.example.com"))
//	cluster := tp.NewCluster(peer, resolver.DNS("shop.example.com:9090"))
//	cluster := tp.NewCluster(peer, resolver.File("/etc/shop/servers.json"))
//	cluster := tp.NewCluster(peer, resolver.Static("10.0.0.1:9090", "10.0.0.2:9090"))
//
// What cannot be looked up now is as it was: an error, a name that DNS does not know any more, or a file that
// was half written never makes a list shorter. While nothing is known yet the error goes to the cluster,
// which tries again and says in the errors of its calls what is the matter. Later it is logged, once until it
// changes.
//
// A resolver may be used by any number of clusters, and keeps nothing between two calls of Resolve. When
// Resolve returns it leaves nothing behind that goes on.
package resolver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"time"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/option"
)

// Option is an option of [DNS] or [File].
type Option func(*options)

type options struct {
	every       time.Duration
	ofDNS       []string // the options that are for DNS only
	nameservers []string
	network     string
	backups     bool
}

func newOptions(caller string, every time.Duration, set []Option) options {
	o := options{every: every, network: "ip"}
	option.Apply("resolver: "+caller, &o, set)
	return o
}

// minEvery is the shortest pause between two look-ups.
const minEvery = 10 * time.Millisecond

// Every is for how long [DNS] or [File] waits before it looks again: for DNS at most, as the records say when
// they end, and 30 seconds without this option; for a file it is a second. It panics if d is less than 10
// milliseconds.
func Every(d time.Duration) Option {
	if d < minEvery {
		panic(fmt.Sprintf("resolver: Every(%v): %v or more was expected.", d, minEvery))
	}
	return func(o *options) { o.every = d }
}

// watch calls look again and again, after the pauses that it returns or, when it fails, after pauses that
// grow from least to every. Look returns nil for servers that are as they were. Update is told of the servers
// when they are others. The first failure is returned while nothing is known; later ones are logged, with
// what they are about.
func watch(ctx context.Context, about string, least, every time.Duration, update func([]tp.Server),
	look func(context.Context) ([]tp.Server, time.Duration, error)) error {
	var known []tp.Server
	told, failed := false, ""
	backoff := least
	for {
		servers, pause, err := look(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !told:
			return err
		case err != nil:
			if err.Error() != failed { // once, and not as often as it is tried
				failed = err.Error()
				warnf("%s: %v; the %d servers stay as they were", about, err, len(known))
			}
			pause = backoff/2 + rand.N(backoff)
			backoff = min(2*backoff, every)
		default:
			if failed != "" {
				failed = ""
				infof("%s: it works again", about)
			}
			backoff = least
			if servers != nil && !(told && slices.EqualFunc(servers, known, same)) {
				known, told = servers, true
				update(servers)
			}
		}
		if !sleep(ctx, pause) {
			return ctx.Err()
		}
	}
}

// same reports whether nothing about a server has changed.
func same(a, b tp.Server) bool {
	return a.Id == b.Id && a.Addr == b.Addr && a.Zone == b.Zone && a.Weight == b.Weight &&
		a.Version == b.Version && slices.Equal(a.Routes, b.Routes)
}

// sleep waits for d, and reports false if ctx ends before.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// check returns what is wrong with the servers of a list that a program or a person has written.
func check(servers []tp.Server) error {
	ids := make(map[string]int, len(servers))
	for i, s := range servers {
		if err := checkServer(s); err != nil {
			return fmt.Errorf("server %d of %d: %w", i+1, len(servers), err)
		}
		id := s.Id
		if id == "" {
			id = s.Addr
		}
		if other, ok := ids[id]; ok {
			return fmt.Errorf("servers %d and %d of %d have the same id %.100q", other+1, i+1,
				len(servers), id)
		}
		ids[id] = i
	}
	return nil
}

func checkServer(s tp.Server) error {
	for addr := range strings.SplitSeq(s.Addr, ",") {
		if addr = strings.TrimSpace(addr); strings.HasPrefix(addr, "unix:") && addr != "unix:" {
			continue
		}
		_, port, err := net.SplitHostPort(addr)
		if err != nil || port == "" {
			return fmt.Errorf("the address is %.100q, expected host:port or unix:/path, or several of them "+
				"with commas between", s.Addr)
		}
		if n, err := net.LookupPort("tcp", port); err != nil || n == 0 {
			return fmt.Errorf("the port of the address %.100q is %.20q, expected a number from 1 to 65535 "+
				"or the name of a service", s.Addr, port)
		}
	}
	if s.Weight < 0 || s.Weight > tp.MaxWeight {
		return fmt.Errorf("the weight is %d, expected 0 to %d", s.Weight, tp.MaxWeight)
	}
	for _, r := range s.Routes {
		if !strings.HasPrefix(r, "/") {
			return fmt.Errorf("the route %.100q does not begin with a slash", r)
		}
	}
	return nil
}
