package tp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/internal/race"
	"github.com/henrylee2cn/teleport/packet"
)

type note struct{ N int }

// open opens a stream by the session.
func open[Out, In any](t *testing.T, sess *Session, uri string, setting ...PacketSetting) *Stream[Out, In] {
	t.Helper()
	s, err := OpenStream[Out, In](t.Context(), sess, uri, setting...)
	require.NoError(t, err)
	return s
}

func requireXerror(t *testing.T, err error, code int32) Xerror {
	t.Helper()
	var x Xerror
	require.ErrorAs(t, err, &x)
	require.Equal(t, code, x.Code(), "%v", err)
	return x
}

// echoStream serves /echo: each value comes back with one added, until the opener sends no more.
func echoStream(r *PullRouter) {
	HandleStream(r, "/echo", func(ctx PullCtx, s *Stream[note, note]) Xerror {
		for v, err := range s.All() {
			if err != nil {
				return NewXerror(StatusInternalServerError, err.Error())
			}
			if err := s.Send(&note{v.N + 1}); err != nil {
				return NewXerror(StatusInternalServerError, err.Error())
			}
		}
		return nil
	})
}

// Either side may open a stream, and values arrive in order, each once, in both directions at the same time.
func TestStreamsOfBothSides(t *testing.T) {
	for _, set := range [][]PacketSetting{nil, {WithGzip(5)}, {WithHeaderCodec("json")}} {
		a, b := newTestPeer(t, nil), newTestPeer(t, nil)
		echoStream(a.PullRouter)
		echoStream(b.PullRouter)
		sess, back := connect(t, a, b, pipe.Options{})
		var wg sync.WaitGroup
		for _, from := range []*Session{sess, back} {
			for range 4 {
				wg.Go(func() {
					const n = 3000
					s := open[note, note](t, from, "/echo", set...)
					go func() {
						for i := range n {
							if err := s.Send(&note{i}); err != nil {
								t.Error(err)
								return
							}
						}
						if err := s.CloseSend(); err != nil {
							t.Error(err)
						}
					}()
					for i := range n {
						v, err := s.Recv()
						if err != nil || v.N != i+1 {
							t.Errorf("value %d is %v, %v", i, v, err)
							return
						}
					}
					for range 2 {
						if _, err := s.Recv(); err != io.EOF {
							t.Error(err)
						}
					}
					<-s.Context().Done()
					if err := s.Send(new(note)); !errors.Is(err, ErrStreamClosed) {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
		requireNoStreams(t, sess, back)
	}
}

// requireNoStreams: nothing is left of the streams of the two sides.
func requireNoStreams(t *testing.T, sessions ...*Session) {
	t.Helper()
	for _, s := range sessions {
		cn := s.conn.Load()
		left := func() []int64 {
			return []int64{int64(cn.streams.Len()), int64(cn.pulls.Len()), cn.handlers.Load(),
				int64(cn.calls.Len()), cn.inBudget.Used(), int64(cn.flow.Pulls.Unanswered())}
		}
		require.Eventually(t, func() bool { return slices.Max(left()) == 0 }, 20*time.Second,
			time.Millisecond, "%v", left())
	}
}

// What ends a stream, and what both sides see then.
func TestEndsOfStreams(t *testing.T) {
	type both = Stream[note, note]
	for name, tc := range map[string]struct {
		handler func(ctx PullCtx, s *both) error // what it returns is sent to the test
		opener  func(t *testing.T, s *both, cancel func(), sess, back *Session)
		saw     func(t *testing.T, err error) // of what the handler has returned
		status  Xerror                        // what the handler returns
	}{
		"values before an error are received": {
			handler: func(_ PullCtx, s *both) error {
				for i := range 100 {
					_ = s.Send(&note{i})
				}
				return nil
			},
			status: NewXerror(1234, "enough"),
			opener: func(t *testing.T, s *both, _ func(), _, _ *Session) {
				<-s.Context().Done()
				for i := range 100 {
					v, err := s.Recv()
					require.NoError(t, err)
					require.Equal(t, i, v.N)
				}
				for range 2 {
					_, err := s.Recv()
					require.Equal(t, "enough", requireXerror(t, err, 1234).Text())
					requireXerror(t, s.Send(new(note)), 1234)
				}
			},
		},
		"a panic": {
			handler: func(_ PullCtx, s *both) error {
				_ = s.Send(&note{1})
				panic("on purpose")
			},
			opener: func(t *testing.T, s *both, _ func(), _, _ *Session) {
				v, err := s.Recv()
				require.NoError(t, err)
				require.Equal(t, 1, v.N)
				_, err = s.Recv()
				requireXerror(t, err, StatusInternalServerError)
			},
		},
		"half close": {
			handler: func(_ PullCtx, s *both) error {
				_, err := s.Recv()
				if err != io.EOF {
					return err
				}
				return s.Send(&note{7})
			},
			opener: func(t *testing.T, s *both, _ func(), _, _ *Session) {
				require.NoError(t, s.CloseSend())
				require.NoError(t, s.CloseSend())
				require.ErrorIs(t, s.Send(new(note)), ErrStreamClosed)
				v, err := s.Recv()
				require.NoError(t, err)
				require.Equal(t, 7, v.N)
				_, err = s.Recv()
				require.Equal(t, io.EOF, err)
			},
			saw: func(t *testing.T, err error) { require.NoError(t, err) },
		},
		"half close of the handler": {
			handler: func(_ PullCtx, s *both) error {
				if err := s.CloseSend(); err != nil {
					return err
				}
				v, err := s.Recv()
				if err == nil && v.N != 3 {
					err = errors.New("another value")
				}
				return err
			},
			status: NewXerror(1234, ""),
			opener: func(t *testing.T, s *both, _ func(), _, _ *Session) {
				_, err := s.Recv()
				require.Equal(t, io.EOF, err)
				require.NoError(t, s.Send(&note{3}))
				<-s.Context().Done()
				_, err = s.Recv()
				requireXerror(t, err, 1234)
			},
			saw: func(t *testing.T, err error) { require.NoError(t, err) },
		},
		"the opener closes": {
			handler: func(ctx PullCtx, s *both) error {
				_, err := s.Recv()
				<-ctx.Context().Done()
				<-s.Context().Done()
				return errors.Join(err, s.Send(new(note)))
			},
			opener: func(t *testing.T, s *both, _ func(), _, _ *Session) {
				require.NoError(t, s.Close())
				require.NoError(t, s.Close())
				_, err := s.Recv()
				require.ErrorIs(t, err, ErrStreamClosed)
				require.ErrorIs(t, s.Send(new(note)), ErrStreamClosed)
				<-s.Context().Done()
			},
			saw: func(t *testing.T, err error) { requireXerror(t, err, StatusCanceled) },
		},
		"the opener's context": {
			handler: func(ctx PullCtx, s *both) error {
				_, err := s.Recv()
				return err
			},
			opener: func(t *testing.T, s *both, cancel func(), _, _ *Session) {
				cancel()
				_, err := s.Recv()
				requireXerror(t, err, StatusCanceled)
				requireXerror(t, s.Send(new(note)), StatusCanceled)
			},
			saw: func(t *testing.T, err error) { requireXerror(t, err, StatusCanceled) },
		},
		"close in the handler": {
			handler: func(ctx PullCtx, s *both) error {
				_ = s.Close()
				if err := s.Send(new(note)); !errors.Is(err, ErrStreamClosed) {
					return err
				}
				_, err := s.Recv()
				<-ctx.Context().Done() // the opener goes
				return err
			},
			opener: func(t *testing.T, s *both, cancel func(), _, _ *Session) {
				for s.Send(new(note)) == nil {
					time.Sleep(time.Millisecond)
				}
				requireXerror(t, s.Send(new(note)), StatusServiceUnavailable)
				cancel()
				_, err := s.Recv()
				requireXerror(t, err, StatusCanceled)
			},
			saw: func(t *testing.T, err error) { require.ErrorIs(t, err, ErrStreamClosed) },
		},
		"the opener's connection ends": {
			handler: func(ctx PullCtx, s *both) error {
				_, err := s.Recv()
				if err == nil { // what came before is received
					_, err = s.Recv()
				}
				return err
			},
			opener: func(t *testing.T, s *both, _ func(), sess, _ *Session) {
				require.NoError(t, s.Send(new(note)))
				require.NoError(t, sess.Close())
				_, err := s.Recv()
				requireXerror(t, err, StatusConnClosed)
				requireXerror(t, s.Send(new(note)), StatusConnClosed)
			},
			saw: func(t *testing.T, err error) { requireXerror(t, err, StatusConnClosed) },
		},
		"a handler that reads nothing": {
			handler: func(ctx PullCtx, s *both) error { return nil },
			opener: func(t *testing.T, s *both, _ func(), _, _ *Session) {
				_, err := s.Recv()
				require.Equal(t, io.EOF, err)
				require.ErrorIs(t, s.Send(new(note)), ErrStreamOver)
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := newTestPeer(t, nil), newTestPeer(t, nil)
				saw := make(chan error, 1)
				HandleStream(b.PullRouter, "/s", func(ctx PullCtx, s *both) Xerror {
					saw <- tc.handler(ctx, s)
					return tc.status
				})
				sess, back := connect(t, a, b, pipe.Options{})
				ctx, cancel := context.WithCancel(t.Context())
				s, err := OpenStream[note, note](ctx, sess, "/s")
				require.NoError(t, err)
				tc.opener(t, s, cancel, sess, back)
				cancel()
				if tc.saw != nil {
					tc.saw(t, <-saw)
				}
				synctest.Wait()
				requireNoStreams(t, sess, back)
			})
		})
	}
}

// The opener's deadline travels to the handler and ends the stream on both sides.
func TestDeadlineOfAStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newTestPeer(t, &PeerConfig{DefaultPullTimeout: time.Millisecond}), newTestPeer(t, nil)
		saw := make(chan error, 1)
		HandleStream(b.PullRouter, "/s", func(ctx PullCtx, s *Stream[note, note]) Xerror {
			_, err := s.Recv()
			saw <- err
			return nil
		})
		sess, back := connect(t, a, b, pipe.Options{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		start := time.Now()
		s, err := OpenStream[note, note](ctx, sess, "/s")
		require.NoError(t, err)
		_, err = s.Recv()
		requireXerror(t, err, StatusDeadlineExceeded)
		requireXerror(t, <-saw, StatusDeadlineExceeded)
		require.Equal(t, time.Hour, time.Since(start).Round(time.Second))
		requireNoStreams(t, sess, back)
	})
}

// A side that does not receive stops its own sender, and nothing else of the session; what waits is bounded.
func TestStreamThatIsNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newTestPeer(t, nil), newTestPeer(t, nil)
		pullFn(b, echo)
		echoStream(b.PullRouter)
		release := make(chan struct{})
		HandleStream(b.PullRouter, "/stuck", func(ctx PullCtx, s *Stream[note, string]) Xerror {
			<-release
			n := 0
			for _, err := range s.All() {
				if err != nil {
					return NewXerror(StatusInternalServerError, err.Error())
				}
				n++
			}
			_ = s.Send(&note{n})
			return nil
		})
		sess, back := connect(t, a, b, pipe.Options{})
		for name, size := range map[string]int{"small": 10, "large": 50_000,
			"larger than the window": 400_000} {
			s := open[string, note](t, sess, "/stuck")
			var sent atomic.Int64
			done := make(chan struct{})
			text := strings.Repeat("x", size)
			go func() {
				defer close(done)
				for range 20_000_000 / max(size, 1000) {
					if err := s.Send(&text); err != nil {
						t.Error(err)
					}
					sent.Add(1)
				}
				_ = s.CloseSend()
			}()
			synctest.Wait()
			require.Less(t, sent.Load()*int64(size), int64(700_000), name)
			held := back.conn.Load().inBudget.Used()
			require.Less(t, held, int64(2_000_000), name) // three buffers of 512 KiB, and what they cost
			requireAlive(t, sess)
			other := open[note, note](t, sess, "/echo")
			for i := range 100 {
				require.NoError(t, other.Send(&note{i}))
				v, err := other.Recv()
				require.NoError(t, err)
				require.Equal(t, i+1, v.N)
			}
			require.NoError(t, other.Close())
			release <- struct{}{}
			<-done
			v, err := s.Recv()
			require.NoError(t, err)
			require.EqualValues(t, sent.Load(), v.N)
			synctest.Wait()
		}
		requireNoStreams(t, sess, back)
	})
}

