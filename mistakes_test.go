package tp

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
)

var update = flag.Bool("update", false, "write testdata/mistakes.golden")

// The controllers and plugins of people who have just begun.
type (
	goodPull   struct{ PullCtx }
	noContext  struct{}
	namedField struct{ Ctx PullCtx }
	pushCtrl   struct{ PushCtx }
	withLock   struct {
		PullCtx
		mu    sync.Mutex
		rooms map[string]int
	}
	behindPointer struct{ *goodPull }
	noMethod      struct{ PullCtx }
	valueArgs     struct{ PullCtx }
	twoArgs       struct{ PullCtx }
	variadic      struct{ PullCtx }
	noReply       struct{ PullCtx }
	returnsError  struct{ PullCtx }
	pushReturns   struct{ PushCtx }
	privateArgs   struct{ PullCtx }
	privateReply  struct{ PullCtx }
	private       struct{ A int }

	hookless      struct{}
	wrongHook     struct{}
	wrongCase     struct{}
	pointerHook   struct{ n int }
	peersHook     struct{}
	sendingHook   struct{}
	onlyRouteHook struct{}
)

func (*goodPull) Do(*int) (int, Xerror)   { return 0, nil }
func (*noContext) Do(*int) (int, Xerror)  { return 0, nil }
func (*namedField) Do(*int) (int, Xerror) { return 0, nil }
func (*pushCtrl) Do(*int)                 {}
func (w *withLock) Do(*int) (int, Xerror) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.rooms), nil
}
func (*valueArgs) Do(int) (int, Xerror)                 { return 0, nil }
func (*twoArgs) Do(*int, *int) (int, Xerror)            { return 0, nil }
func (*variadic) Do(...*int) (int, Xerror)              { return 0, nil }
func (*noReply) Do(*int)                                {}
func (*returnsError) Do(*int) (int, error)              { return 0, nil }
func (*pushReturns) Do(*int) error                      { return nil }
func (*privateArgs) Do(*private) (int, Xerror)          { return 0, nil }
func (*privateReply) Do(*int) (private, Xerror)         { return private{}, nil }
func (hookless) Name() string                           { return "auth" }
func (wrongHook) Name() string                          { return "auth" }
func (wrongHook) PostAccept(*Session) error             { return errors.New("nobody gets in") }
func (wrongCase) Name() string                          { return "auth" }
func (wrongCase) PostAcCept(ForeSession) error          { return errors.New("nobody gets in") }
func (pointerHook) Name() string                        { return "auth" }
func (p *pointerHook) PostAccept(ForeSession) error     { p.n++; return nil }
func (peersHook) Name() string                          { return "auth" }
func (peersHook) PostAccept(ForeSession) error          { return errors.New("nobody gets in") }
func (sendingHook) Name() string                        { return "sign" }
func (sendingHook) PreWritePull(WriteCtx) error         { return nil }
func (onlyRouteHook) Name() string                      { return "check" }
func (onlyRouteHook) PreReadBody(ReadCtx) (bool, error) { return true, nil }

// tell returns what a program is told of a mistake: the panic, or the error.
func tell(f func() error) (told string) {
	defer func() {
		if p := recover(); p != nil {
			told = fmt.Sprintf("panic: %v", p)
		}
	}()
	if err := f(); err != nil {
		return err.Error()
	}
	return "NOTHING"
}

