package describe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/apipb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/packet"
	"github.com/henrylee2cn/teleport/plugin/describe/docs"
)

func TestMain(m *testing.M) {
	tp.SetLogLevel(tp.LevelOff)
	goleak.VerifyTestMain(m)
}

// join connects the two peers, and returns both ends. The first peer accepts.
func join(t testing.TB, srv, cli *tp.Peer) (there, here *tp.Session) {
	t.Helper()
	near, far := pipe.New(pipe.Options{})
	accepted := make(chan *tp.Session, 1)
	go func() {
		sess, _ := srv.ServeConn(near)
		accepted <- sess
	}()
	here, err := cli.DialConn(t.Context(), far)
	require.NoError(t, err)
	there = <-accepted
	require.NotNil(t, there)
	return there, here
}

func newPeer(t testing.TB, cfg *tp.PeerConfig, plugins ...tp.Plugin) *tp.Peer {
	p := tp.NewPeer(cfg, plugins...)
	t.Cleanup(func() { p.Close() })
	return p
}

// fetch describes the peer.
func fetch(t testing.TB, srv *tp.Peer) *Description {
	t.Helper()
	_, sess := join(t, srv, newPeer(t, nil))
	d, err := Fetch(t.Context(), sess)
	require.NoError(t, err)
	return d
}

func paths(d *Description) (all []string) {
	for _, r := range d.Routes {
		name := r.Path + " " + string(r.Kind)
		if r.Unknown {
			name += " unknown"
		}
		all = append(all, name)
	}
	return all
}

type Item struct {
	Name string `json:"name"`
	Next *Item  `json:"next,omitempty"`
}

type Shop struct{ tp.PullCtx }

func (*Shop) Sell(*Item) (*Item, tp.Xerror) { return nil, nil }

type News struct{ tp.PushCtx }

func (*News) Sold(*Item) {}

func echo(_ tp.PullCtx, s *string) (string, tp.Xerror) { return *s, nil }

func fullPeer(t testing.TB, options ...Option) *tp.Peer {
	p := newPeer(t, nil, New(options...))
	p.PullRouter.Group("a").Reg(new(Shop))
	p.PushRouter.Reg(new(News))
	tp.HandlePull(p.PullRouter, "/echo", echo)
	tp.HandleStream(p.PullRouter, "/watch",
		func(tp.PullCtx, *tp.Stream[Item, []byte]) tp.Xerror { return nil })
	tp.HandlePull(p.PullRouter, "/proto", func(tp.PullCtx, **apipb.Api) (*wrapperspb.StringValue, tp.Xerror) {
		return nil, nil
	})
	p.PullRouter.SetUnknownStream(func(tp.UnknownPullCtx,
		*tp.Stream[tp.RawValue, tp.RawValue]) tp.Xerror {
		return nil
	})
	p.PullRouter.SetUnknown(func(tp.UnknownPullCtx, *[]byte) (interface{}, tp.Xerror) { return nil, nil })
	p.PushRouter.Group("in").SetUnknown(func(tp.UnknownPushCtx, *[]byte) {})
	return p
}

// Every kind of route is there, in its order, with its types.
func TestRoutes(t *testing.T) {
	d := fetch(t, fullPeer(t))
	require.Equal(t, []string{"/* pull unknown", "/* stream unknown", "/a/shop/sell pull", "/echo pull",
		"/in/* push unknown", "/news/sold push", "/proto pull", "/watch stream"}, paths(d))
	require.Equal(t, Version, d.Version)
	require.Equal(t, 8, d.Total)
	require.Contains(t, d.Codecs, Codec{"json", 'j'})
	require.Contains(t, d.Codecs, Codec{"protobuf", 'p'})
	require.Contains(t, d.Codecs, Codec{"string", 's'})

	sell := d.Find("/a/shop/sell", Pull)
	require.Equal(t, "describe.Item", sell.Argument.GoType)
	require.Equal(t, "*describe.Item", sell.Reply.GoType)
	require.NoError(t, d.Validate(sell.Argument, []byte(`{"name":"a","next":{}}`)))
	require.ErrorContains(t, d.Validate(sell.Argument, []byte(`{"next":{"name":1}}`)), "describe.Item")
	require.NoError(t, d.Validate(sell.Reply, []byte(`null`)))
	require.ErrorContains(t, d.Validate(sell.Reply, []byte(`{}`)), "name", "a reply has all fields")
	require.ErrorContains(t, d.Validate(sell.Reply, []byte(`{`)), "no JSON")

	require.Nil(t, d.Find("/news/sold", Push).Reply)
	require.Nil(t, d.Find("/news/sold", Pull))
	require.Nil(t, d.Find("/*", Stream).Argument)
	watch := d.Find("/watch", Stream)
	require.True(t, watch.Argument.Raw)
	require.NotNil(t, watch.Reply.Schema)
	require.ErrorContains(t, d.Validate(watch.Argument, []byte(`1`)), "without a codec")
	require.ErrorContains(t, d.Validate(d.Find("/*", Pull).Reply, []byte(`1`)), "there is no value")
}