// Large data goes through a stream with little memory, and arrives as it was.
func TestBytesOfAStream(t *testing.T) {
	a, b := newTestPeer(t, nil), newTestPeer(t, nil)
	HandleStream(b.PullRouter, "/copy", func(ctx PullCtx, s *Stream[[]byte, []byte]) Xerror {
		w := s.Writer()
		if _, err := io.Copy(w, s.Reader()); err != nil {
			return NewXerror(StatusInternalServerError, err.Error())
		}
		if err := w.Close(); err != nil {
			return NewXerror(StatusInternalServerError, err.Error())
		}
		return nil
	})
	sess, back := connect(t, a, b, pipe.Options{})
	for _, set := range [][]PacketSetting{nil, {WithGzip(1)}} {
		for _, size := range []int{0, 1, 1000, 65535, 65536, 65537, 3_000_000} {
			data := make([]byte, size)
			for i := range data {
				data[i] = byte(rand.Uint32() % 7)
			}
			s := open[[]byte, []byte](t, sess, "/copy", set...)
			go func() {
				w := s.Writer()
				if _, err := w.Write(data[:size/2]); err != nil {
					t.Error(err)
				}
				if _, err := io.Copy(w, bytes.NewReader(data[size/2:])); err != nil {
					t.Error(err)
				}
				if err := w.Close(); err != nil {
					t.Error(err)
				}
			}()
			r := s.Reader()
			got := make([]byte, 0, size)
			some := make([]byte, 777)
			for len(got) < size/3 { // by Read, and the rest by WriteTo
				n, err := r.Read(some)
				require.NoError(t, err)
				got = append(got, some[:n]...)
			}
			var rest bytes.Buffer
			_, err := io.Copy(&rest, r)
			require.NoError(t, err)
			require.True(t, bytes.Equal(data, append(got, rest.Bytes()...)), "%d bytes", size)
		}
	}
	requireNoStreams(t, sess, back)
	s := open[note, note](t, sess, "/copy")
	_, err := s.Reader().Read(make([]byte, 1))
	require.ErrorContains(t, err, "expected []byte")
	_, err = s.Writer().Write([]byte("x"))
	require.ErrorContains(t, err, "expected []byte")
	require.NoError(t, s.Close())
}

