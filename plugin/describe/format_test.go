package describe

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"regexp"
	"testing"
	"time"

	independent "github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/packet"
)

var update = flag.Bool("update", false, "write the files in testdata anew")

// Widths has no integers whose size is that of the machine.
type Widths struct {
	I  int32
	U  uint64
	F  float32 `json:"f,omitempty"`
	B  []byte
	At *time.Time `json:"at"`
}

// answerOf returns the JSON with which a peer describes itself.
func answerOf(t *testing.T, p *tp.Peer) []byte {
	_, sess := join(t, p, newPeer(t, nil))
	var body packet.RawBody
	require.Nil(t, sess.Pull(Path, nil, &body).Xerror)
	require.Equal(t, byte('j'), body[0])
	return body[1:]
}

// The format is read by programs in other languages, so it stays what it is: this file is it.
func TestFormat(t *testing.T) {
	p := newPeer(t, nil, New())
	p.PullRouter.Group("a").Reg(new(Shop), About("Sells <things>."))
	p.PushRouter.Reg(new(News))
	tp.HandleStream(p.PullRouter, "/watch",
		func(tp.PullCtx, *tp.Stream[Item, []byte]) tp.Xerror { return nil })
	tp.HandlePull(p.PullRouter, "/numbers", func(tp.PullCtx, *Widths) (map[int8]Texts, tp.Xerror) {
		return nil, nil
	}, About("Old.\n\nDeprecated: gone."))
	tp.HandlePull(p.PullRouter, "/chan", func(tp.PullCtx, *Item) (chan int, tp.Xerror) { return nil, nil })
	p.PullRouter.SetUnknown(func(tp.UnknownPullCtx, *[]byte) (interface{}, tp.Xerror) { return nil, nil })

	var got bytes.Buffer
	require.NoError(t, json.Indent(&got, answerOf(t, p), "", " "))
	got.WriteByte('\n')
	const file = "testdata/description.json"
	if *update {
		require.NoError(t, os.WriteFile(file, got.Bytes(), 0o666))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), got.String(), "go test -run TestFormat -update writes it anew")
}

// The description as a whole is a JSON Schema document: a validator finds the schemas at their places in it.
func TestDescriptionIsASchemaDocument(t *testing.T) {
	text := answerOf(t, fullPeer(t))
	doc, err := independent.UnmarshalJSON(bytes.NewReader(text))
	require.NoError(t, err)
	c := independent.NewCompiler()
	require.NoError(t, c.AddResource("description.json", doc))
	d := new(Description)
	require.NoError(t, json.Unmarshal(text, d))
	require.Equal(t, "/a/shop/sell", d.Routes[2].Path)
	s, err := c.Compile("description.json#/routes/2/argument/schema")
	require.NoError(t, err)
	for value, fits := range map[string]bool{`{"name":"x","next":{"name":"y"}}`: true, `{"name":1}`: false,
		`{"next":{"next":{"name":false}}}`: false} {
		v, err := independent.UnmarshalJSON(bytes.NewReader([]byte(value)))
		require.NoError(t, err)
		require.Equal(t, fits, s.Validate(v) == nil, value)
	}
}

// What README shows is a description.
func TestReadmeShowsADescription(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	shown := regexp.MustCompile("(?s)```json\n(.*?)```").FindSubmatch(readme)
	require.NotNil(t, shown)
	d := new(Description)
	dec := json.NewDecoder(bytes.NewReader(shown[1]))
	dec.DisallowUnknownFields()
	require.NoError(t, dec.Decode(d))
	require.Equal(t, knownCodecs(), d.Codecs)
	place := d.Find("/group/orders/place", Pull)
	require.NoError(t, d.Validate(place.Argument, []byte(`{"article":"a","tags":null}`)))
	require.Error(t, d.Validate(place.Argument, []byte(`{"article":1}`)))
	require.NoError(t, d.Validate(place.Reply, []byte(`7`)))
}

func BenchmarkCurrent(b *testing.B) {
	p := newPeer(b, nil)
	for i := range 10_000 {
		tp.HandlePull(p.PullRouter, "/r"+string(rune('a'+i%26))+string(rune(0x4e00+i)), echo)
	}
	c, err := newCatalog(p, New())
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if !c.current(p) {
			b.Fatal("it is not")
		}
	}
}
