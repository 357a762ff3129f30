package tp

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/henrylee2cn/teleport/internal/workers"
)

// A Plugin is a named set of hooks. Beside Name it implements at least one of the hook
// interfaces below; which ones is looked at once, when the plugin is added. A
// plugin is added to a peer, a group, a registration or an unknown handler, and
// within that chain its name is unique. Hooks that are about connections, and about what
// this side sends first, are called for a peer's plugins only. A plugin that is never
// called is a mistake that nobody would notice, so it panics where it is added: one
// without a hook, with a method that has the name of a hook and another type, with hooks
// that only its pointer has, or with a peer's hook in a group or a registration.
//
// Hooks run in the order: the peer's plugins, the groups' from outside in, the
// registration's, each in the order given. The first error ends the chain, and a
// panic counts as an error whose text stays on this side. Hooks are called from
// many goroutines at once.
//
// A hook's error reaches the other side, or the caller, with the status code of
// that error where it is an [Xerror], and otherwise as StatusFailedPlugin with
// the error's text.
type Plugin interface {
	Name() string
}

// PostRegPlugin is called when a route is registered; an error is a panic there.
type PostRegPlugin interface {
	Plugin
	PostReg(*Handler) error
}

// PostListenPlugin is called when a listener of the peer's is bound, before connections are
// accepted from it: for each address of [Peer.Listen], when all of them are bound, and for each
// [Peer.Serve]. A connection that comes meanwhile waits in the kernel. It is the place to tell
// others where the server is. The hook has HookTimeout. An error ends Listen or Serve, which
// return it.
//
// It is not called for [Peer.ServeConn]. In a process that [Reboot] has started it is called while
// the predecessor still serves the same address, and before that begins to shut down.
type PostListenPlugin interface {
	Plugin
	PostListen(ListenCtx) error
}

// PreShutdownPlugin is called once, when the peer begins to end, whether it has listened or not.
// [Peer.Shutdown] calls it before anything else: connections and calls are still accepted, so that
// who is told now that this server goes away has no call fail. Shutdown waits for the hook until
// its own context ends, or for HookTimeout, or until the peer is closed. No listener is added, and
// no PostListen begins, after the hook has begun, but one that has begun before may not have
// returned.
//
// [Peer.Close] without Shutdown calls the hook beside closing everything, and waits for it for a
// second at most. The hook must not wait for Shutdown, which waits for it. An error is logged.
type PreShutdownPlugin interface {
	Plugin
	PreShutdown(ShutdownCtx) error
}

// PostDialPlugin is called on a connection that this peer has dialled, before
// anything else is read from it. It has 10 s. An error closes the connection
// and is returned by Dial.
type PostDialPlugin interface {
	Plugin
	PostDial(ForeSession) error
}

// PostAcceptPlugin is called on a connection that was accepted or given to
// ServeConn, before anything else is read from it. It has 10 s. An error closes
// the connection.
type PostAcceptPlugin interface {
	Plugin
	PostAccept(ForeSession) error
}

// PostConnectPlugin is called when a session that this peer dials has a connection: the
// first, and with [Redial] each one that comes after it. The connection is in use then, so
// that the hook may pull and push, while others do so too: it is the place to subscribe to
// something. It has 10 s, for which Dial waits. After an error the connection is closed; the
// first time Dial returns the error, and later it counts as a failed attempt to redial.
type PostConnectPlugin interface {
	Plugin
	PostConnect(sess *Session) error
}

// PostReconnectPlugin is PostConnectPlugin without the first time, see [Redial]. Of one
// plugin PostConnect is called before it.
type PostReconnectPlugin interface {
	Plugin
	PostReconnect(sess *Session) error
}

// PostDisconnectPlugin is called when a session has lost its connection, however
// that has ended: with [Redial] before another is dialled, and otherwise as the last
// thing of the session. It is not called if the handshake failed, nor when the other
// side shuts down and there is a new connection before the old one ends. It must not
// wait for the session, which has no connection until it returns. Shutdown waits for
// it. An error is logged.
type PostDisconnectPlugin interface {
	Plugin
	PostDisconnect(sess *Session, cause error) error
}