// A protobuf message comes with its file and all that this imports.
func TestProtobuf(t *testing.T) {
	d := fetch(t, fullPeer(t))
	r := d.Find("/proto", Pull)
	require.Equal(t, "google.protobuf.Api", r.Argument.Message)
	require.Equal(t, "google.protobuf.StringValue", r.Reply.Message)
	files, err := d.Files()
	require.NoError(t, err)
	for _, name := range []string{"google.protobuf.Api", "google.protobuf.StringValue",
		"google.protobuf.SourceContext", "google.protobuf.Any"} {
		_, err := files.FindDescriptorByName(protoName(name))
		require.NoError(t, err, name)
	}
	require.NoError(t, d.Validate(r.Reply, []byte(`{"value":"x"}`)), "as the codec json has it")
}

// The dialling side describes itself too, and one plugin may be on several peers.
func TestBothSides(t *testing.T) {
	plugin := New()
	srv, cli := newPeer(t, nil, plugin), newPeer(t, nil, plugin)
	tp.HandlePull(srv.PullRouter, "/server", echo)
	tp.HandlePull(cli.PullRouter, "/client", echo)
	there, here := join(t, srv, cli)
	for _, tc := range []struct {
		sess *tp.Session
		want string
	}{{here, "/server pull"}, {there, "/client pull"}} {
		d, err := Fetch(t.Context(), tc.sess)
		require.NoError(t, err)
		require.Equal(t, []string{tc.want}, paths(d))
	}
}

func TestHidden(t *testing.T) {
	for _, tc := range []struct {
		name    string
		options []Option
		want    []string
	}{
		{"by registration", nil, []string{"/b/x pull", "/b/y pull", "/bb pull", "/c pull"}},
		{"by path", []Option{Hide("/c", "/b/y")}, []string{"/b/x pull", "/bb pull"}},
		{"by pattern", []Option{Hide("/b/*"), Hide("/c/*")}, []string{"/bb pull"}},
		{"all", []Option{Hide("/*")}, nil},
		{"own", []Option{Own(), Hide("/b/*", "/bb", "/c")}, []string{"/tp-describe pull"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPeer(t, nil, New(tc.options...))
			tp.HandlePull(p.PullRouter, "/secret", echo, Hidden())
			p.PullRouter.Group("secrets", Hidden()).Reg(new(Shop))
			for _, path := range []string{"/b/x", "/b/y", "/bb", "/c"} {
				tp.HandlePull(p.PullRouter, path, echo)
			}
			require.Equal(t, tc.want, paths(fetch(t, p)))
		})
	}
}

func TestBadOptions(t *testing.T) {
	for _, text := range []string{"", "a", "/a/", "/a*", "/a/../b", "/a?b", "/a//b", "*"} {
		require.Panics(t, func() { Hide(text) }, text)
	}
	require.PanicsWithValue(t, "describe: PageBytes(0): expected a positive number.", func() { PageBytes(0) })
	require.PanicsWithValue(t, "describe: Access: the function is nil.", func() { Access(nil) })
	require.PanicsWithValue(t, "describe: New: option 2 of 2 is nil.", func() { New(Own(), nil) })
}