// A reader that is closed stops the sender, and the other direction goes on.
func TestCloseOfAReader(t *testing.T) {
	a, b := newTestPeer(t, nil), newTestPeer(t, nil)
	HandleStream(b.PullRouter, "/some", func(ctx PullCtx, s *Stream[note, []byte]) Xerror {
		r := s.Reader()
		_, _ = io.ReadFull(r, make([]byte, 10))
		_ = r.Close()
		if err := s.Send(&note{5}); err != nil { // whose codec is not that of the bytes
			return NewXerror(StatusInternalServerError, err.Error())
		}
		return nil
	})
	sess, back := connect(t, a, b, pipe.Options{})
	s := open[[]byte, note](t, sess, "/some")
	_, err := io.Copy(s.Writer(), zeros{})
	require.Error(t, err)
	v, err := s.Recv()
	require.NoError(t, err)
	require.Equal(t, 5, v.N)
	_, err = s.Recv()
	require.Equal(t, io.EOF, err)
	requireNoStreams(t, sess, back)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// Mistakes have an error that says what was wrong, and nothing else is lost.
func TestMistakesWithStreams(t *testing.T) {
	a, b := newTestPeer(t, nil), newTestPeer(t, &PeerConfig{MaxSessionStreams: 3})
	pullFn(b, echo)
	echoStream(b.PullRouter)
	HandleStream(b.PullRouter, "/text", func(ctx PullCtx, s *Stream[string, string]) Xerror {
		for v, err := range s.All() {
			if err != nil {
				text := "error: " + err.Error()
				v = &text
			}
			_ = s.Send(v)
		}
		return nil
	})
	sess, back := connect(t, a, b, pipe.Options{})

	for uri, text := range map[string]string{
		"/fn/call": `not found: nothing here takes streams to "/fn/call", it is a route for pulls`,
		"/nosuch":  `not found: nothing here takes streams to "/nosuch"`,
	} {
		s := open[note, note](t, sess, uri)
		_, err := s.Recv()
		require.Equal(t, text, requireXerror(t, err, StatusNotFound).Text())
	}
	x := sess.Pull("/echo", 1, nil).Xerror
	require.Equal(t, `not found: nothing here takes pulls to "/echo", it is a route for streams`, x.Text())

	// values that do not encode, or decode
	s := open[interface{}, string](t, sess, "/text")
	bad, good := interface{}(func() {}), interface{}("x")
	requireXerror(t, s.Send(&bad), StatusWriteFailed)
	requireXerror(t, s.Send(nil), StatusBadRequest)
	require.NoError(t, s.Send(&good))
	v, err := s.Recv()
	require.NoError(t, err)
	require.Equal(t, "x", *v)
	n := interface{}(5)
	require.NoError(t, s.Send(&n))
	v, err = s.Recv()
	require.NoError(t, err)
	require.Contains(t, *v, "this side cannot take the value")
	require.NoError(t, s.Close())
	requireNoStreams(t, sess, back)

	// more streams than may be open
	var open3 []*Stream[note, note]
	for range 3 {
		s := open[note, note](t, sess, "/echo")
		require.NoError(t, s.Send(new(note)))
		_, err := s.Recv()
		require.NoError(t, err)
		open3 = append(open3, s)
	}
	over := open[note, note](t, sess, "/echo")
	_, err = over.Recv()
	require.True(t, NotRun(requireXerror(t, err, StatusOverloaded)))
	require.NoError(t, open3[0].CloseSend())
	_, err = open3[0].Recv()
	require.Equal(t, io.EOF, err)
	require.Eventually(t, func() bool { return back.conn.Load().streams.Len() == 2 }, 20*time.Second,
		time.Millisecond)
	again := open[note, note](t, sess, "/echo")
	require.NoError(t, again.Send(new(note)))
	_, err = again.Recv()
	require.NoError(t, err)
	for _, s := range append(open3[1:], again) {
		require.NoError(t, s.Close())
	}
	requireNoStreams(t, sess, back)
	requireAlive(t, sess)
}

// A side that does not know streams says so, once it was asked.
func TestStreamToASideThatDoesNotKnowThem(t *testing.T) {
	srv := newTestPeer(t, nil)
	pullFn(srv, echo)
	sess, _ := connect(t, newTestPeer(t, nil), withoutCredit(srv), pipe.Options{})
	_, err := OpenStream[note, note](t.Context(), sess, "/echo")
	x := requireXerror(t, err, StatusUnsupportedType)
	require.Contains(t, x.Text(), "does not know streams")
	require.True(t, NotRun(x))
	requireAlive(t, sess)
}

// A side that does not even say that it does not know streams holds nobody up for ever.
func TestStreamToASideThatSaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, sess, raw := rawFlow(t, &PeerConfig{KeepAlive: -1})
		go func() {
			for raw.receive() != nil {
			}
		}()
		start := time.Now()
		_, err := OpenStream[note, note](context.Background(), sess, "/echo")
		x := requireXerror(t, err, StatusDeadlineExceeded)
		require.True(t, NotRun(x))
		require.Contains(t, x.Text(), "has not said for 30s whether it knows streams")
		require.Equal(t, 30*time.Second, time.Since(start))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = OpenStream[note, note](ctx, sess, "/echo")
		requireXerror(t, err, StatusDeadlineExceeded)
		_ = sess.Close()
		_, err = OpenStream[note, note](t.Context(), sess, "/echo")
		requireXerror(t, err, StatusConnClosed)
	})
}

