package main

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/henrylee2cn/teleport/internal/race"
)

// short is a scenario in little time. The race detector makes a simulation twenty times slower and has
// nothing to find there, as it is one goroutine, so these tests are skipped then.
func short(t *testing.T, of scenario) scenario {
	if race.Enabled {
		t.Skip("a simulation takes long under the race detector")
	}
	of.warmUp, of.length = 10*time.Second, 6*time.Second
	return of
}

func setupOf(t *testing.T, name string) setup {
	for _, how := range setups {
		if how.name == name {
			return how
		}
	}
	t.Fatalf("no setup is called %q", name)
	return setup{}
}

// With 2 of 20 servers ten times slower, 99% of the calls take at most 1.3 times as long as with a healthy
// fleet.
func TestSlowServersHurtLittle(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3) {
		healthy, sick := short(t, scenarios[0]), short(t, scenarios[1])
		well, ill := simulate(healthy, setups[0], seed), simulate(sick, setups[0], seed)
		ratio := float64(ill.p99) / float64(well.p99)
		t.Logf("seed %d: p99 %v, healthy %v: %.2f times", seed, ill.p99, well.p99, ratio)
		if ratio > 1.3 {
			t.Errorf("seed %d: p99 is %.2f times that of a healthy fleet, want 1.3 at most", seed, ratio)
		}
	}
	well, ill := simulate(short(t, scenarios[0]), setupOf(t, "least loaded"), 1),
		simulate(short(t, scenarios[1]), setupOf(t, "least loaded"), 1)
	if ill.p99 < 3*well.p99 {
		t.Errorf("least loaded does well too, so the simulation shows nothing: %v, healthy %v", ill.p99,
			well.p99)
	}
}

func TestServersThatFailAreLeft(t *testing.T) {
	t.Parallel()
	of := short(t, scenarios[3])
	of.warmUp = 2 * time.Second
	for _, how := range setups {
		r := simulate(of, how, 1)
		failed := float64(r.failed) / float64(r.calls)
		if how.eject && failed > 0.005 || !how.eject && failed < 0.03 {
			t.Errorf("%s, ejection %v: %.2f%% of the calls fail", how.name, how.eject, 100*failed)
		}
	}
}

func TestHedgesHaveABudget(t *testing.T) {
	t.Parallel()
	r := simulate(short(t, scenarios[1]), setupOf(t, "- with hedging"), 1)
	if r.extra == 0 || r.extra > 0.11 {
		t.Errorf("%.1f%% of the calls were made twice, want some and 10%% and a few at most", 100*r.extra)
	}
}

func TestTheSameSeedIsTheSameRun(t *testing.T) {
	t.Parallel()
	of := scenarios[2]
	of.warmUp, of.length = time.Second/10, time.Second/2
	for _, how := range setups {
		first, second := simulate(of, how, 7), simulate(of, how, 7)
		if first != second {
			t.Errorf("%s: %+v, and then %+v", how.name, first, second)
		}
		if first.calls == 0 || first.p50 < time.Millisecond {
			t.Errorf("%s: %+v", how.name, first)
		}
	}
}

// A fleet that has little to do takes as long as the calls themselves, which is known.
func TestTheSimulationIsRight(t *testing.T) {
	t.Parallel()
	of := short(t, scenarios[0])
	of.busy = 0.05
	r := simulate(of, setupOf(t, "least loaded"), 1)
	for _, tc := range []struct {
		name string
		got  time.Duration
		want float64 // times the mean of an exponential distribution
	}{{"p50", r.p50, 0.693}, {"p99", r.p99, 4.605}} {
		want := time.Duration(tc.want*float64(of.service)) + 2*of.network
		if d := float64(tc.got) / float64(want); d < 0.95 || d > 1.05 {
			t.Errorf("%s is %v, want about %v", tc.name, tc.got, want)
		}
	}
}

func TestQuantile(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	q := quantile{of: 0.95}
	sum, n := 0.0, 0
	for i := range 20_000 {
		q.add(time.Duration(random.ExpFloat64() * 1e9))
		if i > 1000 {
			sum += q.value.Seconds()
			n++
		}
	}
	if mean := sum / float64(n); mean < 2.7 || mean > 3.3 { // ln 20 is 3.0
		t.Errorf("the quantile is about %v, want about 3", mean)
	}
}

func TestTableAndPicture(t *testing.T) {
	all := make([][]result, len(scenarios))
	for i := range all {
		for k := range setups {
			d := time.Duration(10+k) * time.Millisecond
			all[i] = append(all[i], result{calls: 100, failed: k, p50: d / 2, p99: d, p999: 2 * d})
		}
	}
	text, svg := table(all), picture(all)
	row := "| - without ejection |" + strings.Repeat(" 12.0 (2.00% failed) |", len(scenarios))
	if !strings.Contains(overview(all), row) {
		t.Errorf("the overview has no %q:\n%s", row, overview(all))
	}
	for _, want := range []string{
		"**2 are ten times slower**", "| power of two choices | 5.0 | 10.0 | 1.00 | 20.0 | 0 | 0 | 0 | 0 |",
		"| - without ejection | 6.0 | 12.0 | 1.20 | 24.0 | 0 | 2.00% | 0 | 0 |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the table has no %q:\n%s", want, text)
		}
	}
	if n, want := strings.Count(svg, "<rect"), 1+len(scenarios)*len(setups); n != want {
		t.Errorf("the picture has %d bars and a background, want %d", n, want)
	}
	if !strings.Contains(svg, fmt.Sprintf("%s (2.00%% failed)", ms(12*time.Millisecond))) {
		t.Error("the picture does not say how many calls fail")
	}
}
