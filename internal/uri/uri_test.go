package uri_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/uri"
)

// There is one way to write a path.
func TestCanonical(t *testing.T) {
	for _, text := range []string{"/", "/a", "/a/", "/a/b?c=d", "/a?b?c%zz", "/é", "/a b", "/...", "/.a",
		"/a\\b", "/a?//..", "/a?"} {
		got, err := uri.Canonical(text)
		require.NoError(t, err, text)
		require.Equal(t, text, got)
	}
	for text, want := range map[string]string{"/%61": "/a", "/a%20b?%61": "/a b?%61", "/%C3%a9/": "/é/",
		"/%5c": "/\\", "/%61?": "/a?"} {
		got, err := uri.Canonical(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got)
	}
	for _, text := range []string{
		"", "a", "?a", "*", "//host/a", "/a//b", "/a//", "//", "/.", "/..", "/a/../b", "/a/./b", "/a/..",
		"/%2e%2e/a", "/%2E/a", "/a/.%2e",
		"/a%2fb", "/a%2Fb", "/%2f", "/a%25b", "/a%2561", "/a%3fb", "/%", "/%4", "/%4g", "/%+1", "/a%", "/%zz",
		"/a\x00", "/a\n", "/a?\r", "/a\x7f", "/%00", "/%0a", "/%7f", "/%ff", "http://host/a",
		"/a\xff", "/a?\xff", "/a\u0085", "/a%c2%85",
	} {
		_, err := uri.Canonical(text)
		require.Error(t, err, text)
		require.Less(t, len(err.Error()), 500)
	}
	path, query := uri.Split("/a?b?c")
	require.Equal(t, []string{"/a", "b?c"}, []string{path, query})
}

func FuzzCanonical(f *testing.F) {
	for _, s := range []string{"", "/", "/a/b?c=d", "/%61", "/%", "/a%2fb", "//h/x", "/a?b%", "/\x00", "/é",
		"/%2e%2e/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		canonical, err := uri.Canonical(text)
		if err != nil {
			if len(err.Error()) > 200 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
			return
		}
		p, raw := uri.Split(canonical)
		if !strings.HasPrefix(p, "/") || strings.Contains(p, "//") || strings.Contains(p+"/", "/../") ||
			strings.Contains(p, "%") {
			t.Errorf("%q: path %q", text, p)
		}
		if raw != "" && !strings.HasSuffix(text, "?"+raw) {
			t.Errorf("%q: query %q", text, raw)
		}
		if again, err := uri.Canonical(canonical); err != nil || again != canonical {
			t.Errorf("%q: %q becomes %q, %v", text, canonical, again, err)
		}
		if unescaped, err := url.PathUnescape(strings.SplitN(text, "?", 2)[0]); err != nil || unescaped != p {
			t.Errorf("%q: path %q, %q for net/url (%v)", text, p, unescaped, err)
		}
	})
}

// No query is in a log, with a question mark that is escaped or not.
func TestWithoutQuery(t *testing.T) {
	for text, want := range map[string]string{"/a": "/a", "/a?token=x": "/a", "/a%3ftoken=x": "/a",
		"/a%3Ftoken=x?y": "/a", "?": "", "": ""} {
		require.Equal(t, want, uri.WithoutQuery(text))
	}
}