// PreWritePullPlugin is called before a pull is encoded; on an error it is not
// sent.
type PreWritePullPlugin interface {
	Plugin
	PreWritePull(WriteCtx) error
}

// PostWritePullPlugin is called after a pull was sent; an error is logged.
type PostWritePullPlugin interface {
	Plugin
	PostWritePull(WriteCtx) error
}

// PreWritePushPlugin is called before a push is encoded; on an error it is not
// sent.
type PreWritePushPlugin interface {
	Plugin
	PreWritePush(WriteCtx) error
}

// PostWritePushPlugin is called after a push was sent; an error is logged.
type PostWritePushPlugin interface {
	Plugin
	PostWritePush(WriteCtx) error
}

// PreWriteReplyPlugin is called before a reply is encoded; on an error the reply
// is the error, without a body.
type PreWriteReplyPlugin interface {
	Plugin
	PreWriteReply(WriteCtx) error
}

// PostWriteReplyPlugin is called after a reply was sent; an error is logged.
type PostWriteReplyPlugin interface {
	Plugin
	PostWriteReply(WriteCtx) error
}

// PreReadHeaderPlugin is called before each packet is awaited. It runs on the
// session's reading goroutine and only from the peer's plugins: while it runs
// nothing is read, so it must not wait for anything, least of all for a pull on
// this session. An error closes the session.
type PreReadHeaderPlugin interface {
	Plugin
	PreReadHeader(ReadCtx) error
}

// PostReadHeaderPlugin is called when a header has been read, and may rewrite
// Input().Header.Uri. It runs on the session's reading goroutine, before
// routing; therefore every such hook of a router, of all its groups and
// registrations, is called for every packet of that router. While it runs nothing
// is read, so it must not wait for anything, least of all for a pull on this
// session. Id and type of the packet cannot be changed. After an error the
// body is skipped; a pull is answered with the error, a push is dropped, and a
// reply fails its pull.
type PostReadHeaderPlugin interface {
	Plugin
	PostReadHeader(ReadCtx) error
}

// PreReadBodyPlugin is called before the body is decoded. An error does as that
// of PostReadHeader.
type PreReadBodyPlugin interface {
	Plugin
	PreReadBody(ReadCtx) error
}

// PostReadBodyPlugin is called after the body was decoded, before the handler.
// An error does as that of PostReadHeader.
type PostReadBodyPlugin interface {
	Plugin
	PostReadBody(ReadCtx) error
}

// PreWriteValuePlugin is called before a value of a stream is encoded, on either side; on an error it is not
// sent, Send returns the error, and the stream goes on. The context is the stream's: Output is the value, and
// its Public belongs to this value alone.
type PreWriteValuePlugin interface {
	Plugin
	PreWriteValue(WriteCtx) error
}

// PostReadValuePlugin is called after a value of a stream was decoded, on either side, before Recv returns
// it. Input is the value. After an error Recv returns the error instead, and the stream goes on.
type PostReadValuePlugin interface {
	Plugin
	PostReadValue(ReadCtx) error
}

// PostCallPlugin is called when a call that came is over, however that was: a pull or a stream when its
// reply was handed to the connection, or could not be, and a push when its handler has returned. A call
// that was refused is over too, and so is a push that was dropped, and a call whose connection has ended
// before all of its body came. The hook is called once for each call, and for each plugin, whatever errors
// there were before: what PostReadHeader or PreReadBody has taken can be given back here. A call may have
// been refused before PostReadHeader, for its URI or its type, or by another plugin's hook. PostCall must
// not wait. An error is logged.
type PostCallPlugin interface {
	Plugin
	PostCall(CallCtx) error
}

// PostPullPlugin is called when a pull or a stream that this side has made is over, however that was: the
// reply has come and is decoded, or the pull was not sent, has failed or was given up. The hook is called
// once for each plugin, whatever errors there were before, with [Redial] once for each attempt; not every
// pull that fails has come as far as PreWritePull. It must not wait. An error is logged.
type PostPullPlugin interface {
	Plugin
	PostPull(PullCallCtx) error
}

