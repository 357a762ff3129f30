package etcd

import (
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/option"
)

const (
	defaultTTL = 10 * time.Second
	minTTL     = 2 * time.Second
	// leaveTimeout bounds what a server that ends waits for etcd.
	leaveTimeout = 2 * time.Second
)

// RegisterOption is an option of [Register].
type RegisterOption func(*registerOptions)

type registerOptions struct {
	id       string
	hosts    []string
	zone     string
	weight   int
	version  string
	routes   []string // if routesSet
	ttl      time.Duration
	required bool

	routesSet bool
}

// Id names the server among those of the service. Without it the advertised address is the Id, so that a
// server that was killed and started again takes the place of its own record at once. Two servers must not
// have one Id: the second takes the place of the first, whose [Registration.Err] says so. Id panics if the
// name is empty or has more than 256 bytes.
func Id(id string) RegisterOption {
	checkName("etcd: Id", id)
	return func(o *registerOptions) { o.id = id }
}

// Advertise says where others reach the server: each is a host, which gets the ports that the peer listens
// on, or host:port for servers behind a port of another number. Without it the addresses of the listeners are
// advertised. For a listener on all addresses of the machine that is the address from which the machine
// reaches etcd, which in a container, or behind NAT, may be one that others cannot reach. Advertise panics if
// a host is empty.
func Advertise(hosts ...string) RegisterOption {
	if len(hosts) == 0 {
		panic("etcd: Advertise: there are no addresses: expected host:port, or a host.")
	}
	for i, h := range hosts {
		if h == "" || strings.Contains(h, ",") {
			panic(fmt.Sprintf("etcd: Advertise: address %d of %d is %q: expected host:port, or a host.", i+1,
				len(hosts), h))
		}
	}
	return func(o *registerOptions) { o.hosts = hosts }
}

// Zone names the place that the server stands in, see [tp.InZone].
func Zone(zone string) RegisterOption { return func(o *registerOptions) { o.zone = zone } }

// Weight is the server's share of the calls beside the others' weights, [tp.DefaultWeight] without it. It
// panics if weight is not from 1 to [tp.MaxWeight].
func Weight(weight int) RegisterOption {
	if weight <= 0 || weight > tp.MaxWeight {
		panic(fmt.Sprintf("etcd: Weight(%d): expected a number from 1 to %d.", weight, tp.MaxWeight))
	}
	return func(o *registerOptions) { o.weight = weight }
}

// Version names the version of the program, for people.
func Version(version string) RegisterOption { return func(o *registerOptions) { o.version = version } }

// Routes says which routes the server has: paths such as /math/add, or such as /math/ for all below it;
// without any all calls may go to the server. Without Routes they are those that are registered on the peer,
// also later.
func Routes(routes ...string) RegisterOption {
	for i, r := range routes {
		if !strings.HasPrefix(r, "/") {
			panic(fmt.Sprintf("etcd: Routes: route %d of %d is %q: expected a path such as /math/add.", i+1,
				len(routes), r))
		}
	}
	return func(o *registerOptions) { o.routes, o.routesSet = slices.Clone(routes), true }
}

// TTL is how long the server stays in etcd when etcd does not hear from it: 10 s without it. It is rounded up
// to seconds. A shorter one takes a killed server away earlier, but also one that etcd cannot hear; see
// [KeepMissed] for what clients do then. TTL panics if ttl is shorter than 2 s.
func TTL(ttl time.Duration) RegisterOption {
	if ttl < minTTL {
		panic(fmt.Sprintf("etcd: TTL(%v): expected %v or more.", ttl, minTTL))
	}
	return func(o *registerOptions) { o.ttl = (ttl + time.Second - 1).Truncate(time.Second) }
}

// Required has Listen and Serve fail if the server cannot be registered within PeerConfig.HookTimeout.
// Without it they do not wait for etcd at all.
func Required() RegisterOption { return func(o *registerOptions) { o.required = true } }

// Registration is a plugin that keeps one peer in the list of a service's servers. Make it with [Register].
// All methods are safe for concurrent use.
//
// The peer is entered before it accepts connections, under a lease, and looked after several times in the
// lease's time: what is lost, whether etcd was away, has lost its data, or somebody has deleted the record,
// is entered again. That is tried for as long as the peer lives. [tp.Peer.Shutdown] takes the server off
// before it stops accepting, and waits for etcd for two seconds at most; [tp.Peer.Close] waits for one. A
// peer that listens no more, because its listeners have failed, is taken off too, until it listens again.
type Registration struct {
	client  *clientv3.Client
	service string
	// instance tells this Registration's records from others'.
	instance string
	options  registerOptions
	host     func() string // this machine's

	wake chan struct{} // has one element when there is something new to tell etcd
	stop chan struct{} // is closed when the peer ends
	done chan struct{} // is closed when the goroutine has ended
	left error         // why the record could not be taken off; it may be read when done is closed

	mu sync.Mutex // guards the fields below
	// peer is whose servers these are; nil until it listens.
	peer   *tp.Peer
	id     string // set with peer
	ended  bool
	routes map[string]bool // that are registered on the peer
	// news is closed, and replaced, when held or err has changed.
	news  chan struct{}
	held  bool      // the record is in etcd, as far as is known
	until time.Time // when the lease runs out
	err   error
	last  record // what was written last
}