// Shutdown tells the streams of both sides by their context, and waits for them.
func TestShutdownWithStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newTestPeer(t, nil), newTestPeer(t, nil)
		HandleStream(b.PullRouter, "/feed", func(ctx PullCtx, s *Stream[string, string]) Xerror {
			<-s.Context().Done()
			if !errors.Is(context.Cause(s.Context()), ErrPeerClosed) || ctx.Context().Err() != nil {
				return NewXerror(StatusInternalServerError, fmt.Sprint(context.Cause(s.Context())))
			}
			text := "the last one"
			if err := s.Send(&text); err != nil {
				return NewXerror(StatusInternalServerError, err.Error())
			}
			return nil
		})
		sess, _ := connect(t, a, b, pipe.Options{})
		s := open[string, string](t, sess, "/feed")
		synctest.Wait()
		down := make(chan error, 1)
		go func() { down <- b.Shutdown(t.Context()) }()
		v, err := s.Recv()
		require.NoError(t, err)
		require.Equal(t, "the last one", *v)
		_, err = s.Recv()
		require.Equal(t, io.EOF, err)
		require.NoError(t, <-down)
		_, err = OpenStream[string, string](t.Context(), sess, "/feed")
		require.Error(t, err)
	})
}

// A stream that does not end is abandoned with the shutdown's context.
func TestShutdownDoesNotWaitForEverForAStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newTestPeer(t, nil), newTestPeer(t, nil)
		HandleStream(b.PullRouter, "/feed", func(ctx PullCtx, s *Stream[string, string]) Xerror {
			<-ctx.Context().Done()
			return nil
		})
		sess, _ := connect(t, a, b, pipe.Options{})
		s := open[string, string](t, sess, "/feed")
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorContains(t, b.Shutdown(ctx), "abandoned 1 running handlers")
		_, err := s.Recv()
		requireXerror(t, err, StatusConnClosed)
	})
}

