package report

import (
	"cmp"
	"fmt"
	"html"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/henrylee2cn/teleport/bench/payload"
	"github.com/henrylee2cn/teleport/bench/plan"
)

// The plot has two panels side by side: calls a second, and CPU a call, both
// against the number of callers on one connection, both axes logarithmic. The
// lines carry their names at their right ends.

const (
	panelWidth  = 640
	panelHeight = 560
	plotLeft    = 70 // within the panel, to the axis
	plotTop     = 60
	plotWidth   = 450
	plotHeight  = 430
	labelGap    = 16 // between the lines of two names
	fontSize    = 13
)

// A series is one system's line.
type series struct {
	system string
	points []point
}

type point struct{ x, y float64 }

// colours are plain and far enough apart on white.
var colours = map[string]string{
	"tp":      "#d40000",
	"tp-func": "#ff7f00",
	"tp-json": "#e0559a",
	"socket":  "#8c4a2f",
	"floorA":  "#000000",
	"floorB":  "#777777",
	"grpc":    "#1f5fd0",
	"netrpc":  "#1a8f2e",
	"drpc":    "#00a5b5",
	"ttrpc":   "#8040c0",
	"nats":    "#a08a00",
	"connect": "#5fa8e8",
}

// WriteSVG writes the plot to a file.
func (rep *Report) WriteSVG(name string) error {
	svg, err := rep.SVG()
	if err != nil {
		return err
	}
	return os.WriteFile(name, []byte(svg), 0o644)
}

// SVG returns the plot. It needs two workloads that differ in the number of callers
// alone.
func (rep *Report) SVG() (string, error) {
	rates, cpu := rep.series(plan.Rate), rep.series(plan.CPU)
	if len(rates) == 0 {
		return "", fmt.Errorf("nothing to plot: no system has results with different numbers of callers " +
			"on one connection")
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" `+
		`font-family="Helvetica, Arial, sans-serif" font-size="%d">`+"\n",
		2*panelWidth, panelHeight, 2*panelWidth, panelHeight, fontSize)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", 2*panelWidth, panelHeight)
	panel(&b, 0, "calls a second: more is better", rates, short)
	if len(cpu) > 0 {
		panel(&b, panelWidth, "CPU a call, client and server, in microseconds: less is better", cpu, digits)
	}
	b.WriteString("</svg>\n")
	return b.String(), nil
}

// series returns a line for every system with at least two points.
func (rep *Report) series(metric string) []series {
	var all []series
	at := make(map[string]int)
	for _, r := range rep.Results {
		w := r.Workload
		if w.Mode != plan.Calls || w.Conns != 1 || w.Kind != payload.Echo || w.Data != 0 {
			continue
		}
		for i := range r.Systems {
			s := &r.Systems[i]
			y := s.median(metric)
			if !finite(y) || y <= 0 {
				continue
			}
			k, ok := at[s.System]
			if !ok {
				k = len(all)
				at[s.System] = k
				all = append(all, series{system: s.System})
			}
			all[k].points = append(all[k].points, point{float64(w.Callers), y})
		}
	}
	for _, s := range all {
		slices.SortFunc(s.points, func(a, b point) int { return cmp.Compare(a.x, b.x) })
	}
	return slices.DeleteFunc(all, func(s series) bool { return len(s.points) < 2 })
}

// scale maps a range onto another, logarithmically.
type scale struct{ low, high, from, to float64 }

func (s scale) at(v float64) float64 {
	return s.from + (s.to-s.from)*math.Log(v/s.low)/math.Log(s.high/s.low)
}

