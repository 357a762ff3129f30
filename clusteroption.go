package tp

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/henrylee2cn/teleport/internal/balance"
)

// A ClusterOption changes one thing about a [Cluster]. The functions that make options panic if a value
// cannot be meant. Of two options about the same thing the last holds.
type ClusterOption func(o *clusterOptions)

type clusterOptions struct {
	policy     balance.Policy
	hashes     bool // the policy looks at the key
	reports    bool // and at what servers tell of their load
	zone       string
	subset     int
	self       string
	eject      Ejection
	ejects     bool
	share      float64 // of the retry budget
	perSecond  float64
	idempotent []string
	hedge      time.Duration
	hedges     bool
	wait       time.Duration
}

// defaultWait is how long a call waits while the cluster has no server for it.
const defaultWait = 5 * time.Second

func defaultClusterOptions() clusterOptions {
	return clusterOptions{policy: balance.PowerOfTwo(), reports: true, ejects: true, share: 0.2,
		perSecond: 10, wait: defaultWait}
}

// RoundRobin gives the servers calls in turn, in the proportion of their weights. It looks neither at how
// many calls are in flight nor at how long they take: a server that becomes slow gets as many as before.
// Without an option the cluster takes the better one of two servers chosen at random, see [NewCluster].
func RoundRobin() ClusterOption {
	return func(o *clusterOptions) { o.policy, o.hashes, o.reports = balance.RoundRobin(), false, false }
}

// ConsistentHash sends the calls with one key, see [WithKey], to one server as long as that has room: no
// server is given a call while it has more than bound times the mean of the calls in flight, 1.25 for
// example; the call goes to the key's next server then. When a server comes or goes only the keys change
// their server that belong to it. A call without a key goes to any server. It panics unless the bound is
// greater than 1; math.Inf(1) is no bound.
func ConsistentHash(bound float64) ClusterOption {
	if !(bound > 1) {
		panic(fmt.Sprintf("tp: ConsistentHash(%v): a bound greater than 1 was expected, 1.25 for example.",
			bound))
	}
	return func(o *clusterOptions) {
		o.policy, o.hashes, o.reports = balance.ConsistentHash(bound), true, false
	}
}

// WithKey says what a call is about, the id of a user for example: calls with one key go to one server of a
// [Cluster] with [ConsistentHash]. It has no effect on other clusters, nor on a session. The key does not
// travel.
func WithKey(key string) PacketSetting { return PacketSetting{kind: settingKey, name: key} }

// InZone says in which zone this program runs: servers of the same [Server].Zone get the calls. The others
// get some when those of the zone are gone, are ejected, or have more calls in flight than they can take.
// It panics if the zone is empty.
func InZone(zone string) ClusterOption {
	if zone == "" {
		panic("tp: InZone: the zone is empty.")
	}
	return func(o *clusterOptions) { o.zone = zone }
}

// Subset has the cluster keep connections to size of the service's servers and no more, so that 1,000
// clients of 1,000 servers do not make a million connections. Which they are depends on self, the name of
// this client among all clients of the service: without one it is chosen at random. A client with a name
// has the same servers after a restart. With [InZone] size servers are those of the zone, if there are as
// many, and a quarter of size, at least one, are of other zones.
//
// A server that cannot be dialled three times in a row is dialled on, and another one takes its place, for
// 100 servers or three times size, whichever is more. It panics if size is less than 1.
func Subset(size int, self ...string) ClusterOption {
	if size < 1 {
		panic(fmt.Sprintf("tp: Subset(%d): a size of 1 or more was expected.", size))
	}
	name := strings.Join(self, "/")
	return func(o *clusterOptions) { o.subset, o.self = size, name }
}

// Ejection says when a [Cluster] gives a server no calls for some time. A field that is 0 has its default.
type Ejection struct {
	// Consecutive is how many calls in a row fail before the server is taken out (5). A negative value: it
	// is not taken out for that.
	Consecutive int
	// Excess is by how much the server's share of failed calls, of the last ten seconds or so, may be above
	// that of all others (0.3), if it has had MinCalls (20) in that time. A negative value: it is not taken
	// out for that.
	Excess   float64
	MinCalls int
	// MaxShare is the largest part of the servers that may be out at a time (0.5), rounded down: one of two
	// or three.
	MaxShare float64
	// Base is how long a server is out the first time (5 s). It is twice as long each time after that, up to
	// Max (5 min). A server that comes back has one call at a time until five have gone well.
	Base, Max time.Duration
}