type valueHooks struct {
	sent, received atomic.Int64
	refuse         atomic.Pointer[xerror]
}

func (*valueHooks) Name() string { return "values" }

func (h *valueHooks) PreWriteValue(ctx WriteCtx) error {
	h.sent.Add(1)
	if x := h.refuse.Load(); x != nil {
		return x
	}
	if ctx.Output().Body == nil || ctx.Output().Header.Type == packet.TypePull {
		return errors.New("no value")
	}
	return nil
}

func (h *valueHooks) PostReadValue(ctx ReadCtx) error {
	h.received.Add(1)
	if ctx.Input().Body == nil || ctx.Input().Header.Uri != "/echo" {
		return errors.New("no value")
	}
	return nil
}

func TestHooksOfValues(t *testing.T) {
	var ofA, ofB valueHooks
	a, b := newTestPeer(t, nil, &ofA), newTestPeer(t, nil, &ofB)
	echoStream(b.PullRouter)
	sess, back := connect(t, a, b, pipe.Options{})
	s := open[note, note](t, sess, "/echo")
	for i := range 10 {
		require.NoError(t, s.Send(&note{i}))
		_, err := s.Recv()
		require.NoError(t, err)
	}
	ofA.refuse.Store(newXerror(1234, "not this one", nil))
	requireXerror(t, s.Send(new(note)), 1234)
	ofA.refuse.Store(nil)
	require.NoError(t, s.Send(new(note)))
	_, err := s.Recv()
	require.NoError(t, err)
	require.Equal(t, []int64{12, 11, 11, 11}, []int64{ofA.sent.Load(), ofA.received.Load(), ofB.sent.Load(),
		ofB.received.Load()})
	require.NoError(t, s.CloseSend())
	_, err = s.Recv()
	require.Equal(t, io.EOF, err)
	requireNoStreams(t, sess, back)
}

