package describe

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/apipb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/race"
)

// pages fetches page by page, and checks that each stands alone.
func pages(t *testing.T, sess *tp.Session, q Query) (all [][]string) {
	t.Helper()
	for {
		d, err := FetchPage(t.Context(), sess, q)
		require.NoError(t, err)
		all = append(all, paths(d))
		for _, r := range d.Routes {
			for _, v := range []*Value{r.Argument, r.Reply} {
				if v != nil && v.Schema != nil {
					_, err := d.Bundle(v)
					require.NoError(t, err, "%s needs what is not on its page", r.Path)
				}
				if v != nil && v.Message != "" {
					files, err := d.Files()
					require.NoError(t, err)
					_, err = files.FindDescriptorByName(protoName(v.Message))
					require.NoError(t, err)
				}
			}
		}
		if q.After = d.Next; q.After == "" {
			return all
		}
	}
}

func TestPages(t *testing.T) {
	_, sess := join(t, fullPeer(t), newPeer(t, nil))
	for _, tc := range []struct {
		name string
		q    Query
		want [][]string
	}{
		{"all", Query{}, [][]string{{"/* pull unknown", "/* stream unknown", "/a/shop/sell pull",
			"/echo pull", "/in/* push unknown", "/news/sold push", "/proto pull", "/watch stream"}}},
		{"three", Query{Limit: 3}, [][]string{{"/* pull unknown", "/* stream unknown", "/a/shop/sell pull"},
			{"/echo pull", "/in/* push unknown", "/news/sold push"}, {"/proto pull", "/watch stream"}}},
		{"four, and no empty page", Query{Limit: 4}, [][]string{{"/* pull unknown", "/* stream unknown",
			"/a/shop/sell pull", "/echo pull"}, {"/in/* push unknown", "/news/sold push", "/proto pull",
			"/watch stream"}}},
		{"few bytes: one each", Query{Bytes: 1, Prefix: "/n"}, [][]string{{"/news/sold push"}}},
		{"a prefix", Query{Prefix: "/a/"}, [][]string{{"/a/shop/sell pull"}}},
		{"nothing", Query{Prefix: "/b"}, [][]string{nil}},
		{"behind a path", Query{After: "/in/*"}, [][]string{{"/news/sold push", "/proto pull",
			"/watch stream"}}},
		{"behind what is not there", Query{After: "/in/z"}, [][]string{{"/news/sold push", "/proto pull",
			"/watch stream"}}},
		{"behind a kind", Query{After: "/* pull", Prefix: "/*"}, [][]string{{"/* stream unknown"}}},
		{"before the prefix", Query{After: "/* pull", Prefix: "/w"}, [][]string{{"/watch stream"}}},
		{"behind the prefix", Query{After: "/x", Prefix: "/w"}, [][]string{nil}},
		{"behind all", Query{After: "/z"}, [][]string{nil}},
	} {
		t.Run(tc.name, func(t *testing.T) { require.Equal(t, tc.want, pages(t, sess, tc.q)) })
	}
	one := pages(t, sess, Query{Bytes: 1})
	require.Len(t, one, 8, "each route on a page of its own")

	all, err := Fetch(t.Context(), sess)
	require.NoError(t, err)
	merged := new(Description)
	for q := (Query{Limit: 1}); ; {
		d, err := FetchPage(t.Context(), sess, q)
		require.NoError(t, err)
		if merged.Routes == nil {
			merged = d
		} else {
			require.NoError(t, merged.append(d))
		}
		if q.After = d.Next; q.After == "" {
			break
		}
	}
	merged.Next = ""
	files, err := merged.Files()
	require.NoError(t, err)
	require.Equal(t, 5, files.NumFiles())
	merged.Descriptors, all.Descriptors = nil, nil
	require.Equal(t, all, merged)
}

func special(tp.PullCtx, *Tree) (Special, tp.Xerror) { return Special{}, nil }

func api(tp.PullCtx, **apipb.Api) (*wrapperspb.StringValue, tp.Xerror) { return nil, nil }

