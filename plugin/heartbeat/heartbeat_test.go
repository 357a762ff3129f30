package heartbeat_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/plugin/heartbeat"
)

func TestMain(m *testing.M) {
	tp.SetLogLevel(tp.LevelOff)
	goleak.VerifyTestMain(m)
}

// deaf is a connection whose other side gets nothing more when it is set.
type deaf struct {
	net.Conn
	set atomic.Bool
}

func (d *deaf) Write(p []byte) (int, error) {
	if d.set.Load() {
		return len(p), nil
	}
	return d.Conn.Write(p)
}

// lost keeps what a peer's sessions ended with.
type lost struct{ causes chan error }

func (lost) Name() string { return "lost" }

func (l lost) PostDisconnect(_ *tp.Session, cause error) error {
	l.causes <- cause
	return nil
}

func peer(plugins ...tp.Plugin) *tp.Peer {
	return tp.NewPeer(&tp.PeerConfig{KeepAlive: -1}, plugins...)
}

func join(t *testing.T, srv, cli *tp.Peer) (there, here *tp.Session, line *deaf) {
	ca, cb := pipe.New(pipe.Options{})
	line = &deaf{Conn: cb}
	served := make(chan *tp.Session, 1)
	go func() {
		sess, err := srv.ServeConn(ca)
		if err != nil {
			t.Error(err)
		}
		served <- sess
	}()
	here, err := cli.DialConn(t.Context(), line)
	require.NoError(t, err)
	return <-served, here, line
}

// Whichever side has the plugin notices that the other is silent, in time: its pulls end.
func TestSilentSide(t *testing.T) {
	for _, accepts := range []bool{false, true} {
		t.Run(fmt.Sprintf("accepts=%v", accepts), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				causes := lost{make(chan error, 1)}
				with := peer(heartbeat.New(heartbeat.Every(2*time.Second), heartbeat.Misses(3)), causes)
				without := peer()
				var sess *tp.Session
				var line *deaf
				if accepts {
					sess, _, line = join(t, with, without)
				} else {
					_, sess, line = join(t, without, with)
				}
				release := make(chan struct{})
				tp.HandlePull(without.PullRouter, "/wait", func(tp.PullCtx, *string) (string, tp.Xerror) {
					<-release
					return "", nil
				})
				cmd := sess.GoPull("/wait", "", nil, nil)
				time.Sleep(time.Hour) // the other side answers
				require.NoError(t, sess.Err())
				stats, ok := heartbeat.Of(sess)
				require.True(t, ok)
				require.Equal(t, 2*time.Second, stats.Interval)
				require.Equal(t, 3, stats.Misses)
				require.Positive(t, stats.Min)
				require.LessOrEqual(t, stats.Min, stats.Smoothed)

				line.set.Store(true)
				// If this side has accepted, what the other sends is lost, and otherwise what this side
				// sends.
				start := time.Now()
				<-cmd.Done()
				require.Equal(t, tp.StatusConnClosed, cmd.Xerror.Code())
				require.LessOrEqual(t, time.Since(start), 8*time.Second)
				require.Greater(t, time.Since(start), 4*time.Second)
				var silent *heartbeat.Silent
				require.ErrorAs(t, <-causes.causes, &silent)
				require.ErrorContains(t, silent, "and no answer to a heartbeat")
				close(release)
				with.Close()
				without.Close()
			})
		})
	}
}

// A busy connection is asked rarely, and one that is silent but answers is never ended.
func TestNobodyIsEndedWhoIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		with, without := peer(heartbeat.New(heartbeat.Every(time.Second))), peer()
		there, here, _ := join(t, without, with)
		tp.HandlePush(with.PushRouter, "/p", func(tp.PushCtx, *string) {})
		for range 600 { // it only receives
			time.Sleep(500 * time.Millisecond)
			require.Nil(t, there.Push("/p", ""))
		}
		stats, _ := heartbeat.Of(here)
		require.Positive(t, stats.Last, "it was measured all the same")
		require.Less(t, there.Socket().Reads(), uint32(600/2/10+10))
		time.Sleep(10 * time.Minute)
		require.NoError(t, here.Err())
		with.Close()
		without.Close()
	})
}

