package nats

import (
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	tp "github.com/henrylee2cn/teleport"
)

// Option is an option of [New].
type Option interface{ apply(*options) }

type options struct {
	service  string
	name     string
	url      string
	natsOpts []nats.Option
	conn     *nats.Conn
	replicas int   // 0: not said
	maxBytes int64 // of a stream, 0: not said
	calls    int
	auto     *Auto
	beat     time.Duration
	ask      time.Duration // bounds what is asked of a stream
}

type option func(*options)

func (o option) apply(to *options) { o(to) }

// URL has the hub connect to the broker at the URL, or to one of several, separated by commas: of the
// members of a cluster, for example. It may be away when the hub is made. The hub connects again for ever,
// every half second or less. More options of the connection, as credentials, may follow.
func URL(url string, more ...nats.Option) Option {
	if url == "" {
		panic("nats: URL: the URL is empty; without a broker leave the option out.")
	}
	return option(func(o *options) { o.url, o.natsOpts = url, more })
}

// Conn has the hub use a connection of the program's, which the hub does not close. The connection should
// have been made with nats.MaxReconnects(-1), and its ReconnectWait is how long the hub is away after the
// broker is back. A hub that shares it with others is told of its losses all the same.
func Conn(nc *nats.Conn) Option {
	if nc == nil {
		panic("nats: Conn: the connection is nil.")
	}
	return option(func(o *options) { o.conn = nc })
}

// Service is the name that the hubs which belong together have, "teleport" without this option. Hubs of
// different services on one broker know nothing of each other.
func Service(name string) Option {
	if name == "" {
		panic("nats: Service: the name is empty.")
	}
	return option(func(o *options) { o.service = name })
}

// Name is what this server is called in [Member] and [Hub.Servers], its address for example. Without it the
// name is random.
func Name(server string) Option {
	return option(func(o *options) { o.name = server })
}

// Replicas is on how many members of a cluster of NATS the histories are kept: 1, 3 or 5. The histories of
// groups are lost for as long as the only server that has them is away. Without this option a stream is made
// with one, and one that is there stays as it is.
func Replicas(n int) Option {
	if n < 1 || n > 5 {
		panic(fmt.Sprintf("nats: Replicas(%d): a number from 1 to 5 was expected.", n))
	}
	return option(func(o *options) { o.replicas = n })
}

// MaxHistoryBytes bounds what each stream of histories takes on the broker: groups with the same size and
// age share one. When a stream is full its oldest pushes are removed, of whichever group they are, and
// members who have missed these are told to start afresh. So are those of a group that was quiet for so long
// that the stream has lost the group's last push, whenever the server was cut off from the broker or a member
// comes there from another server: nobody can tell then whether they have missed something.
//
// Without this option a stream grows as far as the broker's limits allow, beyond which pushes to its groups
// fail; one that is there stays as it is, so that it may be bounded with the tools of NATS too, by bytes, by
// messages, by messages of a subject, or by a shorter age. Pushes that somebody purges there are missed
// without a word. Of several hubs with different options the last one to look at the stream wins. If the
// broker refuses the bound of a stream that is there, the stream stays as it is, and the hub logs that.
func MaxHistoryBytes(n int64) Option {
	if n < 1 {
		panic(fmt.Sprintf("nats: MaxHistoryBytes(%d): a number of bytes from 1 was expected.", n))
	}
	return option(func(o *options) { o.maxBytes = n })
}

// MaxCalls bounds the pulls and pushes of other servers to sessions of this one that are under way, 16,384
// without this option. Those beyond it fail with tp.StatusOverloaded and have not run.
func MaxCalls(n int) Option {
	if n < 1 {
		panic(fmt.Sprintf("nats: MaxCalls(%d): a number from 1 was expected.", n))
	}
	return option(func(o *options) { o.calls = n })
}

// Auto is a plugin of a peer, and an [Option] of that peer's hub: it has the hub know each session that the
// peer accepts, see [Hub.Add]. It stands behind plugins that say who a session is, as plugin/auth.
//
//	auto := nats.Automatic(func(sess *tp.Session) string { return auth.Of(sess).Name })
//	peer := tp.NewPeer(cfg, authentication, auto)
//	hub, err := nats.New(peer, auto, nats.URL(url))
type Auto struct {
	identify func(*tp.Session) string
	hub      hubRef
}

// Automatic makes the plugin. Identify returns a session's identity, and an empty text for none; it is
// called by many goroutines. A nil function is for sessions that have only their ids. Give the Auto to both,
// the peer and the hub: without the other each of them knows of no session.
func Automatic(identify func(*tp.Session) string) *Auto { return &Auto{identify: identify} }

// Name is the plugin's name.
func (a *Auto) Name() string { return "nats" }

func (a *Auto) apply(o *options) { o.auto = a }

// PostAccept has the hub know the session.
func (a *Auto) PostAccept(fore tp.ForeSession) error {
	if h := a.hub.Load(); h != nil && h.peer == fore.Peer() {
		err := h.Add(fore.Session(), a.identities(fore.Session())...)
		if errors.Is(err, ErrClosed) { // the sessions go on without the hub, and new ones do too
			return nil
		}
		return err
	}
	return nil
}

func (a *Auto) identities(sess *tp.Session) []string {
	if a.identify == nil {
		return nil
	}
	if name := a.identify(sess); name != "" {
		return []string{name}
	}
	return nil
}
