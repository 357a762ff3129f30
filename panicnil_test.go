package tp

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
)

// nilPanicker is a body all of whose methods panic with nil.
type nilPanicker struct{}

func (*nilPanicker) String() string               { panic(nil) }
func (*nilPanicker) MarshalJSON() ([]byte, error) { panic(nil) }
func (*nilPanicker) UnmarshalJSON([]byte) error   { panic(nil) }

// In a program with GODEBUG=panicnil=1 recover returns nil for panic(nil). A panic still
// means that what panicked has failed.
func TestPanicWithNil(t *testing.T) {
	t.Setenv("GODEBUG", "panicnil=1")
	func() {
		defer func() { require.Nil(t, recover(), "the setting has no effect") }()
		panic(nil) //nolint
	}()
	panics := func(interface{}) error { panic(nil) }

	for _, c := range []struct {
		point string
		pull  string // what the caller is told
		ran   bool
	}{
		{"PostReadHeader", "424 failed plugin", false},
		{"PreReadBody", "424 failed plugin", false},
		{"PostReadBody", "424 failed plugin", false},
		{"PreWriteReply", "424 failed plugin", true},
		{"PostWriteReply", "", true},
	} {
		t.Run(c.point, func(t *testing.T) {
			ran := false
			srv, cli := newTestPeer(t, nil, hookPlugin("bad", c.point, panics)), newTestPeer(t, nil)
			pullFn(srv, func(PullCtx, interface{}) (interface{}, Xerror) { ran = true; return nil, nil })
			_, sess := connect(t, srv, cli, pipe.Options{})
			x := sess.Pull("/fn/call", 1, nil).Xerror
			if c.pull == "" {
				require.Nil(t, x)
			} else {
				require.EqualError(t, x, c.pull)
			}
			require.Equal(t, c.ran, ran)
		})
	}
	for _, point := range []string{"PreWritePull", "PreReadBody", "PostReadBody"} {
		t.Run("the caller's "+point, func(t *testing.T) {
			srv, cli := newTestPeer(t, nil), newTestPeer(t, nil, hookPlugin("bad", point, panics))
			pullFn(srv, echo)
			_, sess := connect(t, srv, cli, pipe.Options{})
			require.EqualError(t, sess.Pull("/fn/call", 1, nil).Xerror, "424 failed plugin")
		})
	}
	for _, point := range []string{"PostAccept", "PostDial"} {
		t.Run(point, func(t *testing.T) {
			bad := newTestPeer(t, nil, hookPlugin("bad", point, panics))
			a, b := pipe.New(pipe.Options{})
			defer b.Close()
			err := func(conn net.Conn) error {
				if point == "PostAccept" {
					_, err := bad.ServeConn(conn)
					return err
				}
				return bad.chain.postDial.run(&foreSession{sessionOfHooks: &Session{peer: bad}}).orNil()
			}(a)
			require.ErrorContains(t, err, "panic in "+point)
		})
	}
	t.Run("PostReg", func(t *testing.T) {
		srv := newTestPeer(t, nil, hookPlugin("bad", "PostReg", panics))
		require.PanicsWithValue(t, "tp: the route /fn/call is refused: plugin bad: panic in PostReg.",
			func() {
				pullFn(srv, echo)
			})
	})
	t.Run("the handler", func(t *testing.T) {
		srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
		pullFn(srv, func(PullCtx, interface{}) (interface{}, Xerror) { panic(nil) })
		_, sess := connect(t, srv, cli, pipe.Options{})
		require.EqualError(t, sess.Pull("/fn/call", 1, nil).Xerror, "500 internal server error")
	})
	t.Run("the body's own methods", func(t *testing.T) {
		srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
		HandlePull(srv.PullRouter, "/in", func(PullCtx, *nilPanicker) (int, Xerror) { return 1, nil })
		HandlePull(srv.PullRouter, "/out", func(PullCtx, *int) (*nilPanicker, Xerror) {
			return new(nilPanicker), nil
		})
		_, sess := connect(t, srv, cli, pipe.Options{})
		require.EqualValues(t, StatusBadRequest, sess.Pull("/in", 1, nil).Xerror.Code())
		require.EqualValues(t, StatusInternalServerError, sess.Pull("/out", 1, nil).Xerror.Code())
		require.NotNil(t, sess.Push("/in", new(nilPanicker)))
		require.Contains(t, printBody(new(nilPanicker)), "printing panicked")
	})
}
