/*
Package tp is an embeddable framework for RPC, push and peer-to-peer messaging
over a socket. Server and client are the same thing, a [Peer], and either side of
a connection may call the other.

# Vocabulary

A Peer listens, dials, or both. Each connection is a [Session]. To pull is to send
a request and wait for the reply; to push is to send one way. A path such as
/group/home/test leads to a method of a controller that was registered with
[PullRouter.Reg] or [PushRouter.Reg], or to a function that was registered with
[HandlePull] or [HandlePush]. A plugin's hooks run around every step.

# A server

	type Home struct{ tp.PullCtx }

	func (h *Home) Test(args *[2]int) (int, tp.Xerror) {
		return args[0] + args[1], nil
	}

	peer := tp.NewPeer(&tp.PeerConfig{ListenAddrs: []string{"127.0.0.1:9090"}})
	peer.PullRouter.Reg(new(Home)) // serves /home/test
	err := peer.Listen()           // until Close or Shutdown

# A client

	peer := tp.NewPeer(&tp.PeerConfig{})
	sess, err := peer.Dial("127.0.0.1:9090")
	var sum int
	if cmd := sess.Pull("/home/test", [2]int{1, 2}, &sum); cmd.Xerror != nil {
		tp.Errorf("pull: %v", cmd.Xerror)
	}

The server's handler reaches its client through [PullCtx] in the same way:
h.Session().Pull and h.Session().Push.

# Contexts, metadata, errors and types

[Session.PullContext] and [Session.PushContext] end with a context. Its deadline and
its end travel: the handler finds them in its own Context, and a pull that it makes by
that inherits what is left. [WithMeta] sends pairs of strings beside the body. An error
is an [Xerror], a code and a text, which works with errors.Is and errors.As;
[WithDetails] adds a value for programs, and [NotRun] says whether a failed call may be
made again. [Call] and [Method] are pulls whose types the compiler checks.

# Restarts

[Peer.Shutdown] drains; with [PeerConfig]'s Redial a client's sessions outlive their
connections; [Reboot] replaces the process without closing its listeners.

# Concurrency

The methods of Peer, Session and the routers are safe for concurrent use. Each
call gets a controller, a context and arguments of its own, which stay valid as
long as anything holds them; SetBodyCodec and SetGzip have no effect once the
handler has returned. Handlers of one session run concurrently, in no set order,
but for those that have proved to take only microseconds: they run one after the
other on the goroutine that reads the session, until one of them blocks.

# Limits

What the other sides and the network can make a peer do is bounded: sizes, times,
handlers at once, sessions, memory. Each limit is a field of [PeerConfig] with a
default that is safe for a server which anybody may connect to. A pull that was not
run for a limit's sake fails with [StatusOverloaded].
*/
package tp