// ordering is a plugin without hooks that says which calls wait for each other, see [Ordered].
type ordering interface {
	Plugin
	// line returns the line in which a call waits for its turn; nil if there is none. If the line is
	// that of a key, that is byKey, and is given back when the call is over.
	line(ctx PushCtx, pull bool) (lane *workers.Lane, byKey *workers.KeyLane)
	// isForPushes reports whether pulls have no use for it.
	isForPushes() bool
}

// checkOrder panics if one of the plugins, of a group or a registration of pulls, is for pushes only.
func checkOrder(caller string, plugins []Plugin) {
	for _, p := range plugins {
		if o, ok := p.(ordering); ok && o.isForPushes() {
			panic(fmt.Sprintf("tp: %s: OrderedBy is for pushes, and these are pulls: expected Ordered.",
				caller))
		}
	}
}

// hook is one plugin's method.
type hook[C any] struct {
	plugin Plugin
	name   string // the plugin's
	point  string
	call   func(C) error
}

type hooks[C any] []hook[C]

// run calls the hooks in order up to the first error. Hooks may hold the context c, and use it after the
// call.
func (hs hooks[C]) run(c C) *hookError {
	if len(hs) == 0 { // apart from runAll, so that this test is inlined
		return nil
	}
	return hs.runAll(c)
}

// start runs the hooks on a new goroutine, and sends their error on the channel when they have returned. A
// hook may end the goroutine.
func (hs hooks[C]) start(c C) <-chan error {
	return onItsOwn(func() error { return hs.run(c).orNil() })
}

// onItsOwn runs f on a new goroutine and sends its error on the channel. If f ends the goroutine the error is
// errHookGone.
func onItsOwn(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() {
		err := errHookGone
		defer func() { done <- err }()
		err = f()
	}()
	return done
}

var errHookGone = errors.New("a hook has ended its goroutine")

// keepPackets keeps the packets of a call for its hooks, which may hold them.
func keepPackets(c any) {
	if held, ok := c.(interface{ keepPackets() }); ok {
		held.keepPackets()
	}
}

func (hs hooks[C]) runAll(c C) *hookError {
	keepPackets(c)
	for i := range hs {
		if err := hs[i].safely(c); err != nil {
			return err
		}
	}
	return nil
}

// runEach calls all the hooks, whatever their errors are, and failed with each error.
func (hs hooks[C]) runEach(c C, failed func(*hookError)) {
	if len(hs) == 0 {
		return
	}
	keepPackets(c)
	for i := range hs {
		if err := hs[i].safely(c); err != nil {
			failed(err)
		}
	}
}

func (h *hook[C]) safely(c C) (err *hookError) {
	returned := false
	defer func() {
		if returned {
			return
		}
		// The result of recover cannot tell this, because it is nil after panic(nil) in a program
		// with GODEBUG=panicnil=1, and when a hook has ended its goroutine.
		linesOf(c).panicked(LevelError, "plugin", h.name+", "+h.point, recover())
		err = &hookError{text: fmt.Sprintf("plugin %s: panic in %s", h.name, h.point),
			code: StatusFailedPlugin, told: StatusText(StatusFailedPlugin)}
	}()
	e := h.call(c)
	if e == nil {
		returned = true
		return nil
	}
	// The error's own methods may panic too, so they are called here and never
	// again.
	err = &hookError{code: StatusFailedPlugin, err: e}
	var x Xerror
	if errors.As(e, &x) {
		err.code, err.told = x.Code(), x.Text()
		err.text = fmt.Sprintf("plugin %s: %s: %d %s", h.name, h.point, err.code, err.told)
	} else {
		err.told = e.Error()
		err.text = fmt.Sprintf("plugin %s: %s: %s", h.name, h.point, err.told)
	}
	returned = true
	return err
}