// Ten thousand routes come in pages, whatever little the two sides take, and each route once.
func TestManyRoutes(t *testing.T) {
	many := func(routes int, cfg *tp.PeerConfig, options ...Option) *tp.Peer {
		p := newPeer(t, cfg, New(options...))
		controllers := p.PullRouter.Group("many")
		for i := range routes {
			switch path := fmt.Sprintf("/r%05d", i); i % 3 {
			case 0:
				tp.HandlePull(controllers, path, special)
			case 1:
				tp.HandlePull(controllers, path, api, About(strings.Repeat("Long. ", 20)))
			case 2:
				tp.HandlePull(controllers, path, echo)
			}
		}
		return p
	}
	tenThousand := 10_000
	if race.Enabled { // to register so many takes a minute then
		tenThousand = 2000
	}
	small := &tp.PeerConfig{MaxBodyBytes: 64 << 10}
	for _, tc := range []struct {
		name     string
		routes   int
		srv, cli *tp.PeerConfig
		options  []Option
	}{
		{"ten thousand", tenThousand, nil, nil, nil},
		{"the server sends little", 1000, small, nil, nil},
		{"the client takes little", 1000, nil, small, nil},
		{"pages by the server", 1000, small, small, []Option{PageBytes(48 << 10)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, sess := join(t, many(tc.routes, tc.srv, tc.options...), newPeer(t, tc.cli))
			d, err := Fetch(t.Context(), sess)
			require.NoError(t, err)
			require.Equal(t, tc.routes, d.Total)
			got := paths(d)
			require.Len(t, got, tc.routes)
			require.True(t, slices.IsSorted(got))
			require.Len(t, slices.Compact(got), tc.routes)
			for _, i := range []int{0, 1, tc.routes - 1} {
				_, err := d.Bundle(d.Routes[i].Argument)
				require.NoError(t, err)
			}
		})
	}
}

// A route that is too long for a side alone is an error, and no loop.
func TestRouteThatIsTooLong(t *testing.T) {
	srv := newPeer(t, nil, New())
	tp.HandlePull(srv.PullRouter, "/long", echo, About(strings.Repeat("x", 100<<10)))
	_, sess := join(t, srv, newPeer(t, &tp.PeerConfig{MaxBodyBytes: 64 << 10}))
	_, err := Fetch(t.Context(), sess)
	var x tp.Xerror
	require.True(t, errors.As(err, &x), "%v", err)
	require.Equal(t, tp.StatusTooLarge, x.Code())
}

// Routes that come between two pages: the description is fetched again.
func TestRoutesBetweenPages(t *testing.T) {
	var srv *tp.Peer
	asked := 0
	srv = newPeer(t, nil, New(PageBytes(1), Access(func(tp.PullCtx) tp.Xerror {
		if asked++; asked == 3 { // in front of what is fetched next
			tp.HandlePull(srv.PullRouter, "/a0", echo)
		}
		return nil
	})))
	for _, path := range []string{"/a", "/b", "/c"} {
		tp.HandlePull(srv.PullRouter, path, echo)
	}
	d := fetch(t, srv)
	require.Equal(t, []string{"/a pull", "/a0 pull", "/b pull", "/c pull"}, paths(d))
	require.Equal(t, 4, d.Total)
}

// A cursor has any path that a route may have.
func TestCursor(t *testing.T) {
	srv := newPeer(t, nil, New())
	for _, path := range []string{"/a b", "/a#b", "/a&c=d", "/a+b", "/ä", "/a pull", "/\"q\"", "/<x>"} {
		tp.HandlePull(srv.PullRouter, path, echo)
	}
	_, sess := join(t, srv, newPeer(t, nil))
	require.Len(t, pages(t, sess, Query{Limit: 1}), 8)
	d, err := FetchUnder(t.Context(), sess, "/a&")
	require.NoError(t, err)
	require.Equal(t, []string{"/a&c=d pull"}, paths(d))
}

func BenchmarkAnswer(b *testing.B) {
	for _, routes := range []int{10, 10_000} {
		srv := newPeer(b, nil, New())
		for i := range routes {
			tp.HandlePull(srv.PullRouter, fmt.Sprintf("/r%d", i), special)
		}
		plugin := New()
		b.Run(fmt.Sprintf("make/%d", routes), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := newCatalog(srv, plugin); err != nil {
					b.Fatal(err)
				}
			}
		})
		_, sess := join(b, srv, newPeer(b, nil))
		for name, q := range map[string]Query{"first": {}, "page": {After: "/r5"}} {
			b.Run(fmt.Sprintf("%s/%d", name, routes), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if x := sess.Pull(q.uri(), nil, nil).Xerror; x != nil {
						b.Fatal(x)
					}
				}
			})
		}
	}
}