// The side that accepts says how often the other asks, unless that has Own; nonsense is not followed.
func TestLead(t *testing.T) {
	for _, own := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			options := []heartbeat.Option{heartbeat.Every(time.Minute)}
			if own {
				options = append(options, heartbeat.Own())
			}
			srv := peer(heartbeat.New(heartbeat.Every(2*time.Second), heartbeat.Misses(5), heartbeat.Lead()))
			cli := peer(heartbeat.New(options...))
			there, here, _ := join(t, srv, cli)
			require.Nil(t, here.Push("/x", "something comes"))
			time.Sleep(10 * time.Second)
			stats, _ := heartbeat.Of(here)
			if own {
				require.Equal(t, time.Minute, stats.Interval)
				require.Equal(t, 3, stats.Misses)
			} else {
				require.Equal(t, 2*time.Second, stats.Interval)
				require.Equal(t, 5, stats.Misses)
				other := peer()
				join(t, other, srv) // from now on srv takes such pushes
				require.Nil(t, here.Push("/tp-heartbeat", []byte(`{"every":3600000,"misses":1000}`),
					tp.WithBodyCodec("string")))
				for _, bad := range []string{`{"every":2000,"misses":1001}`, `{"every":9223372036854,"misses":3}`,
					`{"every":0,"misses":1}`, `{"every":-5,"misses":1}`,
					`{"every":99999999999,"misses":1}`, `{"every":2000,"misses":0}`} {
					require.Nil(t, there.Push("/tp-heartbeat", []byte(bad), tp.WithBodyCodec("string")))
				}
				time.Sleep(time.Second)
				stats, _ = heartbeat.Of(here)
				require.Equal(t, 2*time.Second, stats.Interval)
				require.Equal(t, 5, stats.Misses)
				stats, _ = heartbeat.Of(there)
				require.Equal(t, 2*time.Second, stats.Interval, "the side that has accepted follows nobody")
				other.Close()
			}
			srv.Close()
			cli.Close()
		})
	}
}

// A session that redials has its new connection looked after.
func TestRedial(t *testing.T) {
	srv := peer()
	defer srv.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go srv.Serve(ln)
	causes := lost{make(chan error, 10)}
	cli := tp.NewPeer(&tp.PeerConfig{Redial: &tp.Redial{}, KeepAlive: -1}, causes,
		heartbeat.New(heartbeat.Every(100*time.Millisecond), heartbeat.Misses(1)))
	defer cli.Close()
	// What the client sends, and what it gets, goes through a line that can be cut without a word.
	through := newLine(t, ln.Addr().String())
	sess, err := cli.Dial(through.addr)
	require.NoError(t, err)
	for range 2 {
		_, err = sess.Ping(t.Context())
		require.NoError(t, err)
		through.silence()
		var silent *heartbeat.Silent
		require.ErrorAs(t, <-causes.causes, &silent)
		require.Eventually(t, func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := sess.Ping(ctx)
			return err == nil
		}, 20*time.Second, 5*time.Millisecond)
	}
}

// line forwards TCP connections, until they are silenced: then they stay open and nothing goes through.
type line struct {
	addr string
	mute atomic.Pointer[atomic.Bool]
}

func newLine(t *testing.T, to string) *line {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l := &line{addr: ln.Addr().String()}
	l.mute.Store(new(atomic.Bool))
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			a, err := ln.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", to)
			if err != nil {
				a.Close()
				return
			}
			t.Cleanup(func() { a.Close(); b.Close() })
			mute := l.mute.Load()
			forward := func(to, from net.Conn) {
				buf := make([]byte, 4096)
				for {
					n, err := from.Read(buf)
					if err != nil {
						return
					}
					if !mute.Load() {
						_, _ = to.Write(buf[:n])
					}
				}
			}
			go forward(a, b)
			go forward(b, a)
		}
	}()
	return l
}

// silence silences the connections of now; those that follow go through.
func (l *line) silence() { l.mute.Swap(new(atomic.Bool)).Store(true) }

