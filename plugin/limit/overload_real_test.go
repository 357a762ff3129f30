package limit_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/child"
	"github.com/henrylee2cn/teleport/plugin/limit"
)

// realServer is set in the environment of the process that is overloaded, to what bounds its calls.
const realServer = "TP_LIMIT_SERVER"

// How a server can bound its calls: by Adaptive, by what a peer has by default, and not at all.
const withAdaptive, withDefaults, withNothing = "adaptive", "defaults", "nothing"

// serveReal answers pulls that take half a millisecond of the one core that the process has.
func serveReal(how string) {
	cfg := &tp.PeerConfig{}
	var plugins []tp.Plugin
	switch how {
	case withAdaptive:
		plugins = append(plugins, limit.New(limit.Adaptive()))
		fallthrough
	case withNothing:
		cfg.MaxSessionHandlers, cfg.MaxHandlers, cfg.MaxBufferedBytes = -1, -1, -1
	}
	srv := tp.NewPeer(cfg, plugins...)
	var sum atomic.Uint64
	rounds := roundsFor(500 * time.Microsecond)
	tp.HandlePull(srv.PullRouter, "/work", func(tp.PullCtx, *struct{}) (struct{}, tp.Xerror) {
		sum.Add(compute(rounds))
		return struct{}{}, nil
	})
	child.Announce(srv.Serve)
}

// compute takes a time of the processor.
func compute(rounds int) (x uint64) {
	for i := range rounds {
		x = x*6364136223846793005 + uint64(i)
	}
	return x
}

// roundsFor returns how many rounds of compute take d.
func roundsFor(d time.Duration) int {
	const rounds = 10_000_000
	best := time.Hour
	for range 5 {
		start := time.Now()
		sink = compute(rounds)
		best = min(best, time.Since(start))
	}
	return int(rounds * d / best)
}

var sink uint64

// startReal starts a server, and returns a session with it.
func startReal(b *testing.B, how string) *tp.Session {
	_, addr := child.Start(b, []string{realServer + "=" + how, "GOMAXPROCS=1"})
	cli := tp.NewPeer(nil)
	b.Cleanup(func() { cli.Close() })
	sess, err := cli.Dial(addr)
	if err != nil {
		b.Fatal(err)
	}
	return sess
}

// capacity returns how many calls a second there are of four callers that each wait for the answer.
func capacity(sess *tp.Session, during time.Duration) int {
	var n atomic.Int64
	ctx, cancel := context.WithTimeout(context.Background(), during)
	defer cancel()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if sess.PullContext(ctx, "/work", struct{}{}, nil).Xerror == nil {
					n.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return int(float64(n.Load()) / during.Seconds())
}

// BenchmarkOverload is TestOverload in real time, on a server that computes, in a process of its own with one
// core. It takes some three minutes:
//
//	go test ./plugin/limit -run xxx -bench Overload -benchtime 1x
func BenchmarkOverload(b *testing.B) {
	const patience, during = 100 * time.Millisecond, time.Minute
	easy := startReal(b, withAdaptive)
	capacity(easy, time.Second)
	most := capacity(easy, 5*time.Second)
	_, p99 := sums(offer(b, easy, most*8/10, patience, 20*time.Second)[2:])
	b.Logf("it can do %d calls/s; offered 0.8 of that, 99%% are answered within %.1f ms", most, p99)
	for _, how := range []string{withAdaptive, withDefaults, withNothing} {
		b.Run(how, func(b *testing.B) {
			good, late := sums(offer(b, startReal(b, how), 3*most, patience, during)[2:])
			b.ReportMetric(good/float64(most), "of-capacity")
			b.ReportMetric(late, "p99-ms")
			b.ReportMetric(late/p99, "of-p99-at-0.8")
		})
	}
}