// linesOf returns the log of the peer that a hook's argument belongs to; nil for PostReg.
func linesOf(c any) *lines {
	if c, ok := c.(interface{ lines() *lines }); ok {
		return c.lines()
	}
	return nil
}

// pluginChain is the plugins that apply at one place, a peer, a group or a route, sorted by hook. The order
// of a list is the order in which its hooks run. A chain is not changed after it was made.
type pluginChain struct {
	all []Plugin

	postReg        hooks[*Handler]
	postListen     hooks[ListenCtx]
	preShutdown    hooks[ShutdownCtx]
	postDial       hooks[ForeSession]
	postAccept     hooks[ForeSession]
	postConnect    hooks[*Session] // of the first connection
	postReconnect  hooks[*Session] // of each one after it: PostConnect, PostReconnect
	postDisconnect hooks[lostConn]
	preWritePull   hooks[WriteCtx]
	postWritePull  hooks[WriteCtx]
	preWritePush   hooks[WriteCtx]
	postWritePush  hooks[WriteCtx]
	preWriteReply  hooks[WriteCtx]
	postWriteReply hooks[WriteCtx]
	preReadHeader  hooks[ReadCtx]
	postReadHeader hooks[ReadCtx]
	preReadBody    hooks[ReadCtx]
	postReadBody   hooks[ReadCtx]
	preWriteValue  hooks[WriteCtx]
	postReadValue  hooks[ReadCtx]
	postCall       hooks[CallCtx]
	postPull       hooks[PullCallCtx]

	order ordering // of calls, by the last plugin that says so; nil for what is so without any
}

// seesPulls reports whether a hook looks at the packets of pulls that this side makes.
func (c *pluginChain) seesPulls() bool {
	return len(c.preWritePull)+len(c.postWritePull)+len(c.preReadHeader)+len(c.postReadHeader)+
		len(c.preReadBody)+len(c.postReadBody)+len(c.postPull) > 0
}

// place is where plugins are added: the function that the program has called, and whether the plugins are a
// peer's.
type place struct {
	caller string
	peer   bool
}

// with returns a chain of the plugins of c and then these. It panics if one of these would never be called,
// or has the name of another.
func (c *pluginChain) with(at place, plugins []Plugin) *pluginChain {
	if len(plugins) == 0 {
		return c
	}
	next := new(pluginChain)
	for i, p := range append(c.all[:len(c.all):len(c.all)], plugins...) {
		if p == nil {
			panic(fmt.Sprintf("tp: %s: a plugin is nil, number %d of %d.", at.caller, i-len(c.all)+1,
				len(plugins)))
		}
		for _, other := range next.all {
			if other.Name() == p.Name() {
				panic(fmt.Sprintf("tp: %s: plugin %q is there twice in one chain of plugins (%T and %T): "+
					"expected each plugin once, or another name for one of them.", at.caller, p.Name(), other,
					p))
			}
		}
		if i >= len(c.all) {
			checkPlugin(at, p)
		}
		next.add(p)
	}
	return next
}

// hookPoint is one kind of hook.
type hookPoint struct {
	name string
	typ  reflect.Type // the interface of plugins that have this hook
	// peer says that this hook is called only for the plugins of a peer.
	peer bool
	add  func(c *pluginChain, p Plugin, name string)
}

// hookAt makes the hookPoint of the plugin interface I, whose method takes a C.
func hookAt[I Plugin, C any](
	name string, peer bool, call func(I, C) error, in func(*pluginChain) *hooks[C],
) hookPoint {
	return hookPoint{name, reflect.TypeFor[I](), peer, func(c *pluginChain, p Plugin, owner string) {
		if h, ok := p.(I); ok {
			list := in(c)
			*list = append(*list, hook[C]{p, owner, name, func(x C) error { return call(h, x) }})
		}
	}}
}

const ofPeer, ofRoute = true, false