// What a program is told of some hundred mistakes, all in one file to be read as sentences:
// each names the thing, and says what was expected or what to do.
func TestMistakesAreTold(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the system's texts are in it")
	}
	var b strings.Builder
	section := func(name string) { fmt.Fprintf(&b, "\n# %s\n\n", name) }
	told := func(name string, f func() error) { fmt.Fprintf(&b, "%s:\n  %s\n", name, tell(f)) }
	panics := func(name string, f func()) { told(name, func() error { f(); return nil }) }
	pulls := func() *PullRouter { return newTestPeer(t, nil).PullRouter }
	pushes := func() *PushRouter { return newTestPeer(t, nil).PushRouter }

	section("Controllers")
	panics("nil", func() { pulls().Reg(nil) })
	panics("a struct", func() { pulls().Reg(goodPull{}) })
	panics("a nil pointer", func() { pulls().Reg((*goodPull)(nil)) })
	panics("no struct", func() { pulls().Reg(new(int)) })
	panics("a type without a name", func() { pulls().Reg(&struct{ PullCtx }{}) })
	panics("no context", func() { pulls().Reg(new(noContext)) })
	panics("a context with a name", func() { pulls().Reg(new(namedField)) })
	panics("a push controller for pulls", func() { pulls().Reg(new(pushCtrl)) })
	panics("a pull controller for pushes", func() { pushes().Reg(new(goodPull)) })
	panics("a lock by value", func() { pulls().Reg(new(withLock)) })
	panics("a context behind a pointer", func() { pulls().Reg(new(behindPointer)) })
	panics("no method", func() { pulls().Reg(new(noMethod)) })
	panics("an argument that is no pointer", func() { pulls().Reg(new(valueArgs)) })
	panics("two arguments", func() { pulls().Reg(new(twoArgs)) })
	panics("any number of arguments", func() { pulls().Reg(new(variadic)) })
	panics("no reply", func() { pulls().Reg(new(noReply)) })
	panics("an error instead of an Xerror", func() { pulls().Reg(new(returnsError)) })
	panics("a push method that returns something", func() { pushes().Reg(new(pushReturns)) })
	panics("an argument of a type that is not exported", func() { pulls().Reg(new(privateArgs)) })
	panics("a reply of a type that is not exported", func() { pulls().Reg(new(privateReply)) })
	panics("the same twice", func() { r := pulls(); r.Reg(new(goodPull)); r.Reg(new(goodPull)) })

	section("Functions, groups and definitions")
	fn := func(PullCtx, *int) (int, Xerror) { return 0, nil }
	take := func(PushCtx, *int) {}
	panics("a nil function", func() { HandlePull[int, int](pulls(), "/a", nil) })
	panics("no path", func() { HandlePull(pulls(), "", fn) })
	panics("a path with a query", func() { HandlePull(pulls(), "/a?b=c", fn) })
	panics("a path with an escape", func() { HandlePush(pushes(), "/a%20b", take) })
	panics("a path with a line end", func() { HandlePull(pulls(), "/a\nb", fn) })
	panics("a path that is taken", func() {
		r := pushes()
		HandlePush(r, "/a", take)
		HandlePush(r, "a", take)
	})
	panics("a group with a query", func() { pulls().Group("a?") })
	panics("a nil handler for what is unknown", func() { pulls().SetUnknown(nil) })
	panics("and for pushes", func() { pushes().SetUnknown(nil) })
	panics("a method outside of its group", func() {
		NewMethod[int, int]("/math/add").Handle(pulls().Group("chat"), fn)
	})
	panics("a note without a slash", func() { NewNote[int]("said").Handle(pushes(), take) })
	panics("a method that returns an interface", func() { NewMethod[int, error]("/a") })
	panics("a wait that is none", func() {
		WithRetryAfter(NewXerror(StatusOverloaded, "busy"), -time.Second)
	})

	section("Plugins")
	good := hookPlugin("auth", "PreReadBody", func(interface{}) error { return nil })
	panics("nil", func() { NewPeer(nil, good, nil) })
	panics("two of one name", func() { NewPeer(nil, good, hookPlugin("auth", "PreReadBody", nil)) })
	panics("one of the peer's again in a group", func() { NewPeer(nil, good).PullRouter.Group("a", good) })
	panics("without a hook", func() { NewPeer(nil, hookless{}) })
	panics("without a hook, in a group", func() { pulls().Group("a", hookless{}) })
	panics("a hook with another argument", func() { NewPeer(nil, wrongHook{}) })
	panics("a hook with another result", func() { pulls().Reg(new(goodPull), onlyRouteHook{}) })
	panics("a hook with another spelling", func() { NewPeer(nil, wrongCase{}) })
	panics("a value whose pointer has the hook", func() { NewPeer(nil, pointerHook{}) })
	panics("a peer's hook in a group", func() { pulls().Group("admin", peersHook{}) })
	panics("a peer's hook in a registration", func() { pulls().Reg(new(goodPull), sendingHook{}) })
	panics("a peer's hook for a function", func() { HandlePull(pulls(), "/a", fn, peersHook{}) })
	panics("a peer's hook for what is unknown", func() {
		pushes().SetUnknown(func(UnknownPushCtx, *[]byte) {}, peersHook{})
	})
	panics("a hook that refuses a route", func() {
		HandlePull(pulls(), "/a", fn, hookPlugin("names", "PostReg",
			func(interface{}) error { return errors.New("a name has two letters at least") }))
	})

	section("Configuration")
	config := func(name string, c PeerConfig) { panics(name, func() { NewPeer(&c) }) }
	config("a negative time", PeerConfig{SlowCometDuration: -1})
	config("an unknown header codec", PeerConfig{DefaultHeaderCodec: "xml"})
	config("a codec that cannot carry headers", PeerConfig{DefaultHeaderCodec: "string"})
	config("an unknown body codec", PeerConfig{DefaultBodyCodec: "xml"})
	config("a level of gzip", PeerConfig{DefaultBodyGzipLevel: 10})
	config("a mode with a type", PeerConfig{UnixMode: os.ModeSocket | 0o600})
	config("a negative backoff", PeerConfig{Redial: &Redial{MinBackoff: -1}})
	config("backoffs the wrong way round", PeerConfig{Redial: &Redial{MinBackoff: 2, MaxBackoff: 1}})
	config("an address without a port", PeerConfig{ListenAddrs: []string{"127.0.0.1"}})
	config("an empty address", PeerConfig{ListenAddrs: []string{""}})
	config("a socket without a path", PeerConfig{ListenAddrs: []string{"unix:"}})
	file := func(name, text string) {
		told(name, func() error { return json.Unmarshal([]byte(text), new(PeerConfig)) })
	}
	file("a file with a name of Go's", `{"ListenAddrs": []}`)
	file("a file with an unknown name", `{"timeout": "3m"}`)
	file("a file with a number for a time", `{"default_read_timeout": 3}`)
	file("a file with a word for a size", `{"max_body_bytes": "huge"}`)
	file("a file with a text for a list", `{"listen_addrs": ":80"}`)
	file("a file with what only a program can set", `{"tls_config": {}}`)
	cert, key := new(authority).issue(t, nil)
	certFile, keyFile := files(t, cert, key)
	listen := func(name string, c PeerConfig) {
		c.ListenAddrs = []string{"127.0.0.1:0"}
		told(name, newTestPeer(t, &c).Listen)
	}
	listen("a key without a certificate", PeerConfig{TlsKeyFile: keyFile})
	listen("a certificate without a key", PeerConfig{TlsCertFile: certFile})
	listen("a certificate that is not there", PeerConfig{TlsCertFile: "/nowhere.pem", TlsKeyFile: keyFile})
	listen("a certificate that is a key", PeerConfig{TlsCertFile: keyFile, TlsKeyFile: keyFile})
	listen("a server without a certificate", PeerConfig{TLSConfig: &tls.Config{}})
	listen("a client that does not verify", PeerConfig{TLSConfig: &tls.Config{InsecureSkipVerify: true}})
	listen("an old version of TLS", PeerConfig{TLSConfig: &tls.Config{MinVersion: tls.VersionTLS10}})

	section("Addresses")
	dial := func(name, addr string) {
		told(name, func() error { _, err := newTestPeer(t, nil).Dial(addr); return err })
	}
	told("nothing to listen on", newTestPeer(t, nil).Listen)
	taken := serve(t, newTestPeer(t, nil))
	told("a port that is taken", newTestPeer(t, &PeerConfig{ListenAddrs: []string{taken}}).Listen)
	dial("empty", "")
	dial("an empty one among others", "127.0.0.1:1,,127.0.0.1:2")
	dial("without a port", "127.0.0.1")
	dial("a port that is none", "127.0.0.1:http-or-so")
	dial("nobody is there", "127.0.0.1:1")
	dial("nobody is at either", "127.0.0.1:1, 127.0.0.1:2")
	dial("a socket that is not there", "unix:/nowhere/socket")

	section("Handshakes")
	check := newTestPeer(t, nil, doorman(NewXerror(StatusUnauthorized, "wrong token")))
	HandlePull(check.PullRouter, "/echo", fn)
	addr := serve(t, check)
	told("a wrong token", func() error {
		_, err := newTestPeer(t, nil, shower("guess")).Dial(addr)
		return err
	})
	told("no token but a pull", func() error {
		sess, err := newTestPeer(t, nil).Dial(addr)
		require.NoError(t, err)
		return sess.Pull("/echo", 1, nil).Xerror
	})
	told("a hook that fails", func() error {
		_, err := newTestPeer(t, nil, hookPlugin("token", "PostDial",
			func(interface{}) error { return errors.New("no token in /etc/token") })).Dial(addr)
		return err
	})
	told("a hook that panics", func() error {
		_, err := newTestPeer(t, nil, hookPlugin("token", "PostDial",
			func(interface{}) error { panic("x") })).Dial(addr)
		return err
	})
	told("a hook after the connection", func() error {
		_, err := newTestPeer(t, nil, hookPlugin("subscribe", "PostConnect", func(s interface{}) error {
			return s.(*Session).Pull("/subscribe", 1, nil).Xerror
		})).Dial(taken)
		return err
	})
	told("an id that is taken", func() error {
		cli := newTestPeer(t, nil)
		_, err := cli.Dial(taken, "me")
		require.NoError(t, err)
		_, err = cli.Dial(taken, "me")
		return err
	})
	told("a peer that is closed", func() error {
		cli := newTestPeer(t, nil)
		require.NoError(t, cli.Close())
		_, err := cli.Dial(taken)
		return err
	})
	told("TLS to a side without it", func() error {
		_, err := newTestPeer(t, &PeerConfig{TlsCertFile: certFile, TlsKeyFile: keyFile}).Dial(taken)
		return err
	})
	secure := serve(t, newTestPeer(t, &PeerConfig{TlsCertFile: certFile, TlsKeyFile: keyFile}))
	told("a certificate of a stranger", func() error {
		_, err := newTestPeer(t, &PeerConfig{TLSConfig: &tls.Config{}}).Dial(secure)
		return err
	})
	told("no TLS to a side with it", func() error {
		sess, err := newTestPeer(t, nil).Dial(secure)
		require.NoError(t, err)
		sess.Pull("/a", 1, nil)
		<-sess.Done()
		return sess.Err()
	})

	section("Calls")
	srv, cli := newTestPeer(t, &PeerConfig{MaxBodyBytes: 1000}), newTestPeer(t, nil)
	HandlePull(srv.PullRouter, "/echo", func(_ PullCtx, args *string) (string, Xerror) { return *args, nil })
	HandlePull(srv.PullRouter, "/panics", func(PullCtx, *string) (string, Xerror) {
		panic("the database's password is 1234")
	})
	HandlePull(srv.PullRouter, "/huge", func(PullCtx, *string) (string, Xerror) {
		return strings.Repeat("x", 2000), nil
	})
	HandlePull(srv.PullRouter, "/chan", func(PullCtx, *string) (interface{}, Xerror) {
		return make(chan int), nil
	})
	HandlePull(srv.PullRouter, "/refused", func(PullCtx, *string) (string, Xerror) { return "", nil },
		hookPlugin("check", "PreReadBody", func(interface{}) error {
			return NewXerror(StatusForbidden,
				"not yours")
		}))
	HandlePull(srv.PullRouter, "/upstream", func(PullCtx, *string) (string, Xerror) {
		return "", NewXerror(StatusConnClosed, "10.0.0.7 has gone")
	})
	HandlePush(srv.PushRouter, "/said", func(PushCtx, *string) {})
	_, sess := connect(t, srv, cli, pipe.Options{})
	pull := func(name, uri string, args, reply interface{}, settings ...PacketSetting) {
		told(name, func() error { return asError(sess.Pull(uri, args, reply, settings...).Xerror) })
	}
	pull("nobody serves it", "/nobody?token=secret", "x", nil)
	pull("it is a route for pushes", "/said", "x", nil)
	pull("a URI without a slash", "echo", "x", nil)
	pull("an empty URI", "", "x", nil)
	pull("a URI with an empty name", "/a//b", "x", nil)
	pull("a URI with dots", "/a/../echo", "x", nil)
	pull("a URI with an escaped slash", "/a%2Fb", "x", nil)
	pull("a URI with a broken escape", "/a%2", "x", nil)
	pull("a URI with a line end", "/a\nb", "x", nil)
	pull("an argument that does not encode", "/echo", make(chan int), nil)
	pull("an argument of another type", "/echo", 1, nil)
	pull("an argument that is too large there", "/echo", strings.Repeat("x", 2000), nil)
	pull("an argument that is too large here", "/echo", strings.Repeat("x", 17<<20), nil)
	pull("an unknown codec", "/echo", "x", nil, WithBodyCodec("xml"))
	pull("a codec for other values", "/echo", "x", nil, WithBodyCodec("protobuf"))
	pull("a level of gzip", "/echo", "x", nil, WithGzip(10))
	pull("metadata that is no text", "/echo", "x", nil, WithMeta("k", "\xff"))
	pull("a reply that is no pointer", "/echo", "x", "")
	pull("a reply that is a nil pointer", "/echo", "x", (*string)(nil))
	pull("a reply of another type", "/echo", "x", new(int))
	pull("a reply that is too large", "/huge", "x", nil)
	pull("a reply that does not encode", "/chan", "x", nil)
	pull("a handler that panics", "/panics", "x", nil)
	pull("a hook that refuses", "/refused", "x", nil)
	pull("a code that is for this side", "/upstream", "x", nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("the user has closed the window"))
	told("a context that has ended", func() error { return sess.PullContext(ctx, "/echo", "x", nil).Xerror })
	past, end := context.WithDeadline(t.Context(), time.Unix(0, 0))
	defer end()
	told("a deadline that has passed", func() error { return sess.PushContext(past, "/said", "x") })
	var none context.Context
	told("a context that is nil", func() error { return sess.PullContext(none, "/echo", "x", nil).Xerror })
	told("and for a push", func() error { return sess.PushContext(none, "/said", "x") })
	told("and to dial with", func() error { _, err := cli.DialContext(none, taken); return err })
	told("and with a connection", func() error {
		a, _ := net.Pipe()
		_, err := cli.DialConn(none, a)
		return err
	})
	told("no connection to dial by", func() error { _, err := cli.DialConn(t.Context(), nil); return err })
	told("no connection to serve", func() error { _, err := cli.ServeConn(nil); return err })
	told("a push that does not encode", func() error { return sess.Push("/said", make(chan int)) })
	told("a push with an unknown codec", func() error {
		return sess.Push("/said", "x", WithHeaderCodec("xml"))
	})
	told("details of another type", func() error {
		_, err := Details(WithDetails(NewXerror(1, "x"), "text"), new(int))
		return err
	})
	told("an id that is empty", func() error { return sess.ChangeId("") })
	told("Send when the handshake is over", func() error {
		var kept ForeSession
		p := newTestPeer(t, nil, hookPlugin("keep", "PostDial",
			func(s interface{}) error { kept = s.(ForeSession); return nil }))
		_, err := p.Dial(taken)
		require.NoError(t, err)
		return kept.Send(&packet.Packet{Header: &packet.Header{}})
	})
	require.NoError(t, sess.Close())
	pull("a session that is closed", "/echo", "x", nil)
	told("a push on one", func() error { return sess.Push("/said", "x") })

	got := regexp.MustCompile(`(127\.0\.0\.1|pipe):?[-0-9ab]{4,}`).ReplaceAllString(b.String(),
		"127.0.0.1:PORT")
	got = regexp.MustCompile(`header length \d+`).ReplaceAllString(got, "header length N")
	require.NotContains(t, got, "NOTHING")
	require.NotContains(t, got, "secret")
	require.NotContains(t, got, "1234")
	golden := filepath.Join("testdata", "mistakes.golden")
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	is, was := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range min(len(is), len(was)) {
		require.Equal(t, was[i], is[i], "line %d of %s; with -update it is written anew", i+1, golden)
	}
	require.Len(t, is, len(was))
}
