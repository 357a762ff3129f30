package configfile_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/configfile"
)

type inner struct{ Times int }

type config struct {
	Name    string
	On      bool
	Wait    time.Duration
	Size    int64
	Mode    os.FileMode
	Count   int
	Level   int32
	Addrs   []string
	Inner   *inner
	Program func()
}

var form = configfile.Form{Name: strings.ToLower, ProgramOnly: []string{"Program"}}

func read(t *testing.T, into *config, text string) error {
	t.Helper()
	values, err := configfile.DecodeJSON([]byte(text))
	require.NoError(t, err)
	return form.Read(into, values)
}

// What Write has written Read reads, by way of JSON and by way of maps.
func TestWhatIsWrittenIsRead(t *testing.T) {
	want := config{Name: "n", On: true, Wait: 90 * time.Second, Size: 16 << 20, Mode: 0o600, Count: -1,
		Level: -2,
		Addrs: []string{"a", "b"}, Inner: &inner{3}}
	text, err := json.Marshal(form.Write(&want))
	require.NoError(t, err)
	require.Equal(t,
		`{"name":"n","on":true,"wait":"1m30s","size":"16MiB","mode":"0600","count":"none","level":-2,`+
			`"addrs":["a","b"],"inner":{"times":3}}`, string(text))
	var got config
	require.NoError(t, read(t, &got, string(text)))
	require.Equal(t, want, got)

	text, err = json.Marshal(form.Write(&want).Map())
	require.NoError(t, err)
	got = config{}
	require.NoError(t, read(t, &got, string(text)))
	require.Equal(t, want, got)
	require.Empty(t, form.Write(&config{Program: func() {}}))
}

func TestNamesAndValuesThatAreWrong(t *testing.T) {
	for text, want := range map[string]string{
		`{"nam":1}`: "there is no nam; there are name, on, wait, size, mode, count, level, " +
			"addrs, inner",
		`{"Name":"n"}`:         "there is no Name; it is called name",
		`{"program":1}`:        "program cannot be set in a file, only in a program",
		`{"inner":{"time":1}}`: "there is no inner.time; there are times",
		`{"inner":1}`: "inner: 1 is not what is expected, an object with the fields of inner, " +
			"which may be empty",
		`{"name":1}`:             "name: 1 is not what is expected, a text",
		`{"on":"yes"}`:           `on: "yes" is not what is expected, true or false`,
		`{"wait":5}`:             `wait: 5 is not what is expected, a duration such as "1m30s" or "500ms", or "none"`,
		`{"size":"9EiB"}`:        `size: "9EiB" is not what is expected, a size such as "16MiB" or "64KiB", a number of bytes, or "none"`,
		`{"size":"9999999TiB"}`:  `size: "9999999TiB" is not what is expected, a size such as "16MiB" or "64KiB", a number of bytes, or "none"`,
		`{"mode":"0900"}`:        `mode: "0900" is not what is expected, permissions in octal digits such as "0600"`,
		`{"count":1.5}`:          `count: 1.5 is not what is expected, a whole number, or "none"`,
		`{"level":4294967296}`:   "level: 4294967296 is not what is expected, a whole number",
		`{"addrs":["a",1]}`:      `addrs: [a 1] is not what is expected, a list of texts such as ["127.0.0.1:9090"]`,
		`{"addrs":{"a":"b"}}`:    `addrs: map[a:b] is not what is expected, a list of texts such as ["127.0.0.1:9090"]`,
		`{"inner":{"times":{}}}`: `inner.times: map[] is not what is expected, a whole number, or "none"`,
	} {
		require.EqualError(t, read(t, new(config), text), want, text)
	}
	_, err := configfile.DecodeJSON([]byte("[1]"))
	require.EqualError(t, err, "expected an object, and there is array")
	values, err := configfile.DecodeJSON(nil)
	require.NoError(t, err)
	require.Empty(t, values)
}

// Null is zero, fields without a value stay, and a struct that is there is changed.
func TestReadChangesOnlyWhatIsThere(t *testing.T) {
	c := config{Name: "n", Count: 2, Inner: &inner{3}}
	require.NoError(t, read(t, &c, `{"count":null,"inner":{}}`))
	require.Equal(t, config{Name: "n", Inner: &inner{3}}, c)
	require.NoError(t, read(t, &c, `{"inner":null}`))
	require.Nil(t, c.Inner)
}
