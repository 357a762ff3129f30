/*
Package tp is an embeddable framework for RPC, push and peer-to-peer messaging
over a socket. Server and client are the same thing, a [Peer], and either side of
a connection may call the other.

A Peer listens, dials, or both. Each connection is a [Session]. To pull is to send
a request and wait for the reply; to push is to send one way. Both name a path such
as /math/add, which leads to a function or to the method of a controller.

# A server

	var Add = tp.NewMethod[[2]int, int]("/math/add") // in a package that both sides import

	peer := tp.NewPeer(&tp.PeerConfig{ListenAddrs: []string{"127.0.0.1:9090"}})
	Add.Handle(peer.PullRouter, func(ctx tp.PullCtx, args *[2]int) (int, tp.Xerror) {
		return args[0] + args[1], nil
	})
	err := peer.Listen() // until Close or Shutdown

# A client

	peer := tp.NewPeer(&tp.PeerConfig{})
	sess, err := peer.Dial("127.0.0.1:9090")
	sum, err := Add.Call(ctx, sess, [2]int{1, 2})

The server's handler reaches its client in the same way, by ctx.Session().

# What most programs use

  - [NewPeer] with a [PeerConfig]; [Peer.Listen] and [Peer.Dial]; [Peer.Close] and [Peer.Shutdown]
  - handlers: [Method] and [Note], one definition for both sides; [HandlePull] and [HandlePush];
    controllers with [PullRouter.Reg] and [PushRouter.Reg]
  - what a handler knows: [PullCtx] and [PushCtx]
  - calls: [Call], [Session.Pull], [Session.PullContext], [Session.GoPull], [Session.Push],
    [Session.TryPush]
  - one push to many: [Peer.Group] and [Group.Push], [Peer.Broadcast], [Latest]; catching up: [History]
    and plugin/follow
  - many servers: [NewCluster] with a [Resolver]; [Caller] is a session or a cluster
  - order: [Ordered], [OrderedBy], [Unordered]; streams: [OpenStream] and [HandleStream]
  - errors: [Xerror] and [NewXerror], [Retryable], [NotRun], [Local], [WithDetails] and [Details]
  - settings of one packet: [WithMeta], [WithReplyMeta], [WithBodyCodec],
    [WithGzip], [WithHeaderCodec]
  - the process: [GraceSignal], [SetShutdown], [Reboot]

# Contexts, metadata and errors

[Session.PullContext] and [Session.PushContext] end with a context. The other
side's handler finds the deadline, and a cancellation, in a context of its own, and a pull
that it makes with that context has what is left of the time. [WithMeta] sends pairs of
strings beside the body. An error is an [Xerror], a code and a text, and works with errors.Is and errors.As;
[WithDetails] adds a value for programs. [Retryable] says whether another attempt is worth
while, and [Local] on which side the error was made.

# Connections that do not last

[Peer.Shutdown] drains; with [Redial] a client's sessions outlive their
connections; [Reboot] replaces the process without closing its listeners.

# Concurrency

The methods of Peer, Session and the routers are safe for concurrent use. Each
call gets a controller, a context and arguments of its own, which stay valid as
long as anything holds them; SetBodyCodec and SetGzip have no effect once the
handler has returned. The pushes of a session are handled one after another, in the order in
which they were sent, whatever their routes are: see [Unordered] and [OrderedBy] for other
ways. Everything else runs concurrently, the pulls of a session, and pushes beside them or of
other sessions: what these share needs a lock; [Ordered] has pulls wait for each other.
Handlers that have proved to take only microseconds run on the goroutine that reads the
session, until one of them blocks.

# Plugins

A [Plugin] has some of twenty-two hooks, each an interface with one method:

  - when a route is registered: [PostRegPlugin]
  - the life of the peer: [PostListenPlugin], [PreShutdownPlugin]
  - the life of a connection: [PostDialPlugin], [PostAcceptPlugin], [PostConnectPlugin],
    [PostReconnectPlugin], [PostDisconnectPlugin]
  - what this side sends first: [PreWritePullPlugin], [PostWritePullPlugin],
    [PreWritePushPlugin], [PostWritePushPlugin]
  - what comes: [PreReadHeaderPlugin], [PostReadHeaderPlugin], [PreReadBodyPlugin],
    [PostReadBodyPlugin]
  - what is over: [PostCallPlugin], [PostPullPlugin]
  - values of streams: [PreWriteValuePlugin], [PostReadValuePlugin]
  - replies to it: [PreWriteReplyPlugin], [PostWriteReplyPlugin]

# Limits

What the other sides and the network can make a peer do is bounded: sizes, times,
handlers at once, sessions, memory. Each limit is a field of [PeerConfig] with a
default that is safe for a server which anybody may connect to. A pull that was not
run for a limit's sake fails with [StatusOverloaded].

# The log

What the library logs goes to standard error at [LevelInfo] and above. [SetLogger] takes any
log/slog handler instead, and [SetLogLevel] sets the least level. Programs may use the log for
lines of their own: [Tracef], [Debugf], [Infof], [Noticef], [Warnf], [Errorf] and [Criticalf]
log at their level, [Printf] always, and [Panicf] and [Fatalf] also end the goroutine or the
process.
*/
package tp
