package tp

import (
	"errors"
	"io"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// Who pushes faster than the other side handles learns how many pushes were lost, by the end
// of the session, by PostDisconnect and, with Redial, also when the session goes on.
func TestPushesThatAreLostAreCounted(t *testing.T) {
	for _, redials := range []bool{false, true} {
		t.Run(map[bool]string{false: "without Redial", true: "with Redial"}[redials], func(t *testing.T) {
			var handled atomic.Uint64
			release := make(chan struct{})
			srv := newTestPeer(t, &PeerConfig{MaxSessionInput: 50_000, MaxSessionHandlers: 4})
			HandlePush(srv.PushRouter, "/note", func(PushCtx, *string) {
				handled.Add(1)
				<-release
			})
			causes := make(chan error, 10)
			cfg := &PeerConfig{}
			if redials {
				cfg.Redial = &Redial{}
			}
			cli := withoutCredit(newTestPeer(t, cfg, disconnected{causes}))
			sess := dial(t, cli, srv)
			require.NoError(t, sess.Err())
			sent := uint64(0)
			for len(causes) == 0 && sent < 1_000_000 {
				if x := sess.Push("/note", "a text of some length, so that they take memory"); x == nil {
					sent++
				} else if !redials {
					break
				}
			}
			cause := <-causes
			close(release)
			var lost *PushesLost
			require.ErrorAs(t, cause, &lost)
			require.Greater(t, lost.Sent, lost.Taken)
			require.LessOrEqual(t, lost.Sent, sent)
			require.Contains(t, cause.Error(), "did not keep up with the pushes")
			if !redials {
				require.Equal(t, sent, lost.Sent)
				<-sess.Done()
				require.ErrorAs(t, sess.Err(), &lost)
				require.NoError(t, srv.Shutdown(t.Context()))
				require.Equal(t, lost.Taken, handled.Load())
			}
		})
	}
}

// disconnected tells of the ends of connections.
type disconnected struct{ causes chan error }

func (disconnected) Name() string { return "disconnected" }

func (d disconnected) PostDisconnect(_ *Session, cause error) error {
	select {
	case d.causes <- cause:
	default:
	}
	return nil
}

func TestErrOfASession(t *testing.T) {
	srv, cli := newTestPeer(t, nil), newTestPeer(t, nil)
	far := make(chan *Session, 1)
	HandlePull(srv.PullRouter, "/a", func(ctx PullCtx, _ *int) (int, Xerror) {
		far <- ctx.Session()
		return 1, nil
	})
	sess := dial(t, cli, srv)
	require.Nil(t, sess.Pull("/a", 1, nil).Xerror)
	other := <-far
	require.NoError(t, sess.Err())
	require.NoError(t, sess.Close())
	require.EqualError(t, sess.Err(), "closed by this side")
	<-other.Done()
	require.True(t, errors.Is(other.Err(), io.EOF), "%v", other.Err())
}