// panel draws one panel whose left edge is at left.
func panel(b *strings.Builder, left float64, title string, all []series, format func(float64) string) {
	minX, maxX, minY, maxY := bounds(all)
	x := scale{minX, maxX, left + plotLeft, left + plotLeft + plotWidth}
	y := scale{floorTick(minY), ceilTick(maxY), plotTop + plotHeight, plotTop}

	fmt.Fprintf(b, `<text x="%.0f" y="26" font-size="16" font-weight="bold" fill="#000000">%s</text>`+"\n",
		left+20, html.EscapeString(title))
	for _, v := range ticks(y.low, y.high) {
		fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#dddddd"/>`+"\n", x.from,
			y.at(v), x.to, y.at(v))
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="end" fill="#333333">%s</text>`+"\n", x.from-8,
			y.at(v)+4, trim(format(v)))
	}
	for _, v := range positions(all) {
		fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#dddddd"/>`+"\n", x.at(v),
			y.from, x.at(v), y.to)
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="middle" fill="#333333">%.0f</text>`+"\n",
			x.at(v), y.from+20, v)
	}
	fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%d" height="%d" fill="none" stroke="#888888"/>`+"\n",
		x.from, y.to, plotWidth, plotHeight)
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="middle" `+
		`fill="#333333">callers on one connection</text>`+"\n", (x.from+x.to)/2, y.from+44)

	for i := len(all) - 1; i >= 0; i-- { // the framework's own on top
		line(b, i, all[i], x, y)
	}
	names(b, all, x, y)
}

func line(b *strings.Builder, i int, s series, x, y scale) {
	var path strings.Builder
	for _, p := range s.points {
		fmt.Fprintf(&path, "%.1f,%.1f ", x.at(p.x), y.at(p.y))
	}
	width, dash := 1.8, ""
	if s.system == "tp" {
		width = 3.6
	}
	if strings.HasPrefix(s.system, "floor") {
		dash = ` stroke-dasharray="6 4"`
	}
	c := colour(s.system, i)
	fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="%.1f"%s/>`+"\n",
		strings.TrimSpace(path.String()), c, width, dash)
	for _, p := range s.points {
		fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="%.1f" fill="%s"/>`+"\n", x.at(p.x), y.at(p.y),
			width+0.8, c)
	}
}

// names writes the systems' names beside the right ends of their lines, apart from
// each other.
func names(b *strings.Builder, all []series, x, y scale) {
	order := make([]int, len(all))
	for i := range order {
		order[i] = i
	}
	last := func(i int) point { return all[i].points[len(all[i].points)-1] }
	slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(y.at(last(i).y), y.at(last(j).y)) })
	wanted := make([]float64, len(order))
	for k, i := range order {
		wanted[k] = y.at(last(i).y)
	}
	for k, at := range apart(wanted, labelGap, y.to, y.from) {
		i := order[k]
		p, c := last(i), colour(all[i].system, i)
		weight := "normal"
		if all[i].system == "tp" {
			weight = "bold"
		}
		fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="0.7"/>`+
			"\n", x.at(p.x)+4, y.at(p.y), x.to+22, at, c)
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" fill="%s" font-weight="%s">%s</text>`+"\n", x.to+26, at+4,
			c, weight, html.EscapeString(all[i].system))
	}
}

// apart moves the sorted positions as little as it takes for them to be gap apart
// and, if there is room, between low and high.
func apart(wanted []float64, gap, low, high float64) []float64 {
	at := slices.Clone(wanted)
	for i := range at {
		at[i] = max(at[i], low)
		if i > 0 {
			at[i] = max(at[i], at[i-1]+gap)
		}
	}
	for i := len(at) - 1; i >= 0; i-- {
		at[i] = min(at[i], high)
		if i < len(at)-1 {
			at[i] = min(at[i], at[i+1]-gap)
		}
	}
	return at
}

func colour(system string, i int) string {
	if c, ok := colours[system]; ok {
		return c
	}
	return [...]string{"#b05000", "#006060", "#602080"}[i%3]
}

func bounds(all []series) (minX, maxX, minY, maxY float64) {
	minX, minY = math.Inf(1), math.Inf(1)
	for _, s := range all {
		for _, p := range s.points {
			minX, maxX = min(minX, p.x), max(maxX, p.x)
			minY, maxY = min(minY, p.y), max(maxY, p.y)
		}
	}
	return minX, maxX, minY, maxY
}

// positions returns the numbers of callers that occur.
func positions(all []series) []float64 {
	var xs []float64
	for _, s := range all {
		for _, p := range s.points {
			xs = append(xs, p.x)
		}
	}
	slices.Sort(xs)
	return slices.Compact(xs)
}

// ticks returns 1, 2 and 5 times the powers of ten from low to high.
func ticks(low, high float64) []float64 {
	var all []float64
	for e := math.Floor(math.Log10(low)); math.Pow(10, e) <= high*1.0001; e++ {
		for _, m := range []float64{1, 2, 5} {
			if v := m * math.Pow(10, e); v >= low*0.9999 && v <= high*1.0001 {
				all = append(all, v)
			}
		}
	}
	return all
}

// floorTick and ceilTick return the tick that is next to v, below or above.
func floorTick(v float64) float64 {
	all := ticks(v/10, v)
	return all[len(all)-1]
}

func ceilTick(v float64) float64 { return ticks(v, v*10)[0] }

// trim takes zeroes off the end of what a tick says: 1.00k becomes 1k.
func trim(s string) string {
	number := strings.TrimRight(s, "kM")
	unit := s[len(number):]
	if strings.Contains(number, ".") {
		number = strings.TrimRight(strings.TrimRight(number, "0"), ".")
	}
	return number + unit
}
