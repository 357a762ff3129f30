package tptest_test

import (
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/tptest"
)

func TestDelay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		link := tptest.Pair(t, echoServer(nil), tp.NewPeer(nil),
			tptest.Both(tptest.Faults{Delay: time.Second}))
		began := time.Now()
		pullEcho(t, link.Client, "there and back")
		require.Equal(t, 2*time.Second, time.Since(began))
		link.ToServer.Set(tptest.Faults{Delay: 9 * time.Second})
		began = time.Now()
		pullEcho(t, link.Client, "slowly there")
		require.Equal(t, 10*time.Second, time.Since(began))
		link.Heal()
		began = time.Now()
		pullEcho(t, link.Client, "at once")
		require.Zero(t, time.Since(began))
	})
}

func TestBandwidth(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		link := tptest.Pair(t, echoServer(nil), tp.NewPeer(nil),
			tptest.ToServer(tptest.Faults{Bandwidth: 1000}))
		began := time.Now()
		pullEcho(t, link.Client, strings.Repeat("x", 10_000))
		require.InEpsilon(t, 10.0, time.Since(began).Seconds(), 0.05)
	})
}

// The connection is cut in the middle of a reply: the caller cannot know whether the pull has run.
func TestCutWithinAReply(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T) {
		link := tptest.Pair(t, echoServer(nil), tp.NewPeer(nil))
		link.ToClient.CutAfter(100)
		cmd := link.Client.Pull("/echo", strings.Repeat("x", 1000), new(string))
		require.Equal(t, tp.StatusConnClosed, cmd.Xerror.Code())
		require.False(t, tp.NotRun(cmd.Xerror))
		<-link.Client.Done()
		<-link.Server.Done()
	})
}

func TestCut(t *testing.T) {
	t.Parallel()
	for _, f := range []tptest.Faults{{}, {Silent: true}, {Stalled: true}, {Delay: time.Hour}} {
		inBoth(t, func(t *testing.T) {
			link := tptest.Pair(t, echoServer(nil), tp.NewPeer(nil), tptest.Both(f))
			link.Cut()
			<-link.Client.Done()
			<-link.Server.Done()
			require.ErrorContains(t, link.Client.Err(), "reset")
		})
	}
}

// Each fault is noticed by what it is meant to test.
func TestSilenceIsNoticed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		link := tptest.Pair(t, echoServer(nil), tp.NewPeer(&tp.PeerConfig{KeepAlive: 10 * time.Second}))
		link.Silence()
		require.True(t, link.ToServer.Faults().Silent)
		began := time.Now()
		cmd := link.Client.Pull("/echo", "is anybody there?", nil)
		require.Equal(t, tp.StatusConnClosed, cmd.Xerror.Code())
		require.InDelta(t, 20, time.Since(began).Seconds(), 5, "the question, and no answer to it")
		require.Nil(t, link.Server.Err(), "the other side has heard nothing of it")
	})
}

func TestStall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		link := tptest.Pair(t, echoServer(nil), tp.NewPeer(&tp.PeerConfig{KeepAlive: -1}))
		link.Stall()
		time.AfterFunc(time.Hour, link.Heal)
		began := time.Now()
		pullEcho(t, link.Client, "later")
		require.Equal(t, time.Hour, time.Since(began))
	})
}

// Somebody who writes into a stall is cut off by the write timeout, when the buffer is full.
func TestStallAndWriteTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		client := tp.NewPeer(&tp.PeerConfig{KeepAlive: -1, DefaultWriteTimeout: 5 * time.Second})
		link := tptest.Pair(t, echoServer(nil), client, tptest.Buffer(1000))
		link.Stall()
		began := time.Now()
		cmd := link.Client.Pull("/echo", strings.Repeat("x", 10_000), nil)
		require.NotNil(t, cmd.Xerror)
		require.InDelta(t, 5, time.Since(began).Seconds(), 1)
	})
}

// Bits that flip end a call or a session, and never the process; what arrives is not what was sent, or an
// error.
func TestFlips(t *testing.T) {
	t.Parallel()
	for seed := range uint64(50) {
		synctest.Test(t, func(t *testing.T) {
			client := tp.NewPeer(&tp.PeerConfig{DefaultPullTimeout: time.Minute})
			link := tptest.Pair(t, echoServer(nil), client)
			link.Set(tptest.Faults{FlipRate: 0.02, Seed: seed})
			for range 10 {
				if link.Client.Pull("/echo", "some text", new(string)).Xerror != nil {
					break
				}
			}
		})
	}
}