// hookPoints has all kinds of hooks, in the order in which a call meets them.
var hookPoints = []hookPoint{
	hookAt("PostReg", ofRoute, PostRegPlugin.PostReg,
		func(c *pluginChain) *hooks[*Handler] { return &c.postReg }),
	hookAt("PostListen", ofPeer, PostListenPlugin.PostListen,
		func(c *pluginChain) *hooks[ListenCtx] { return &c.postListen }),
	hookAt("PreShutdown", ofPeer, PreShutdownPlugin.PreShutdown,
		func(c *pluginChain) *hooks[ShutdownCtx] { return &c.preShutdown }),
	hookAt("PostDial", ofPeer, PostDialPlugin.PostDial,
		func(c *pluginChain) *hooks[ForeSession] { return &c.postDial }),
	hookAt("PostAccept", ofPeer, PostAcceptPlugin.PostAccept,
		func(c *pluginChain) *hooks[ForeSession] { return &c.postAccept }),
	hookAt("PostConnect", ofPeer, PostConnectPlugin.PostConnect,
		func(c *pluginChain) *hooks[*Session] { return &c.postConnect }),
	hookAt("PostConnect", ofPeer, PostConnectPlugin.PostConnect,
		func(c *pluginChain) *hooks[*Session] { return &c.postReconnect }),
	hookAt("PostReconnect", ofPeer, PostReconnectPlugin.PostReconnect,
		func(c *pluginChain) *hooks[*Session] { return &c.postReconnect }),
	hookAt("PostDisconnect", ofPeer,
		func(p PostDisconnectPlugin, l lostConn) error { return p.PostDisconnect(l.sess, l.cause) },
		func(c *pluginChain) *hooks[lostConn] { return &c.postDisconnect }),
	hookAt("PreWritePull", ofPeer, PreWritePullPlugin.PreWritePull,
		func(c *pluginChain) *hooks[WriteCtx] { return &c.preWritePull }),
	hookAt("PostWritePull", ofPeer, PostWritePullPlugin.PostWritePull,
		func(c *pluginChain) *hooks[WriteCtx] { return &c.postWritePull }),
	hookAt("PreWritePush", ofPeer, PreWritePushPlugin.PreWritePush,
		func(c *pluginChain) *hooks[WriteCtx] { return &c.preWritePush }),
	hookAt("PostWritePush", ofPeer, PostWritePushPlugin.PostWritePush,
		func(c *pluginChain) *hooks[WriteCtx] { return &c.postWritePush }),
	hookAt("PreReadHeader", ofPeer, PreReadHeaderPlugin.PreReadHeader,
		func(c *pluginChain) *hooks[ReadCtx] { return &c.preReadHeader }),
	hookAt("PostReadHeader", ofRoute, PostReadHeaderPlugin.PostReadHeader,
		func(c *pluginChain) *hooks[ReadCtx] { return &c.postReadHeader }),
	hookAt("PreReadBody", ofRoute, PreReadBodyPlugin.PreReadBody,
		func(c *pluginChain) *hooks[ReadCtx] { return &c.preReadBody }),
	hookAt("PostReadBody", ofRoute, PostReadBodyPlugin.PostReadBody,
		func(c *pluginChain) *hooks[ReadCtx] { return &c.postReadBody }),
	hookAt("PreWriteReply", ofRoute, PreWriteReplyPlugin.PreWriteReply,
		func(c *pluginChain) *hooks[WriteCtx] { return &c.preWriteReply }),
	hookAt("PostWriteReply", ofRoute, PostWriteReplyPlugin.PostWriteReply,
		func(c *pluginChain) *hooks[WriteCtx] { return &c.postWriteReply }),
	hookAt("PreWriteValue", ofRoute, PreWriteValuePlugin.PreWriteValue,
		func(c *pluginChain) *hooks[WriteCtx] { return &c.preWriteValue }),
	hookAt("PostReadValue", ofRoute, PostReadValuePlugin.PostReadValue,
		func(c *pluginChain) *hooks[ReadCtx] { return &c.postReadValue }),
	hookAt("PostCall", ofRoute, PostCallPlugin.PostCall,
		func(c *pluginChain) *hooks[CallCtx] { return &c.postCall }),
	hookAt("PostPull", ofPeer, PostPullPlugin.PostPull,
		func(c *pluginChain) *hooks[PullCallCtx] { return &c.postPull }),
}

