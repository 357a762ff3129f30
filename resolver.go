package tp

import "context"

// DefaultWeight is the weight of a [Server] that names none.
const DefaultWeight = 100

// MaxWeight is the greatest weight that a [Server] may have.
const MaxWeight = 1_000_000

// Server is one server of a service, as a [Resolver] knows it.
type Server struct {
	// Id names the server among those of the service. A server that is told of again with the same Id is the
	// same one: its connection stays, unless Addr is another. Empty: Addr is the Id.
	Id string
	// Addr is where [Peer.Dial] finds the server: host:port, or several of these separated by commas.
	Addr string
	// Zone names the place that the server stands in; see [InZone]. Empty: not known.
	Zone string
	// Weight is the server's share of the calls beside the others' weights. 0 means DefaultWeight; one
	// that is negative or greater than MaxWeight is a mistake, and the server is left out.
	Weight int
	// Version is the version of the program that the server runs. The library does not read it.
	Version string
	// Routes are the routes that the server has: paths such as /math/add, or such as /math/ for all below it.
	// A call goes only to servers that have its route. Empty: any route.
	Routes []string
}

// Resolver tells which servers a service has. Package resolver has some: a static list, DNS, a file.
//
// A Resolver may be used by several clusters at once.
type Resolver interface {
	// Resolve calls update with all servers of the service, as soon as it knows them and whenever they have
	// changed, one call after another, until ctx ends. An error never makes the list shorter: what cannot be
	// looked up now is as it was. Resolve returns when ctx ends, or earlier with the error that keeps it
	// from going on; then it is called again after a pause, and the servers are meanwhile those of the last
	// update.
	//
	// The slice and what it points to belong to the receiver of the call from then on, to read only.
	Resolve(ctx context.Context, update func(servers []Server)) error
}
