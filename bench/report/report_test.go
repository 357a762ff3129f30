package report

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/henrylee2cn/teleport/bench/plan"
)

// rounds makes rounds of a rate and the CPU a call; NaN stands for a failure.
func rounds(pairs ...[2]float64) []Round {
	var all []Round
	for _, p := range pairs {
		if math.IsNaN(p[0]) {
			all = append(all, Round{Err: "it broke"})
			continue
		}
		all = append(all, Round{Metrics: map[string]float64{plan.Rate: p[0], plan.CPU: p[1]}})
	}
	return all
}

func callers(n int, some ...SystemResult) Result {
	names := map[int]string{1: "c1", 16: "c16", 128: "c128"}
	return Result{
		Workload: plan.Workload{
			Name: names[n], About: "callers", Mode: plan.Calls, Conns: 1, Callers: n,
			Refs: []string{"grpc", "netrpc"}, Compare: []string{plan.Rate, plan.CPU},
		},
		Systems: some,
	}
}

func sample() *Report {
	rep := &Report{Machine: Machine{OS: "linux", Arch: "amd64", Cores: 2, MaxProcs: 2, Go: "go1.26"},
		Rounds: 3, WarmUp: time.Second, Window: 2 * time.Second}
	nan := math.NaN()
	rep.Add(callers(1,
		SystemResult{System: "tp", Rounds: rounds([2]float64{10000, 100}, [2]float64{12000, 90},
			[2]float64{11000, 95})},
		SystemResult{System: "tp-func", Rounds: rounds([2]float64{10000, 99.5}, [2]float64{12000, 89},
			[2]float64{11000, 94.75})},
		SystemResult{System: "grpc", Rounds: rounds([2]float64{5000, 200}, [2]float64{3000, 270},
			[2]float64{nan, nan})},
	))
	rep.Add(callers(16,
		SystemResult{System: "tp", Rounds: rounds([2]float64{160000, 10})},
		SystemResult{System: "grpc", Rounds: rounds([2]float64{30000, 50})},
	))
	return rep
}

func TestAdd(t *testing.T) {
	rep := sample()
	tp, grpc := rep.Results[0].Systems[0], rep.Results[0].Systems[2]
	if tp.Median[plan.Rate] != 11000 || grpc.Median[plan.Rate] != 4000 {
		t.Errorf("medians %v and %v", tp.Median, grpc.Median)
	}
	if spread := tp.Spread[plan.Rate]; math.Abs(spread-2.0/11) > 1e-9 {
		t.Errorf("the spread is %v", spread)
	}
	// The rounds are compared one by one: 2 and 4.
	if got := tp.Ratio[plan.Rate]; len(got) != 1 || got["grpc"] != 3 {
		t.Errorf("ratios of the rates: %v", got)
	}
	if got := grpc.Ratio[plan.CPU]["grpc"]; got != 1 {
		t.Errorf("grpc's CPU is %v of grpc's", got)
	}
}

func TestMessagesAreAddedUp(t *testing.T) {
	rep := new(Report)
	lost := func(n float64) Round { return Round{Metrics: map[string]float64{plan.Sent: 100, plan.Lost: n}} }
	rep.Add(Result{Workload: plan.Workload{Mode: plan.Push}, Systems: []SystemResult{{System: "tp",
		Rounds: []Round{lost(0), lost(0), lost(7)}}}})
	if m := rep.Results[0].Systems[0].Median; m[plan.Lost] != 7 || m[plan.Sent] != 300 {
		t.Errorf("%v", m)
	}
}

func TestText(t *testing.T) {
	var b strings.Builder
	if err := sample().WriteText(&b); err != nil {
		t.Fatal(err)
	}
	want := `linux/amd64, 2 cores, GOMAXPROCS 2 in each process, go1.26
Medians of 3 rounds of 2s each, after 1s of warm-up.

c1: callers

system   calls/s  spread  p50 us  p99 us  CPU us/call  client  server  allocs/call  client  server  cores used
tp         11.0k     18%       -       -         95.0       -       -            -       -       -           -
tp-func    11.0k     18%       -       -         94.8       -       -            -       -       -           -
grpc       4.00k     50%       -       -          235       -       -            -       -       -           -

as multiples of
system   rate: grpc  CPU: grpc
tp             3.00       0.42
tp-func        3.00       0.41
grpc           1.00       1.00

a controller costs +0.50 us of CPU a call against a plain function

grpc, round 3 failed: it broke

c16: callers

system  calls/s  spread  p50 us  p99 us  CPU us/call  client  server  allocs/call  client  server  cores used
tp         160k      0%       -       -         10.0       -       -            -       -       -           -
grpc      30.0k      0%       -       -         50.0       -       -            -       -       -           -

as multiples of
system  rate: grpc  CPU: grpc
tp            5.33       0.20
grpc          1.00       1.00
`
	if b.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", &b, want)
	}
}

func TestColumnsOfEachMode(t *testing.T) {
	for _, tc := range []struct {
		w    plan.Workload
		want string
	}{
		{plan.Workload{Mode: plan.Calls}, "calls/s"},
		{plan.Workload{Mode: plan.Calls, Data: 5}, "MB/s"},
		{plan.Workload{Mode: plan.Push}, "received/s"},
		{plan.Workload{Mode: plan.Idle}, "KiB/connection"},
	} {
		if got := columns(tc.w)[0].title; got != tc.want {
			t.Errorf("%+v: the first column is %s, want %s", tc.w, got, tc.want)
		}
	}
	for _, w := range plan.All() {
		for _, metric := range w.Compare {
			if metricTitles[metric] == "" {
				t.Errorf("%s: the metric %s has no title", w.Name, metric)
			}
		}
	}
}