// What Access says is what the other side gets, and a peer without the plugin is known as such.
func TestNoDescription(t *testing.T) {
	refuse := Access(func(ctx tp.PullCtx) tp.Xerror {
		if ctx.Query().Get("prefix") == "/open" {
			return nil
		}
		return tp.NewXerror(tp.StatusForbidden, "not you")
	})
	unknown := func(reply interface{}) *tp.Peer {
		p := newPeer(t, nil)
		p.PullRouter.SetUnknown(func(tp.UnknownPullCtx, *[]byte) (interface{}, tp.Xerror) {
			return reply, nil
		})
		return p
	}
	for _, tc := range []struct {
		name string
		srv  *tp.Peer
		code int32
		none bool
		says string
	}{
		{"refused", newPeer(t, nil, New(refuse)), tp.StatusForbidden, false, "not you"},
		{"no plugin", newPeer(t, nil), tp.StatusNotFound, true, "has not the plugin describe"},
		{"another answer", unknown([]string{"x"}), 0, true, "something else than a description"},
		{"an answer without a body", unknown(nil), 0, true, "without a body"},
		{"an answer of another codec", unknown(packet.RawBody("sabc")), 0, true, "codec 115"},
		{"another version", unknown(map[string]int{"version": 2}), 0, false, "version 2, expected 1"},
		{"a broken one", unknown(map[string]interface{}{"version": 1, "routes": 7}), 0, false,
			"does not decode"},
		{"one that takes too much memory", unknown(packet.RawBody(`j{"version":1,"$defs":{"a":{"allOf":[` +
			strings.Repeat("{},", maxSchemas) + `{}]}}}`)), 0, false, "schemas or more, expected 250000"},
		{"one that is nested too deep", unknown(packet.RawBody(`j{"version":1,"$defs":{"a":` +
			strings.Repeat(`{"not":`, maxDepth) + `{}` + strings.Repeat("}", maxDepth) + `}}`)), 0, false,
			"nested deeper than 100"},
		{"a page that leads nowhere", unknown(map[string]interface{}{"version": 1, "next": "/x"}), 0, false,
			"leads to no other"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, sess := join(t, tc.srv, newPeer(t, nil))
			_, err := Fetch(t.Context(), sess)
			require.ErrorContains(t, err, tc.says)
			require.Equal(t, tc.none, errors.Is(err, ErrNotDescribed))
			var x tp.Xerror
			if tc.code != 0 {
				require.ErrorAs(t, err, &x)
				require.Equal(t, tc.code, x.Code())
			}
		})
	}
	_, sess := join(t, newPeer(t, nil, New(refuse)), newPeer(t, nil))
	_, err := FetchUnder(t.Context(), sess, "/open")
	require.NoError(t, err)
}

// A bad query is refused by name, and the session goes on.
func TestBadQueries(t *testing.T) {
	_, sess := join(t, fullPeer(t), newPeer(t, nil))
	for query, says := range map[string]string{
		"x=1":               `"x", expected prefix, after, limit and bytes only`,
		"limit=0":           `limit is "0", expected a positive number`,
		"limit=-1":          `limit is "-1"`,
		"bytes=many":        `bytes is "many"`,
		"prefix=/a&prefix=": `"prefix" 2 times, expected once`,
	} {
		x := sess.Pull(Path+"?"+query, nil, nil).Xerror
		require.NotNil(t, x, query)
		require.Equal(t, tp.StatusBadRequest, x.Code())
		require.Contains(t, x.Text(), says)
	}
	for _, body := range []struct {
		codec string
		body  interface{}
	}{{"json", map[string]int{"a": 1}}, {"string", "x"}, {"protobuf", wrapperspb.String("x")}} {
		var reply json.RawMessage
		cmd := sess.Pull(Path, body.body, &reply, tp.WithBodyCodec(body.codec), tp.WithGzip(5))
		require.Nil(t, cmd.Xerror)
		require.True(t, json.Valid(reply), body.codec)
	}
}

// Routes that come while the peer serves are in the next answer; an answer is made once for all who ask.
func TestRoutesAddedWhileServing(t *testing.T) {
	srv := newPeer(t, nil, New())
	tp.HandlePull(srv.PullRouter, "/first", echo)
	const routes = 50
	var wg sync.WaitGroup
	for range 4 {
		_, sess := join(t, srv, newPeer(t, nil))
		wg.Go(func() {
			seen := 0
			for seen <= routes {
				d, err := Fetch(context.Background(), sess)
				if err != nil || len(d.Routes) < seen || len(d.Routes) != d.Total {
					t.Errorf("%v, %d routes of %d after %d", err, len(d.Routes), d.Total, seen)
					return
				}
				seen = len(d.Routes)
			}
		})
	}
	for i := range routes {
		tp.HandlePush(srv.PushRouter, fmt.Sprintf("/more/%d", i), func(tp.PushCtx, *Item) {})
	}
	wg.Wait()

	// A handler that takes the place of another is no other description if it looks the same.
	before := fetch(t, srv)
	require.Equal(t, before.Revision, fetch(t, srv).Revision)
	srv.PullRouter.SetUnknown(func(tp.UnknownPullCtx, *[]byte) (interface{}, tp.Xerror) { return nil, nil })
	after := fetch(t, srv)
	require.NotEqual(t, before.Revision, after.Revision)
	require.Equal(t, before.Total+1, after.Total)
}

