package tp

import (
	"errors"
	"fmt"
)

// A Plugin is a named set of hooks. Beside Name it implements any of the hook
// interfaces below; which ones is looked at once, when the plugin is added. A
// plugin is added to a peer, a group, a registration or an unknown handler, and
// within that chain its name is unique.
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

// PostReconnectPlugin is called when a session has a new connection, see [Redial],
// once it is in use: the hook may pull and push, while others do so too. It has 10 s.
// After an error the connection is closed, which counts as a failed attempt.
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

// hook is one plugin's method.
type hook[C any] struct {
	plugin Plugin
	name   string // the plugin's
	point  string
	call   func(C) error
}

type hooks[C any] []hook[C]

// run calls the hooks in order up to the first error. They may hold the context
// and ask it for packets later.
func (hs hooks[C]) run(c C) *hookError {
	if len(hs) == 0 { // as nearly always; this is inlined
		return nil
	}
	return hs.runAll(c)
}

// start runs the hooks on a goroutine of their own, which they may end. The channel is
// told how they end.
func (hs hooks[C]) start(c C) <-chan error {
	done := make(chan error, 1)
	go func() {
		err := errHookGone
		defer func() { done <- err }()
		err = hs.run(c).orNil()
	}()
	return done
}

var errHookGone = errors.New("a hook has ended its goroutine")

func (hs hooks[C]) runAll(c C) *hookError {
	if held, ok := any(c).(*packetCtx); ok {
		held.keep()
	}
	for i := range hs {
		if err := hs[i].safely(c); err != nil {
			return err
		}
	}
	return nil
}

func (h *hook[C]) safely(c C) (err *hookError) {
	returned := false
	defer func() {
		if returned {
			return
		}
		// Not by what recover returns, which is nil after panic(nil) in a program with
		// GODEBUG=panicnil=1, and of a hook that ends its goroutine.
		peerOf(c).logPanic(LevelError, "plugin", h.name+", "+h.point, recover())
		err = &hookError{text: fmt.Sprintf("plugin %s: panic in %s", h.name, h.point), code: StatusFailedPlugin, told: StatusText(StatusFailedPlugin)}
	}()
	e := h.call(c)
	if e == nil {
		returned = true
		return nil
	}
	// The error's own methods may panic too, so they are called here and never
	// again.
	err = &hookError{code: StatusFailedPlugin, err: e}
	if x, ok := e.(Xerror); ok {
		err.code, err.told = x.Code(), x.Text()
	} else {
		err.told = e.Error()
	}
	err.text = fmt.Sprintf("plugin %s: %s: %s", h.name, h.point, err.told)
	returned = true
	return err
}

// peerOf returns the peer that a hook is called for; nil at registration.
func peerOf(c any) *Peer {
	if c, ok := c.(interface{ Peer() *Peer }); ok {
		return c.Peer()
	}
	return nil
}

// hookError is the failure of a hook.
type hookError struct {
	text string // for this side
	code int32
	told string // for the other side
	err  error  // nil after a panic
}

func (e *hookError) Error() string { return e.text }
func (e *hookError) Unwrap() error { return e.err }

// orNil is e as an error, which is nil if e is.
func (e *hookError) orNil() error {
	if e == nil {
		return nil
	}
	return e
}

// xerror is what the other side, or the caller, is told.
func (e *hookError) xerror() Xerror {
	return &xerror{code: e.code, text: e.told, cause: e}
}

// pluginChain is the plugins in force at one place, sorted by hook. It is not
// changed after it was made.
type pluginChain struct {
	all []Plugin

	postReg        hooks[*Handler]
	postDial       hooks[ForeSession]
	postAccept     hooks[ForeSession]
	postReconnect  hooks[*Session]
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
}

// with returns the chain with further plugins at its end. It panics on a nil
// plugin and on a name that the chain has already.
func (c *pluginChain) with(plugins []Plugin) *pluginChain {
	if len(plugins) == 0 {
		return c
	}
	next := new(pluginChain)
	for _, p := range append(c.all[:len(c.all):len(c.all)], plugins...) {
		if p == nil {
			panic("tp: a plugin is nil.")
		}
		for _, other := range next.all {
			if other.Name() == p.Name() {
				panic(fmt.Sprintf("tp: plugin %q is there twice in one chain of plugins (%T and %T).", p.Name(), other, p))
			}
		}
		next.add(p)
	}
	return next
}

func (c *pluginChain) add(p Plugin) {
	c.all = append(c.all, p)
	name := p.Name()
	if h, ok := p.(PostRegPlugin); ok {
		c.postReg = append(c.postReg, hook[*Handler]{p, name, "PostReg", h.PostReg})
	}
	if h, ok := p.(PostDialPlugin); ok {
		c.postDial = append(c.postDial, hook[ForeSession]{p, name, "PostDial", h.PostDial})
	}
	if h, ok := p.(PostAcceptPlugin); ok {
		c.postAccept = append(c.postAccept, hook[ForeSession]{p, name, "PostAccept", h.PostAccept})
	}
	if h, ok := p.(PostReconnectPlugin); ok {
		c.postReconnect = append(c.postReconnect, hook[*Session]{p, name, "PostReconnect", h.PostReconnect})
	}
	if h, ok := p.(PostDisconnectPlugin); ok {
		c.postDisconnect = append(c.postDisconnect, hook[lostConn]{p, name, "PostDisconnect", func(l lostConn) error {
			return h.PostDisconnect(l.sess, l.cause)
		}})
	}
	if h, ok := p.(PreWritePullPlugin); ok {
		c.preWritePull = append(c.preWritePull, hook[WriteCtx]{p, name, "PreWritePull", h.PreWritePull})
	}
	if h, ok := p.(PostWritePullPlugin); ok {
		c.postWritePull = append(c.postWritePull, hook[WriteCtx]{p, name, "PostWritePull", h.PostWritePull})
	}
	if h, ok := p.(PreWritePushPlugin); ok {
		c.preWritePush = append(c.preWritePush, hook[WriteCtx]{p, name, "PreWritePush", h.PreWritePush})
	}
	if h, ok := p.(PostWritePushPlugin); ok {
		c.postWritePush = append(c.postWritePush, hook[WriteCtx]{p, name, "PostWritePush", h.PostWritePush})
	}
	if h, ok := p.(PreWriteReplyPlugin); ok {
		c.preWriteReply = append(c.preWriteReply, hook[WriteCtx]{p, name, "PreWriteReply", h.PreWriteReply})
	}
	if h, ok := p.(PostWriteReplyPlugin); ok {
		c.postWriteReply = append(c.postWriteReply, hook[WriteCtx]{p, name, "PostWriteReply", h.PostWriteReply})
	}
	if h, ok := p.(PreReadHeaderPlugin); ok {
		c.preReadHeader = append(c.preReadHeader, hook[ReadCtx]{p, name, "PreReadHeader", h.PreReadHeader})
	}
	if h, ok := p.(PostReadHeaderPlugin); ok {
		c.postReadHeader = append(c.postReadHeader, hook[ReadCtx]{p, name, "PostReadHeader", h.PostReadHeader})
	}
	if h, ok := p.(PreReadBodyPlugin); ok {
		c.preReadBody = append(c.preReadBody, hook[ReadCtx]{p, name, "PreReadBody", h.PreReadBody})
	}
	if h, ok := p.(PostReadBodyPlugin); ok {
		c.postReadBody = append(c.postReadBody, hook[ReadCtx]{p, name, "PostReadBody", h.PostReadBody})
	}
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