// The goroutine ends when there are no sessions, and a session that ends is not kept.
func TestNothingIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := heartbeat.New(heartbeat.Every(time.Second))
		srv, cli := peer(), peer(h)
		for range 3 {
			for range 100 {
				_, sess, _ := join(t, srv, cli)
				require.NoError(t, sess.Close())
			}
			time.Sleep(10 * time.Second) // looked at, and forgotten
			synctest.Wait()
		}
		srv.Close()
		cli.Close()
	}) // which fails if a goroutine is left
}

// Refused connections are forgotten, and nothing is sent to one in its handshake.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := tp.NewPeer(nil, heartbeat.New(heartbeat.Every(time.Second), heartbeat.Lead()), slow{})
		ca, cb := pipe.New(pipe.Options{})
		served := make(chan error, 1)
		go func() { _, err := srv.ServeConn(ca); served <- err }()
		_, err := cb.Write([]byte("\x00\x00"))
		require.NoError(t, err)
		time.Sleep(5 * time.Second)
		require.NoError(t, cb.SetReadDeadline(time.Now()))
		_, err = cb.Read(make([]byte, 1))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded, "nothing was sent")
		require.NoError(t, cb.Close())
		require.Error(t, <-served)
		time.Sleep(5 * time.Second)
		srv.Close()
	})
}

type slow struct{}

func (slow) Name() string { return "slow" }

func (slow) PostAccept(fore tp.ForeSession) error {
	_, err := fore.Receive(nil)
	if err == nil {
		err = errors.New("expected nothing")
	}
	return err
}

// Options that make no sense panic.
func TestMistakes(t *testing.T) {
	require.PanicsWithValue(t, "heartbeat: Every: 1ms is not between 100ms and 1h0m0s.",
		func() { heartbeat.Every(time.Millisecond) })
	require.PanicsWithValue(t, "heartbeat: Misses: 0 is not between 1 and 1000.",
		func() { heartbeat.Misses(0) })
	_, ok := heartbeat.Of(func() *tp.Session {
		a, b := peer(), peer()
		t.Cleanup(func() { a.Close(); b.Close() })
		_, sess, _ := join(t, a, b)
		return sess
	}())
	require.False(t, ok)
}

// A client that asks its server whether it is there when nothing has come for 100 ms, and that connects anew
// when nothing has come for 400 ms.
func Example() {
	srv := tp.NewPeer(nil)
	defer srv.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	go srv.Serve(ln)

	cli := tp.NewPeer(&tp.PeerConfig{Redial: &tp.Redial{}},
		heartbeat.New(heartbeat.Every(100*time.Millisecond), heartbeat.Misses(3)))
	defer cli.Close()
	sess, err := cli.Dial(ln.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	if _, err := sess.Ping(context.Background()); err != nil {
		fmt.Println(err)
		return
	}
	stats, ok := heartbeat.Of(sess)
	fmt.Println(ok, stats.Interval, stats.Misses)
	// Output: true 100ms 3
}

// BenchmarkSessions reports how much of a core the heartbeat of 10,000 silent sessions takes, both sides
// together, at the default interval of 15 s.
func BenchmarkSessions(b *testing.B) {
	for _, with := range []bool{false, true} {
		b.Run(fmt.Sprintf("heartbeat=%v", with), func(b *testing.B) {
			const sessions = 10_000
			srv, cli := peer(), peer()
			if with {
				cli = peer(heartbeat.New())
			}
			defer srv.Close()
			defer cli.Close()
			for range sessions {
				ca, cb := pipe.New(pipe.Options{Buffer: 512})
				go func() { _, _ = srv.ServeConn(ca) }()
				if _, err := cli.DialConn(b.Context(), cb); err != nil {
					b.Fatal(err)
				}
			}
			runtime.GC()
			const measured = 30 * time.Second
			before := cpu()
			time.Sleep(measured)
			b.ReportMetric(100*(cpu()-before).Seconds()/measured.Seconds(), "%core")
			for range b.N {
			}
		})
	}
}