func (c *pluginChain) add(p Plugin) {
	c.all = append(c.all, p)
	if o, ok := p.(ordering); ok {
		c.order = o
	}
	name := p.Name()
	for _, h := range hookPoints {
		h.add(c, p, name)
	}
}

// signature returns the hook as a program writes it.
func (h *hookPoint) signature() string {
	m, _ := h.typ.MethodByName(h.name)
	return h.name + strings.TrimPrefix(m.Type.String(), "func")
}

// checkPlugin panics with a sentence that says what is wrong if a method of the plugin looks like a hook and
// would never be called.
func checkPlugin(at place, p Plugin) {
	if _, ok := p.(ordering); ok {
		return
	}
	t := reflect.TypeOf(p)
	bad := func(format string, args ...interface{}) {
		panic(fmt.Sprintf("tp: %s: plugin %q (%v) %s.", at.caller, p.Name(), t, fmt.Sprintf(format, args...)))
	}
	has := 0
	for i := range hookPoints {
		h := &hookPoints[i]
		if t.Implements(h.typ) {
			has++
			if h.peer && !at.peer {
				bad("has the hook %s, which is called for a peer's plugins only: give the plugin to "+
					"NewPeer; a plugin of a group, a registration or an unknown handler may have the "+
					"hooks %s", h.name, hookNames(ofRoute))
			}
			continue
		}
		for j := range t.NumMethod() {
			if m := t.Method(j); strings.EqualFold(m.Name, h.name) {
				bad("has a method %s, which is not the hook of that name: expected %s", methodSignature(m),
					h.signature())
			}
		}
		if t.Kind() != reflect.Pointer && reflect.PointerTo(t).Implements(h.typ) {
			bad("has the hook %s on its pointer: give &%v{...} instead of the value", h.name, t)
		}
	}
	if has == 0 {
		bad("has no hook, so that it would never be called; the hooks are %s and, for a peer, %s",
			hookNames(ofRoute), hookNames(ofPeer))
	}
}

// methodSignature returns the method as a program writes it.
func methodSignature(m reflect.Method) string {
	in := make([]string, m.Type.NumIn()-1) // without the receiver
	for i := range in {
		in[i] = m.Type.In(i + 1).String()
	}
	if m.Type.IsVariadic() {
		last := len(in) - 1
		in[last] = "..." + m.Type.In(last+1).Elem().String()
	}
	out := make([]string, m.Type.NumOut())
	for i := range out {
		out[i] = m.Type.Out(i).String()
	}
	s := m.Name + "(" + strings.Join(in, ", ") + ")"
	switch len(out) {
	case 0:
		return s
	case 1:
		return s + " " + out[0]
	}
	return s + " (" + strings.Join(out, ", ") + ")"
}

// hookNames lists the hooks of one kind.
func hookNames(peer bool) string {
	var names []string
	for _, h := range hookPoints {
		if h.peer == peer && !slices.Contains(names, h.name) {
			names = append(names, h.name)
		}
	}
	return strings.Join(names, ", ")
}

// merge adds the hooks of more that are not among hs yet. Two hooks are the
// same if they belong to the same plugin value.
func (hs hooks[C]) merge(more hooks[C]) hooks[C] {
next:
	for _, h := range more {
		for i := range hs {
			if samePlugin(hs[i].plugin, h.plugin) {
				continue next
			}
		}
		hs = append(hs[:len(hs):len(hs)], h)
	}
	return hs
}

// samePlugin compares plugin values; values that cannot be compared, such as
// structs with maps, are never the same.
func samePlugin(a, b Plugin) (same bool) {
	defer func() { _ = recover() }()
	return a == b
}

// lostConn is what PostDisconnect hooks are told.
type lostConn struct {
	sess  *Session
	cause error
}

func (l lostConn) lines() *lines { return l.sess.lines() }