// A session that redials ends its streams with the connection, and opens new ones by the next.
func TestStreamsOfASessionThatRedials(t *testing.T) {
	srv := newTestPeer(t, nil)
	echoStream(srv.PullRouter)
	cli := newTestPeer(t, &PeerConfig{Redial: &Redial{MinBackoff: time.Millisecond}})
	sess, err := cli.Dial(serve(t, srv))
	require.NoError(t, err)
	s := open[note, note](t, sess, "/echo")
	_ = sess.conn.Load().fail(errors.New("cut"))
	_, err = s.Recv()
	requireXerror(t, err, StatusConnClosed)
	again := open[note, note](t, sess, "/echo")
	require.NoError(t, again.Send(&note{1}))
	v, err := again.Recv()
	require.NoError(t, err)
	require.Equal(t, 2, v.N)
	require.NoError(t, again.Close())
}

// Metadata goes to the handler, and back with the end.
func TestMetaOfAStream(t *testing.T) {
	a, b := newTestPeer(t, nil), newTestPeer(t, nil)
	HandleStream(b.PullRouter, "/m", func(ctx PullCtx, s *Stream[note, note]) Xerror {
		ctx.SetMeta("back", s.Meta()["key"]+"!")
		return nil
	})
	sess, _ := connect(t, a, b, pipe.Options{})
	s := open[note, note](t, sess, "/m", WithMeta("key", "value"))
	_, err := s.Recv()
	require.Equal(t, io.EOF, err)
	<-s.Context().Done()
	require.Equal(t, map[string]string{"back": "value!"}, s.Meta())
}

