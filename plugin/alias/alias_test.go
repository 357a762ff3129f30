package alias_test

import (
	"fmt"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/plugin/alias"
)

func TestMain(m *testing.M) {
	tp.SetLogLevel(tp.LevelOff)
	goleak.VerifyTestMain(m)
}

type Where struct{ tp.PullCtx }

func (w *Where) Am(args *struct{}) (string, tp.Xerror) {
	return fmt.Sprintf("%s %s %s", w.Path(), w.Uri(), w.Query().Get("x")), nil
}

type Told struct {
	tp.PushCtx
	Got chan string
}

func (p *Told) Of(args *string) { p.Got <- p.Uri() + " " + *args }

func pair(t *testing.T, srv *tp.Peer) *tp.Session {
	cli := tp.NewPeer(nil)
	a, b := net.Pipe()
	_, err := srv.ServeConn(a)
	require.NoError(t, err)
	sess, err := cli.ServeConn(b)
	require.NoError(t, err)
	t.Cleanup(func() { cli.Close(); srv.Close() })
	return sess
}

func pull(t *testing.T, sess *tp.Session, uri string) string {
	var got string
	if cmd := sess.Pull(uri, nil, &got); cmd.Xerror != nil {
		return cmd.Xerror.Error()
	}
	return got
}

func TestAliasOnPeerGroupAndRegistration(t *testing.T) {
	for name, register := range map[string]func(a *alias.Alias) *tp.Peer{
		"peer": func(a *alias.Alias) *tp.Peer {
			p := tp.NewPeer(nil, a)
			p.PullRouter.Group("g").Reg(new(Where))
			return p
		},
		"group": func(a *alias.Alias) *tp.Peer {
			p := tp.NewPeer(nil)
			p.PullRouter.Group("g", a).Reg(new(Where))
			return p
		},
		"registration": func(a *alias.Alias) *tp.Peer {
			p := tp.NewPeer(nil)
			p.PullRouter.Group("g").Reg(new(Where), a)
			return p
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := alias.New()
			a.Alias("/alias", "/g/where/am")
			a.Alias("/g/short", "/g/where/am")
			a.Alias("/again", "/alias")
			sess := pair(t, register(a))
			require.Equal(t, "/g/where/am /g/where/am ", pull(t, sess, "/g/where/am"))
			require.Equal(t, "/g/where/am /g/where/am ", pull(t, sess, "/alias"))
			require.Equal(t, "/g/where/am /g/where/am?x=1&y=/alias 1", pull(t, sess, "/alias?x=1&y=/alias"))
			require.Equal(t, "/g/where/am /g/where/am?x=2 2", pull(t, sess, "/g/short?x=2"))
			require.Equal(t, `404 not found: nothing here takes pulls to "/again"`, pull(t, sess, "/again"))
			require.Equal(t, `404 not found: nothing here takes pulls to "/alias/"`, pull(t, sess, "/alias/"))
			a.Alias("/new", "/g/where/am") // while it serves
			require.Equal(t, "/g/where/am /g/where/am? ", pull(t, sess, "/new?"))
		})
	}
}

func TestAliasForPushes(t *testing.T) {
	a := alias.New()
	a.Alias("/told", "/told/of")
	p := tp.NewPeer(nil)
	told := &Told{Got: make(chan string, 1)}
	p.PushRouter.Reg(told, a)
	sess := pair(t, p)
	require.Nil(t, sess.Push("/told?x=1", "it"))
	require.Equal(t, "/told/of?x=1 it", <-told.Got)
}

func TestAliasRefusesWhatIsNoPath(t *testing.T) {
	a := alias.New()
	require.Equal(t, "alias", a.Name())
	for _, c := range [][2]string{{"a", "/b"}, {"/a", "b"}, {"/a?x", "/b"}, {"/a", "/b?x"}, {"", "/b"}} {
		require.Panics(t, func() { a.Alias(c[0], c[1]) })
	}
}

func Example() {
	short := alias.New()
	short.Alias("/am", "/where/am")
	srv, cli := tp.NewPeer(nil, short), tp.NewPeer(nil)
	defer srv.Close()
	defer cli.Close()
	srv.PullRouter.Reg(new(Where))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go srv.Serve(ln)
	sess, err := cli.Dial(ln.Addr().String())
	if err != nil {
		panic(err)
	}
	var reply string
	if cmd := sess.Pull("/am?x=here", nil, &reply); cmd.Xerror != nil {
		panic(cmd.Xerror)
	}
	fmt.Println(reply)
	// Output: /where/am /where/am?x=here here
}
