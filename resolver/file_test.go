package resolver

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
}

// replace puts a new file in the place of the old one, as careful programs do.
func replace(t *testing.T, path, text string) {
	t.Helper()
	write(t, path+".new", text)
	require.NoError(t, os.Rename(path+".new", path))
}

func TestFile(t *testing.T) {
	log := collectLog(t)
	path := filepath.Join(t.TempDir(), "servers.json")
	write(t, path, `[{"addr": "a:1"}]`)
	news := resolve(t, File(path, Every(minEvery)))
	require.Equal(t, "a:1", addrs(news.next(t)))

	replace(t, path, `[{"addr": "b:1", "zone": "z", "weight": 5},
		{"Id": "c", "Addr": "c:1", "routes": ["/a"]}]`)
	require.Equal(t, []tp.Server{{Addr: "b:1", Zone: "z", Weight: 5},
		{Id: "c", Addr: "c:1", Routes: []string{"/a"}}}, news.next(t))

	// Whatever is wrong, the servers stay, and a line says so. What is written in place may be seen empty,
	// too.
	for _, wrong := range []struct {
		make func()
		line string
	}{
		{func() { write(t, path, `[{"addr": "d:1"},`) }, "it ends after 17 bytes"},
		{func() { write(t, path, "") }, "it ends after 0 bytes"},
		{func() { replace(t, path, `[{"addr": "d"}]`) }, `the address is "d"`},
		{func() { require.NoError(t, os.Remove(path)) }, "no such file"},
		{func() { require.NoError(t, os.Mkdir(path, 0o700)) }, "no regular file"},
	} {
		wrong.make()
		require.Eventually(t, func() bool { return log.containing(wrong.line) > 0 }, patience,
			time.Millisecond, wrong.line)
	}
	require.Empty(t, news)
	require.NoError(t, os.Remove(path))

	replace(t, path, `[{"addr": "e:1"}]`)
	require.Equal(t, "e:1", addrs(news.next(t)))
	require.Eventually(t, func() bool { return log.containing("it works again") >= 1 }, patience,
		time.Millisecond)
	write(t, path, "[]")
	require.Empty(t, news.next(t), "a file may say that there are none")
}

func TestFileThatIsNotThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "servers.json")
	err := File(path).Resolve(t.Context(), func([]tp.Server) { t.Error("told") })
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, path)
	write(t, path, "[}")
	err = File(path).Resolve(t.Context(), func([]tp.Server) { t.Error("told") })
	require.ErrorContains(t, err, path+": line 1: invalid character '}'")
}

// A file is read when it may have changed, and not otherwise.
func TestFileIsReadWhenItChanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "servers.json")
	now := time.Now()
	v := fileView{path: path}
	look := func(want string) {
		t.Helper()
		servers, err := v.look(now)
		require.NoError(t, err)
		if want == "" {
			require.Nil(t, servers)
		} else {
			require.Equal(t, want, addrs(servers))
		}
	}
	wasRead := func() bool { return v.read.Equal(now) }

	write(t, path, `[{"addr":"a:1"}]`)
	require.NoError(t, os.Chtimes(path, now, now))
	look("a:1")
	now = now.Add(time.Second)
	look("")
	require.True(t, wasRead(), "it may have changed within the granularity of its time")

	write(t, path, `[{"addr":"b:1"}]`) // of the same size and, as is set now, time
	require.NoError(t, os.Chtimes(path, now.Add(-time.Second), now.Add(-time.Second)))
	look("b:1")

	now = now.Add(time.Minute)
	look("")
	require.True(t, wasRead())
	now = now.Add(time.Minute)
	look("")
	require.False(t, wasRead(), "nothing has changed for a long time")

	require.NoError(t, os.Chtimes(path, now, now.Add(-time.Second)))
	look("")
	require.True(t, wasRead(), "another time, and the same contents")

	if runtime.GOOS != "windows" { // whose files tell themselves apart only while they are open
		now = now.Add(time.Minute)
		look("")
		info, err := os.Stat(path)
		require.NoError(t, err)
		replace(t, path, `[{"addr":"c:1"}]`)
		require.NoError(t, os.Chtimes(path, now, info.ModTime()))
		look("c:1") // another file of the same size and time
	}
}

func TestParseServers(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"no JSON":          {"a:1", "line 1: invalid character 'a'"},
		"the line":         {"[\n{\"addr\":\"a:1\"},\n{,}]", "line 3: invalid character ','"},
		"an object":        {`{"addr":"a:1"}`, "line 1: json: cannot unmarshal object"},
		"null":             {`null`, "it is null"},
		"texts":            {`["a:1"]`, "line 1: json: cannot unmarshal string"},
		"no weight":        {"[{\"addr\":\"a:1\",\n\"weight\":\"\"}]", "line 2: json: cannot unmarshal"},
		"a misspelt field": {`[{"adress":"a:1"}]`, `unknown field "adress"; expected a JSON array`},
		"two arrays":       {`[{"addr":"a:1"}] []`, "more behind the array of servers, from byte 18"},
		"text behind it":   {`[{"addr":"a:1"}] x`, "there is more behind"},
		"cut off":          {`[{"addr":"a:1"}`, "it ends after 15 bytes"},
		"nothing":          {"", "it ends after 0 bytes, expected a JSON array of servers"},
		"space":            {" \n", "it ends after 2 bytes"},
		"no address":       {`[{}]`, "server 1 of 1: the address is"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseServers([]byte(c.text))
			require.ErrorContains(t, err, c.want)
		})
	}

	// Cut off anywhere, it is no list.
	const text = `[{"addr":"a:1","routes":["/a"]},{"addr":"b:1"}]`
	for i := range text {
		_, err := parseServers([]byte(text[:i]))
		require.Error(t, err, text[:i])
	}
	servers, err := parseServers([]byte(" " + text + "\n"))
	require.NoError(t, err)
	require.Equal(t, "a:1 b:1", addrs(servers))
}

func TestFileThatIsTooLarge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "servers.json")
	write(t, path, "["+strings.Repeat(" ", maxFile)+"]")
	_, err := (&fileView{path: path}).look(time.Now())
	require.ErrorContains(t, err, "has more than 16777216 bytes")
}