// What a side gets that sends values beyond its credit, or nonsense about credit; and what is only dropped.
func TestStreamCreditThatIsBroken(t *testing.T) {
	value := func(typ int32, id string, n int) *packet.Packet {
		p := &packet.Packet{Header: &packet.Header{Type: typ, Id: id}, BodyCodec: "string"}
		if n > 0 {
			p.Body = strings.Repeat("x", n)
		}
		return p
	}
	says := func(id, key, word string) *packet.Packet {
		return &packet.Packet{Header: &packet.Header{Type: packet.TypeCredit, Id: id,
			Meta: map[string]string{key: word}}}
	}
	open := func(id, uri string) *packet.Packet {
		return &packet.Packet{Header: &packet.Header{Type: packet.TypeOpen, Id: id, Uri: uri},
			Body: packet.RawBody{'s'}}
	}
	many := func(p *packet.Packet, n int) (list []*packet.Packet) {
		for range n {
			list = append(list, p)
		}
		return list
	}
	const val, overdrawn = packet.TypeValue, "more was sent than was granted"
	type list = []*packet.Packet
	for name, c := range map[string]struct {
		sends list
		want  string // empty if the session goes on
	}{
		"within credit":           {many(value(val, "a", 50_000), 5), ""},
		"beyond credit":           {many(value(val, "a", 50_000), 6), overdrawn},
		"large ones beyond":       {many(value(val, "a", 400_000), 2), overdrawn},
		"very many beyond":        {many(value(val, "a", 1), 50_000), overdrawn},
		"of no stream":            {many(value(val, "b", 50_000), 20), ""},
		"of the wrong side":       {many(value(packet.TypeAnswer, "a", 50_000), 20), ""},
		"behind the end":          {list{value(val, "a", 0), value(val, "a", 5)}, ""},
		"a grant that is no sum":  {list{says("a", "answerer", "much")}, `is granted "much"`},
		"a negative grant":        {list{says("a", "answerer", "-1")}, `is granted "-1"`},
		"a grant that overflows":  {list{says("a", "answerer", "9223372036854775808")}, "is granted"},
		"a grant without bounds":  {list{says("a", "answerer", "9223372036854775807")}, ""},
		"a grant less than first": {list{says("a", "answerer", "1"), says("a", "answerer", "0")}, ""},
		"a grant of no stream":    {list{says("b", "answerer", "much"), says("a", "opener", "much")}, ""},
		"waits again and again":   {many(says("a", "opener", "waits"), 1000), ""},
		"over again and again":    {many(says("a", "answerer", "over"), 1000), ""},
		"an id twice":             {many(open("a", "/stuck"), 3), ""},
		"no codec": {list{{Header: &packet.Header{Type: packet.TypeOpen, Id: "c",
			Uri: "/stuck"}}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, sess, raw := rawFlow(t, nil)
				pullFn(p, echo)
				HandleStream(p.PullRouter, "/stuck", func(ctx PullCtx, s *Stream[string, string]) Xerror {
					<-ctx.Context().Done()
					return nil
				})
				go func() {
					for raw.receive() != nil {
					}
				}()
				require.NoError(t, raw.sock.WritePacket(open("a", "/stuck")))
				for _, s := range c.sends {
					if raw.sock.WritePacket(s) != nil {
						break // the session has ended already
					}
				}
				synctest.Wait()
				if c.want == "" {
					require.NoError(t, sess.Err())
					return
				}
				require.ErrorContains(t, sess.Err(), c.want)
				require.Less(t, sess.conn.Load().inBudget.Used(), int64(1_000_000))
			})
		})
	}
}