// The answer is the same bytes each time, and making the catalog again makes the same.
func TestStable(t *testing.T) {
	p := fullPeer(t)
	plugin := New()
	first, err := newCatalog(p, plugin)
	require.NoError(t, err)
	for range 20 {
		again, err := newCatalog(p, plugin)
		require.NoError(t, err)
		require.Equal(t, string(first.first), string(again.first))
	}
	require.True(t, first.current(p))
	fewer, codecs := *first, *first
	fewer.handlers = append(fewer.handlers, nil)
	require.False(t, fewer.current(p))
	codecs.codecs = codecs.codecs[1:]
	require.False(t, codecs.current(p), "a codec has come")
}

// One who asks waits no longer than its call lasts, and a catalog that cannot be made is made again.
func TestCatalogThatIsMade(t *testing.T) {
	p := newPeer(t, nil)
	s := &served{plugin: New()}
	m, mine := s.make()
	require.True(t, mine)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.catalog(ctx, p)
	require.ErrorIs(t, err, context.Canceled)
	waited := make(chan error)
	go func() {
		_, err := s.catalog(t.Context(), p)
		waited <- err
	}()
	s.finish(m, p)
	require.NoError(t, <-waited)

	bad := &served{plugin: New()}
	_, _ = bad.make()
	bad.finish(bad.making, nil) // a nil peer panics
	m, mine = bad.make()
	require.True(t, mine, "another may try again")
	bad.finish(m, p)
	require.NoError(t, m.err)
}

// Doc comments come along where tpdoc has collected them: of functions and methods, of types and of fields.
func TestDocs(t *testing.T) {
	docs.Add[Item](map[string]string{"Item": "Item is a thing.", "Item.Name": "Name is its name.",
		"Item.Next": "Deprecated: there is none.", "Shop.Sell": "Sell sells.", "echo": "echo echoes."})
	defer docs.Add[Item](map[string]string{"Item": "", "Item.Name": "", "Item.Next": "", "Shop.Sell": "",
		"echo": ""})
	d := fetch(t, fullPeer(t))
	require.Equal(t, "Sell sells.", d.Find("/a/shop/sell", Pull).Doc)
	require.Equal(t, "echo echoes.", d.Find("/echo", Pull).Doc)
	s, err := d.Bundle(d.Find("/a/shop/sell", Pull).Argument)
	require.NoError(t, err)
	require.Len(t, s.Defs, 1)
	for _, item := range s.Defs {
		require.Equal(t, "Item is a thing.", item.Description)
		require.Equal(t, "describe.Item", item.Title)
		require.Equal(t, reflect.TypeFor[Item]().PkgPath()+".Item", item.Extra[goTypeKeyword])
		require.Equal(t, "Name is its name.", item.Properties["name"].Description)
		require.True(t, item.Properties["next"].Deprecated)
		require.False(t, item.Deprecated)
	}
}

// About stands before a doc comment, and says what is deprecated.
func TestAbout(t *testing.T) {
	p := newPeer(t, nil, New())
	tp.HandlePull(p.PullRouter, "/old", echo, About("Echoes.\n\nDeprecated: call /new."))
	tp.HandlePull(p.PullRouter, "/new", echo, About("Echoes."))
	tp.HandlePull(p.PullRouter, "/plain", echo)
	d := fetch(t, p)
	require.Equal(t, "Echoes.", d.Find("/new", Pull).Doc)
	require.False(t, d.Find("/new", Pull).Deprecated)
	require.True(t, d.Find("/old", Pull).Deprecated)
	require.Empty(t, d.Find("/plain", Pull).Doc)
}

func protoName(s string) protoreflect.FullName { return protoreflect.FullName(s) }