// Register returns a plugin that registers the peer it is given to as a server of the service. Services are
// told apart by their names alone; a name may have slashes. The client is used until the peer has ended, and
// belongs to the program, which closes it after the peer. Register panics if the client or an option is nil,
// and if the name is empty or has more than 256 bytes.
func Register(client *clientv3.Client, service string, options ...RegisterOption) *Registration {
	if client == nil {
		panic("etcd: Register: the client is nil.")
	}
	checkName("etcd: Register", service)
	r := &Registration{client: client, service: service, instance: rand.Text(),
		options: registerOptions{ttl: defaultTTL},
		wake:    make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
		routes: make(map[string]bool), news: make(chan struct{}), err: errNotListening,
		host: sync.OnceValue(func() string { return myHost(client.Endpoints()) })}
	option.Apply("etcd: Register", &r.options, options)
	return r
}

var errNotListening = errors.New("etcd: the peer does not listen")

// Name returns "etcd:" and the service's name, so that a peer may serve several services.
func (r *Registration) Name() string { return "etcd:" + r.service }

// Registered reports whether the server is in etcd now, as far as this side can know: its lease has not run
// out, and nobody was seen to have removed it.
func (r *Registration) Registered() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.held && !r.ended && time.Now().Before(r.until)
}

// Err returns why the last attempt to reach etcd has failed, or why there was none; nil if it has succeeded.
// There may be an error while the server is still registered.
func (r *Registration) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// Server returns what was last written to etcd; the zero Server before that.
func (r *Registration) Server() tp.Server {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last.Addr == "" {
		return tp.Server{}
	}
	s := r.last.server(r.id)
	s.Routes = slices.Clone(s.Routes)
	return s
}

// PostReg takes a route into the record. It fails if that gets too large.
func (r *Registration) PostReg(h *tp.Handler) error {
	if r.options.routesSet {
		return nil
	}
	// An unknown handler has a * behind its group's path.
	route := strings.TrimSuffix(h.Name(), "*")
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.routes[route] {
		return nil
	}
	r.routes[route] = true
	if r.peer == nil {
		return nil
	}
	if _, err := r.recordLocked(r.last.Addr).encode(); err != nil {
		delete(r.routes, route)
		return err
	}
	r.tell()
	return nil
}

// PostListen begins to register the peer, or adds an address.
func (r *Registration) PostListen(ctx tp.ListenCtx) error {
	begun, err := r.begin(ctx.Peer())
	if err != nil || !begun {
		return err
	}
	r.tell()
	if !r.options.required {
		return nil
	}
	for {
		r.mu.Lock()
		held, err, news := r.held, r.err, r.news
		r.mu.Unlock()
		if held {
			return nil
		}
		select {
		case <-news:
		case <-r.stop:
			return nil
		case <-ctx.Context().Done():
			return fmt.Errorf("etcd: service %q: the server could not be registered, which is Required: %w",
				r.service, err)
		}
	}
}

// begin starts to register the peer, unless that has been done. It reports false if the peer ends.
func (r *Registration) begin(p *tp.Peer) (begun bool, err error) {
	addr := r.address(p)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.peer != nil && r.peer != p {
		return false, fmt.Errorf("etcd: the Registration of service %q is another peer's: expected one for "+
			"each peer", r.service)
	}
	if r.ended {
		return false, nil
	}
	rec := r.recordLocked(addr)
	if _, err := rec.encode(); err != nil {
		return false, err
	}
	if r.peer == nil {
		r.peer = p
		r.id = r.options.id
		if r.id == "" {
			r.id = addr
		}
		if len(r.id) > maxName {
			r.peer = nil
			return false, fmt.Errorf("etcd: the addresses of the server have %d bytes, too many for its Id: "+
				"expected at most %d, or the option Id", len(r.id), maxName)
		}
		r.err = errNotYet
		go r.run()
	}
	return true, nil
}

var errNotYet = errors.New("etcd: the first attempt to register the server is not over")

// end has the goroutine end, and reports whether there is one and this is the first time.
func (r *Registration) end() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return false
	}
	r.ended = true
	r.err = errors.New("etcd: the peer has ended")
	close(r.stop)
	return r.peer != nil
}

// address returns where others reach the peer, or "" if it does not listen.
func (r *Registration) address(p *tp.Peer) string {
	return advertised(p.Addrs(), r.options.hosts, r.host)
}

// recordLocked returns the record of the server at addr. The caller holds r.mu.
func (r *Registration) recordLocked(addr string) *record {
	rec := &record{Addr: addr, Zone: r.options.zone, Weight: r.options.weight, Version: r.options.version,
		Routes: r.options.routes, Instance: r.instance}
	if !r.options.routesSet && !r.routes["/"] { // where "/" is one there is a handler for all
		rec.Routes = slices.Sorted(maps.Keys(r.routes))
	}
	return rec
}

// tell has the goroutine look at once whether there is something to tell etcd.
func (r *Registration) tell() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// PreShutdown takes the server off.
func (r *Registration) PreShutdown(ctx tp.ShutdownCtx) error {
	if !r.end() {
		return nil
	}
	select {
	case <-r.done:
		return r.left
	case <-ctx.Context().Done():
		return fmt.Errorf("etcd: service %q: etcd does not answer; the record goes when its lease of %v "+
			"runs out: %w", r.service, r.options.ttl, ctx.Context().Err())
	}
}
