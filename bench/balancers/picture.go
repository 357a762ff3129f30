package main

import (
	"fmt"
	"html"
	"math"
	"strings"
	"time"
)

// The picture has a panel for each scenario, two in a row. A panel has a bar for each setup, to the 99th
// percentile of its calls, on a logarithmic axis, and a line where the healthy fleet's is.

const (
	panelWidth = 680
	barHeight  = 20
	barsLeft   = 210 // within the panel
	barsWidth  = 330
	barsTop    = 44
	axisLow    = 5 * time.Millisecond
	axisHigh   = 3 * time.Second
)

var panelHeight = barsTop + len(setups)*barHeight + 50

// picture returns the results as an SVG.
func picture(all [][]result) string {
	var b strings.Builder
	width, height := 2*panelWidth, (len(scenarios)+1)/2*panelHeight
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" `+
		`font-family="Helvetica, Arial, sans-serif" font-size="13">`+"\n", width, height, width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", width, height)
	for i := range scenarios {
		fmt.Fprintf(&b, `<g transform="translate(%d %d)">`+"\n", i%2*panelWidth, i/2*panelHeight)
		panel(&b, all, i)
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func panel(b *strings.Builder, all [][]result, scenario int) {
	bottom := barsTop + len(setups)*barHeight
	fmt.Fprintf(b, `<text x="20" y="26" font-size="16" font-weight="bold">%s</text>`+"\n",
		html.EscapeString(scenarios[scenario].name))
	for _, tick := range []time.Duration{10, 30, 100, 300, 1000} {
		x := axis(tick * time.Millisecond)
		fmt.Fprintf(b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#dddddd"/>`+"\n", x, barsTop-4, x,
			bottom)
		fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="middle" fill="#333333">%d</text>`+"\n", x,
			bottom+16, tick)
	}
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="middle" fill="#333333">99%% of the calls take at most `+
		`so many ms</text>`+"\n", barsLeft+barsWidth/2, bottom+34)
	for k, how := range setups {
		r, y, colour := all[scenario][k], barsTop+k*barHeight, "#1f5fd0"
		if k > 0 {
			colour = "#9bb8e8"
		}
		end := axis(r.p99)
		fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", barsLeft-8, y+14,
			html.EscapeString(how.name))
		fmt.Fprintf(b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", barsLeft, y+2,
			end-barsLeft, barHeight-4, colour)
		fmt.Fprintf(b, `<text x="%.1f" y="%d">%s%s</text>`+"\n", end+6, y+14, ms(r.p99), failures(r))
	}
	x := axis(healthy(all, scenario))
	fmt.Fprintf(b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#d40000" stroke-dasharray="4 3"/>`+"\n",
		x, barsTop-4, x, bottom)
}

// failures says how many calls had no answer or a bad one, if any.
func failures(r result) string {
	if n := r.failed + r.late; n > 0 {
		return " (" + percent(n, r.calls) + " failed)"
	}
	return ""
}

// axis returns where a duration is on the horizontal axis.
func axis(d time.Duration) float64 {
	d = min(max(d, axisLow), axisHigh)
	decades := func(d time.Duration) float64 { return math.Log10(float64(d) / float64(axisLow)) }
	return barsLeft + barsWidth*decades(d)/decades(axisHigh)
}