func TestFlipAt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		link := tptest.Pair(t, echoServer(nil), tp.NewPeer(nil))
		link.ToServer.Set(tptest.Faults{FlipAt: []int64{0}}) // of the length of the header
		cmd := link.Client.Pull("/echo", "x", nil)
		require.Equal(t, tp.StatusConnClosed, cmd.Xerror.Code())
		require.ErrorContains(t, link.Server.Err(), "header length")
	})
}

func TestFaultsThatCannotBe(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		f    tptest.Faults
		want string
	}{
		{tptest.Faults{Delay: -1}, "tptest: Faults.Delay: -1ns is negative"},
		{tptest.Faults{Bandwidth: -1}, "tptest: Faults.Bandwidth: -1 is negative"},
		{tptest.Faults{CutAfter: -1}, "tptest: Faults.CutAfter: -1 is negative; expected how many bytes"},
		{tptest.Faults{FlipAt: []int64{-1}}, "tptest: Faults.FlipAt[0]: -1 is negative"},
		{tptest.Faults{FlipRate: math.NaN()}, "tptest: Faults.FlipRate: NaN is no probability"},
		{tptest.Faults{FlipRate: 2}, "tptest: Faults.FlipRate: 2 is no probability"},
	} {
		for name, o := range map[string]func(tptest.Faults) tptest.Option{
			"Both": tptest.Both, "ToServer": tptest.ToServer, "ToClient": tptest.ToClient,
		} {
			said := run(t, func(t testing.TB) { tptest.Pair(t, echoServer(nil), tp.NewPeer(nil), o(tc.f)) })
			require.Contains(t, said, tc.want, name)
		}
		// A change that cannot be fails the test and changes nothing.
		said := run(t, func(t testing.TB) {
			link := tptest.Pair(t, echoServer(nil), tp.NewPeer(nil))
			link.Set(tc.f)
			link.ToClient.Set(tc.f)
			require.Zero(t, link.ToServer.Faults())
			pullEcho(t, link.Client, "as before")
		})
		require.Contains(t, said, tc.want)
	}
	said := run(t, func(t testing.TB) {
		link := tptest.Pair(t, echoServer(nil), tp.NewPeer(nil))
		link.ToClient.CutAfter(0)
	})
	require.Contains(t, said, "tptest: CutAfter: 0 is not positive; for a cut at once there is Cut")
}

func TestMistakes(t *testing.T) {
	t.Parallel()
	pair := func(o ...tptest.Option) func(t testing.TB) {
		return func(t testing.TB) { tptest.Pair(t, tp.NewPeer(nil), tp.NewPeer(nil), o...) }
	}
	for want, f := range map[string]func(t testing.TB){
		"tptest: Pair: the server is nil; expected a *tp.Peer": func(t testing.TB) {
			tptest.Pair(t, nil, tp.NewPeer(nil))
		},
		"tptest: Pair: the client is nil; expected a *tp.Peer": func(t testing.TB) {
			tptest.Pair(t, tp.NewPeer(nil), nil)
		},
		"tptest: TryPair: the client is nil": func(t testing.TB) {
			_, _ = tptest.TryPair(t, tp.NewPeer(nil), nil)
		},
		"tptest: Serve: the server is nil": func(t testing.TB) { tptest.NewNetwork(t).Serve("a:1", nil) },
		"tptest: Dial: the client is nil":  func(t testing.TB) { tptest.NewNetwork(t).Dial(nil, "a:1") },

		"tptest: Pair: option 2 of 2 is nil":               pair(tptest.Buffer(1<<10), nil),
		"tptest: Buffer: -1 is not positive":               pair(tptest.Buffer(-1)),
		"tptest: Address: it is empty; expected host:port": pair(tptest.Address("")),
		"tptest: Grace: -1s is negative; expected how":     pair(tptest.Grace(-time.Second)),

		"tptest: NewNetwork: option 1 of 1 is nil": func(t testing.TB) { tptest.NewNetwork(t, nil) },

		"nobody serves it on this network, where [a:1] are served:": dialOf("b:1", "a:1"),
	} {
		require.Contains(t, run(t, f), want)
	}
}

// dialOf dials an address of a network that serves another.
func dialOf(address, served string) func(t testing.TB) {
	return func(t testing.TB) {
		n := tptest.NewNetwork(t)
		n.Serve(served, tp.NewPeer(nil))
		n.Dial(tp.NewPeer(&tp.PeerConfig{DialContext: n.DialContext}), address)
	}
}