// Values are printed as bodies are, and a stream that is open for long is not a slow call.
func TestLogOfStreams(t *testing.T) {
	cfg := &PeerConfig{PrintBody: true, SlowCometDuration: time.Nanosecond}
	a, b := newTestPeer(t, cfg), newTestPeer(t, cfg)
	echoStream(b.PullRouter)
	sess, _ := connect(t, a, b, pipe.Options{})
	c := captureLog(t, LevelInfo)
	s := open[note, note](t, sess, "/echo")
	require.NoError(t, s.Send(&note{41}))
	_, err := s.Recv()
	require.NoError(t, err)
	c.next(t, "value-send", "/echo", `{"N":41}`)
	c.next(t, "value-receive", "/echo", `{"N":41}`)
	c.next(t, "value-send", "/echo", `{"N":42}`)
	c.next(t, "value-receive", "/echo", `{"N":42}`)
	require.NoError(t, s.CloseSend())
	_, err = s.Recv()
	require.Equal(t, io.EOF, err)
	for _, what := range []string{"stream-handle", "stream-launch"} {
		require.NotContains(t, c.next(t, what, "/echo", "200 OK"), "slow")
	}
}

// Both sides are saturated, by streams that echo and by pulls, over a connection that holds very little:
// nothing waits for ever, and nothing is lost.
func TestBothSidesSaturated(t *testing.T) {
	values, pulls := 1500, 40
	if race.Enabled {
		values, pulls = 300, 10
	}
	for _, buffer := range []int{64, 5000} {
		a, b := newTestPeer(t, nil), newTestPeer(t, nil)
		for _, p := range []*Peer{a, b} {
			pullFn(p, echo)
			HandleStream(p.PullRouter, "/texts", func(ctx PullCtx, s *Stream[string, string]) Xerror {
				for v, err := range s.All() {
					if err != nil {
						return NewXerror(StatusInternalServerError, err.Error())
					}
					if err := s.Send(v); err != nil {
						return NewXerror(StatusInternalServerError, err.Error())
					}
				}
				return nil
			})
		}
		sess, back := connect(t, a, b, pipe.Options{Buffer: buffer})
		var wg sync.WaitGroup
		for _, from := range []*Session{sess, back} {
			for n := range 4 {
				wg.Go(func() {
					s := open[string, string](t, from, "/texts")
					text := strings.Repeat("x", 1+n*3000)
					go func() {
						for range values {
							if err := s.Send(&text); err != nil {
								t.Error(err)
								return
							}
						}
						_ = s.CloseSend()
					}()
					got := 0
					for v, err := range s.All() {
						if err != nil || *v != text {
							t.Error(err)
							return
						}
						got++
					}
					if got != values {
						t.Errorf("%d of %d values", got, values)
					}
				})
			}
			for range 100 {
				wg.Go(func() {
					for i := range pulls {
						var got int
						if x := from.Pull("/fn/call", i, &got).Xerror; x != nil || got != i {
							t.Error(x)
						}
					}
				})
			}
		}
		wg.Wait()
		requireNoStreams(t, sess, back)
	}
}

// Who receives the end of a stream finds it over, with the metadata of the end.
func TestMetadataIsThereWithTheEnd(t *testing.T) {
	srv := newTestPeer(t, nil)
	HandleStream(srv.PullRouter, "/s", func(ctx PullCtx, s *Stream[string, string]) Xerror {
		ctx.SetMeta("k", "v")
		return NewXerror(1234, "over")
	})
	sess, err := newTestPeer(t, nil).Dial(serve(t, srv))
	require.NoError(t, err)
	for range 2000 {
		s, err := OpenStream[string, string](t.Context(), sess, "/s")
		require.NoError(t, err)
		_, err = s.Recv()
		require.ErrorContains(t, err, "1234 over")
		select {
		case <-s.Done():
		default:
			t.Fatal("the stream is not over")
		}
		require.Equal(t, map[string]string{"k": "v"}, s.Meta())
	}
}