// Eject changes when servers whose calls fail get no calls for some time. A call counts as failed if the
// connection was lost, no answer came in time, or the answer was StatusInternalServerError,
// StatusBadGateway, StatusServiceUnavailable or StatusGatewayTimeout. StatusOverloaded does not count: with
// one server less the others would have more to do. When all servers fail none is taken out: what they have
// in common is not a server's fault. It panics if a share is
// not between 0 and 1, or a time or a number cannot be meant.
func Eject(e Ejection) ClusterOption {
	o := clusterOptions{eject: e}
	if m := o.ejector().Mistake(); m != "" {
		panic("tp: Eject: " + m)
	}
	return func(o *clusterOptions) { o.eject, o.ejects = e, true }
}

// NoEjection has the cluster call servers whatever becomes of the calls, see [Eject].
func NoEjection() ClusterOption { return func(o *clusterOptions) { o.ejects = false } }

// ejector returns the configuration of the ejector.
func (o *clusterOptions) ejector() balance.EjectorConfig {
	e := o.eject
	return balance.EjectorConfig{Consecutive: e.Consecutive, Excess: e.Excess, MinCalls: e.MinCalls,
		MaxShare: e.MaxShare, Base: e.Base, Max: e.Max}
}

// RetryBudget bounds how many attempts beside the first ones the cluster makes: a share of the calls, and
// perSecond more. Without this option they are 0.2 and 10. An attempt counts if a server has answered the one
// before it, or may have; one that was never sent costs the servers nothing, and does not count. [Hedge]
// takes its second attempts out of the same budget. With 0 and 0 a call that a server refuses fails, and only
// calls that were not sent go elsewhere. It panics if one of the numbers is negative or not finite.
func RetryBudget(share, perSecond float64) ClusterOption {
	for _, v := range []float64{share, perSecond} {
		if !(v >= 0) || math.IsInf(v, 0) {
			panic(fmt.Sprintf("tp: RetryBudget(%v, %v): two numbers that are not negative were expected.",
				share, perSecond))
		}
	}
	return func(o *clusterOptions) { o.share, o.perSecond = share, perSecond }
}

// Idempotent says which pulls may be made again although they may have run: those to the routes, paths such
// as /math/add, or such as /math/ for all below it. When the connection is lost such a pull goes to another
// server, and [Hedge] holds for it. [WithIdempotent] says the same of one call. Without routes every pull of
// the cluster may be made again. It panics if a route does not begin with a slash.
func Idempotent(routes ...string) ClusterOption {
	if len(routes) == 0 {
		routes = []string{"/"}
	}
	for _, r := range routes {
		if !strings.HasPrefix(r, "/") {
			panic(fmt.Sprintf("tp: Idempotent: %q does not begin with a slash; a path such as /math/add was "+
				"expected, or one such as /math/ for all below it.", r))
		}
	}
	return func(o *clusterOptions) { o.idempotent = append(o.idempotent, routes...) }
}

// WithIdempotent says that a pull by a [Cluster] may be made again although it may have run, see
// [Idempotent]. It has no effect on other calls.
func WithIdempotent() PacketSetting { return PacketSetting{kind: settingIdempotent} }

// Hedge has an idempotent pull, see [Idempotent], that is not answered after some time go to a second server
// too: the first good reply is the pull's, and the other server is told that nobody waits any more. With 0
// the time is the 95th percentile of what pulls of the route have taken lately, and there is no second
// attempt until 20 of them are known. The second attempts are taken from the [RetryBudget]. Hedge has no
// effect on GoPull. It panics if the time is negative.
func Hedge(after time.Duration) ClusterOption {
	if after < 0 {
		panic(fmt.Sprintf("tp: Hedge(%v): a time that is not negative was expected.", after))
	}
	return func(o *clusterOptions) { o.hedge, o.hedges = after, true }
}

// WaitForServer is how long a call waits while the cluster has no connection to a server that it may go to,
// 5 s without this option: as long as its context and PeerConfig.DefaultPullTimeout allow. With 0 it fails
// at once. It panics if the time is negative.
func WaitForServer(d time.Duration) ClusterOption {
	if d < 0 {
		panic(fmt.Sprintf("tp: WaitForServer(%v): a time that is not negative was expected.", d))
	}
	return func(o *clusterOptions) { o.wait = d }
}

// anyRoute reports whether the path is one of the routes, or below one that ends with a slash.
func anyRoute(routes []string, path string) bool {
	for _, r := range routes {
		if r == path || strings.HasSuffix(r, "/") && strings.HasPrefix(path, r) {
			return true
		}
	}
	return false
}
