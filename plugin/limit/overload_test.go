package limit_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/pipe"
	"github.com/henrylee2cn/teleport/internal/race"
	"github.com/henrylee2cn/teleport/plugin/limit"
)

// service is one that can do a number of calls a second, and no more: so many at a time, each for as long.
type service struct {
	places chan struct{}
	each   time.Duration
}

func newService(perSecond, places int) *service {
	return &service{make(chan struct{}, places),
		time.Duration(places) * time.Second / time.Duration(perSecond)}
}

func (s *service) handle(tp.PullCtx, *struct{}) (struct{}, tp.Xerror) {
	s.places <- struct{}{}
	time.Sleep(s.each)
	<-s.places
	return struct{}{}, nil
}

// second is what has come of the calls that began in a second.
type second struct {
	good, refused, late int
	p99                 time.Duration // of the good ones
}

// offer makes so many calls a second for a time, whatever becomes of them. Each caller waits for patience.
func offer(t testing.TB, sess *tp.Session, perSecond int, patience, during time.Duration) []second {
	n := int(during / time.Second)
	all, took := make([]second, n), make([][]time.Duration, n)
	var mu sync.Mutex
	var wg sync.WaitGroup
	random := rand.New(rand.NewPCG(1, 2))
	// Calls that nobody has agreed on come at random, as a Poisson process.
	start := time.Now()
	for past := time.Duration(0); past < during; {
		past += time.Duration(random.ExpFloat64() / float64(perSecond) * float64(time.Second))
		time.Sleep(time.Until(start.Add(past)))
		at := min(int(past/time.Second), n-1)
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			began := time.Now()
			x := sess.PullContext(ctx, "/work", struct{}{}, nil).Xerror
			mu.Lock()
			defer mu.Unlock()
			switch {
			case x == nil:
				all[at].good++
				took[at] = append(took[at], time.Since(began))
			case x.Code() == tp.StatusOverloaded:
				all[at].refused++
			default:
				all[at].late++
			}
		})
	}
	wg.Wait()
	for i := range all {
		if list := took[i]; len(list) > 0 {
			slices.Sort(list)
			all[i].p99 = list[len(list)*99/100]
		}
	}
	return all
}

// processor is a plugin in front of others by which calls get so far one by one only, as they do where they
// compute on one processor.
type processor struct{ free chan struct{} }

func (p *processor) Name() string { return "processor" }

func (p *processor) PreReadBody(tp.ReadCtx) error {
	p.free <- struct{}{}
	return nil
}

func (p *processor) PostCall(tp.CallCtx) error {
	<-p.free
	return nil
}

// run offers a service that can do perSecond calls times as many, in a time of its own. If oneByOne is set
// the calls wait for a processor, and otherwise for one of four places in the handler.
func run(t *testing.T, oneByOne bool, perSecond int, times float64, during time.Duration,
	plugins ...tp.Plugin) (all []second) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(perSecond, 4)
		if oneByOne {
			s = newService(perSecond, 1)
			plugins = append([]tp.Plugin{&processor{make(chan struct{}, 1)}}, plugins...)
		}
		srv := tp.NewPeer(&tp.PeerConfig{MaxSessionHandlers: -1, MaxHandlers: -1,
			MaxBufferedBytes: -1}, plugins...)
		cli := tp.NewPeer(nil)
		tp.HandlePull(srv.PullRouter, "/work", s.handle)
		ca, cb := pipe.New(pipe.Options{Buffer: 1 << 20})
		_, err := srv.ServeConn(ca)
		require.NoError(t, err)
		sess, err := cli.ServeConn(cb)
		require.NoError(t, err)
		all = offer(t, sess, int(times*float64(perSecond)), 100*time.Millisecond, during)
		require.NoError(t, srv.Shutdown(t.Context()))
		cli.Close()
	})
	return all
}

func sums(all []second) (good, p99 float64) {
	var times []time.Duration
	for _, s := range all {
		good += float64(s.good)
		times = append(times, s.p99)
	}
	slices.Sort(times)
	return good / float64(len(all)), times[len(times)*9/10].Seconds() * 1000
}

var picture = flag.String("picture", "", "draw what 60 s of three times the load do, into this SVG file")

// draw draws the good calls of each second with the limit and without.
func draw(with, without []second, most int) []byte {
	var b bytes.Buffer
	const width, height = 600, 200
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" `+
		`font-family="sans-serif" `+
		`font-size="12"><rect width="100%%" height="100%%" fill="white"/>`, width+80, height+60)
	line := func(all []second, color, name string, y int) {
		fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="2" points="`, color)
		for i, s := range all {
			fmt.Fprintf(&b, "%d,%d ", 50+i*width/len(all), 20+height-s.good*height/most)
		}
		fmt.Fprintf(&b, `"/><text x="%d" y="%d" fill="%s">%s</text>`, width/2, y, color, name)
	}
	fmt.Fprintf(&b, `<text x="5" y="25">%d</text><text x="30" y="%d">0</text>`+
		`<text x="50" y="%d">60 s of three `+
		`times the load that can be handled: calls a second that are answered within 100 ms</text>`, most, 20+height,
		height+50)
	line(with, "green", "with limit.Adaptive", 50)
	line(without, "red", "without", height)
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// Offered three times what it can do, a service with the adaptive limit does nearly as much as it can, and
// what is accepted does not wait long; without the limit it does next to nothing that anybody still waits
// for. The time is that of the test, so that the machine does not matter.
func TestOverload(t *testing.T) {
	const perSecond = 2000
	during := 12 * time.Second
	if race.Enabled {
		during = 4 * time.Second
	}
	for _, oneByOne := range []bool{false, true} {
		t.Run(fmt.Sprintf("one by one=%v", oneByOne), func(t *testing.T) {
			_, easy := sums(run(t, oneByOne, perSecond, 0.8, during, limit.New(limit.Adaptive()))[2:])
			adaptive := limit.New(limit.Adaptive())
			good, p99 := sums(run(t, oneByOne, perSecond, 3, during, adaptive)[2:])
			stats, ok := adaptive.Stats()
			require.True(t, ok)
			t.Logf("p99 %.2f ms at 0.8; at 3: %.0f calls/s of %d, p99 %.2f ms, %+v", easy, good, perSecond,
				p99, stats)
			require.Greater(t, good, 0.9*perSecond)
			require.Less(t, p99, 3*easy)
			bare, _ := sums(run(t, oneByOne, perSecond, 3, during)[2:])
			t.Logf("without the limit: %.0f calls/s", bare)
			require.Less(t, bare, 0.3*perSecond)
			require.Zero(t, stats.Running+stats.Waiting)
		})
	}
	if *picture != "" {
		const long = time.Minute
		require.NoError(t, os.WriteFile(*picture, draw(run(t, false, perSecond, 3, long,
			limit.New(limit.Adaptive())), run(t, false, perSecond, 3, long), perSecond), 0o644))
	}
}