func TestNumbers(t *testing.T) {
	for _, tc := range []struct {
		v             float64
		digits, short string
	}{
		{0, "0", "0"},
		{0.0513, "0.051", "0.051"},
		{0.513, "0.51", "0.51"},
		{9.876, "9.88", "9.88"},
		{98.76, "98.8", "98.8"},
		{987.6, "988", "988"},
		{999.7, "1000", "1.00k"},
		{12345, "12345", "12.3k"},
		{999900, "999900", "1.00M"},
		{12345678, "12345678", "12.3M"},
		{math.NaN(), "-", "-"},
		{math.Inf(1), "-", "-"},
	} {
		if got := digits(tc.v); got != tc.digits {
			t.Errorf("digits(%v) is %s, want %s", tc.v, got, tc.digits)
		}
		if got := short(tc.v); got != tc.short {
			t.Errorf("short(%v) is %s, want %s", tc.v, got, tc.short)
		}
	}
	if percent(0.123) != "12%" || percent(math.NaN()) != "-" || fixed1(6.04) != "6.0" ||
		fixed1(math.NaN()) != "-" {
		t.Error("percent or fixed1 is wrong")
	}
}

func TestSummary(t *testing.T) {
	r := Round{Metrics: map[string]float64{plan.Rate: 12345, plan.RSS: 4.5, plan.Lost: 0}}
	for mode, want := range map[plan.Mode]string{
		plan.Calls: "12.3k calls/s, p50 - us, - us of CPU a call",
		plan.Push:  "12.3k messages/s, 0 lost",
		plan.Idle:  "4.50 KiB a connection",
	} {
		if got := r.Summary(plan.Workload{Mode: mode}); got != want {
			t.Errorf("%s: %q, want %q", mode, got, want)
		}
	}
	if got := (Round{Err: "it broke"}).Summary(plan.Workload{}); got != "FAILED: it broke" {
		t.Error(got)
	}
}

func TestFileThereAndBack(t *testing.T) {
	rep := sample()
	name := filepath.Join(t.TempDir(), "results.json")
	if err := rep.WriteFile(name); err != nil {
		t.Fatal(err)
	}
	got, err := ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, rep) {
		t.Errorf("got %+v, want %+v", got, rep)
	}
	if _, err := ReadFile(name + "x"); err == nil {
		t.Error("a file that is not there is read")
	}
}

func TestSVG(t *testing.T) {
	svg, err := sample().SVG()
	if err != nil {
		t.Fatal(err)
	}
	texts := make(map[string]int)
	lines := 0
	d := xml.NewDecoder(strings.NewReader(svg))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
		switch token := token.(type) {
		case xml.CharData:
			texts[string(token)]++
		case xml.StartElement:
			if token.Name.Local == "polyline" {
				lines++
			}
		}
	}
	// tp-func has one point only, and one point is no line.
	if lines != 4 || texts["tp"] != 2 || texts["grpc"] != 2 || texts["tp-func"] != 0 {
		t.Errorf("%d lines, texts %v", lines, texts)
	}
	if texts["1"] != 2 || texts["16"] != 2 || texts["2k"] != 1 || texts["200k"] != 1 {
		t.Errorf("ticks: %v", texts)
	}
	if strings.Contains(svg, "NaN") || strings.Contains(svg, "Inf") {
		t.Error("there are numbers missing")
	}

	if _, err := new(Report).SVG(); err == nil {
		t.Error("nothing is plotted")
	}
	if err := sample().WriteSVG(filepath.Join(t.TempDir(), "plot.svg")); err != nil {
		t.Error(err)
	}
}

func TestApart(t *testing.T) {
	for _, tc := range []struct {
		name         string
		wanted, want []float64
	}{
		{"far apart", []float64{10, 40, 70}, []float64{10, 40, 70}},
		{"close", []float64{10, 12, 13, 90}, []float64{10, 20, 30, 90}},
		{"at the end", []float64{95, 98, 99}, []float64{80, 90, 100}},
		{"at the beginning", []float64{-5, -4}, []float64{0, 10}},
		{"none", nil, nil},
	} {
		if got := apart(tc.wanted, 10, 0, 100); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestTicks(t *testing.T) {
	if got := ticks(1500, 120000); !slices.Equal(got, []float64{2000, 5000, 10000, 20000, 50000, 100000}) {
		t.Errorf("ticks: %v", got)
	}
	if floorTick(1900) != 1000 || ceilTick(1900) != 2000 || floorTick(5) != 5 || ceilTick(5) != 5 {
		t.Errorf("ticks around 1900: %v, %v; around 5: %v, %v", floorTick(1900), ceilTick(1900), floorTick(5),
			ceilTick(5))
	}
	for in, want := range map[string]string{"1.00k": "1k", "20.0": "20", "500": "500", "2.50M": "2.5M"} {
		if got := trim(in); got != want {
			t.Errorf("trim(%s) is %s, want %s", in, got, want)
		}
	}
}

func TestThisMachine(t *testing.T) {
	m := ThisMachine()
	if m.Cores < 1 || m.Go == "" || !strings.Contains(m.String(), m.Go) {
		t.Errorf("%+v", m)
	}
	m.CPU, m.Modules = "a CPU", map[string]string{"google.golang.org/grpc": "v1"}
	if s := m.String(); !strings.Contains(s, ", a CPU,") || !strings.Contains(s,
		"google.golang.org/grpc v1\n") {
		t.Errorf("%q", s)
	}
}
