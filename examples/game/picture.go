package main

import (
	"bufio"
	"cmp"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

// The measures of a picture, in its own units.
const (
	perUnit      = 5 // centimetres of the room
	roomX, roomY = 24, 84
	roomW, roomH = width / perUnit, height / perUnit
	chatX        = roomX + roomW + 28
	pictureW     = chatX + 300
	pictureH     = roomY + roomH + 44
	lineHeight   = 22
)

// inks are the colours of the players.
var inks = []string{"#1f6fb4", "#e8590c", "#2b8a3e", "#c2255c", "#7048e8", "#0b8793", "#a67c00", "#6d4c41",
	"#495057", "#6a8f00"}

// picture is a view that is being drawn.
type picture struct {
	*bufio.Writer
	View
	ids        []int // of the players, in the order of their colours
	from, to   time.Time
	labels     []box // where there is text already
	everywhere int   // positions
}

// Draw writes an SVG picture of the room as the player has seen it: where everybody went, paler the longer
// ago it was, and who said what where. The picture needs no other file.
func (v View) Draw(w io.Writer) error {
	p := &picture{Writer: bufio.NewWriter(w), View: v, from: v.Began, to: v.Began.Add(time.Millisecond),
		ids: slices.Sorted(maps.Keys(v.Players))}
	for _, who := range v.Players {
		p.everywhere += len(who.Path) - 1
		if last := who.Path[len(who.Path)-1].At; last.After(p.to) {
			p.to = last
		}
	}
	p.frame()
	for _, id := range p.ids {
		p.path(v.Players[id], p.ink(id))
	}
	p.marks()
	for _, id := range p.ids {
		p.player(id)
	}
	p.chat()
	p.printf("</svg>\n")
	return p.Flush()
}

func (p *picture) printf(format string, args ...any) { fmt.Fprintf(p, format, args...) }

func (p *picture) ink(id int) string { return inks[max(0, slices.Index(p.ids, id))%len(inks)] }

func (p *picture) name(id int) string {
	if who := p.Players[id]; who != nil {
		return who.Name
	}
	return "?"
}

// at returns where a spot is in the picture.
func at(s Spot) (x, y float64) {
	return roomX + float64(s.X)/perUnit, roomY + float64(s.Y)/perUnit
}

const style = `<style>
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #212529 }
.title { font-size: 23px; font-weight: 600 }
.head { font-size: 15px; font-weight: 600 }
.note { fill: #868e96 }
.number { font-size: 11px; font-weight: 600; fill: #fff; text-anchor: middle }
.name { font-weight: 600 }
.halo { stroke: #fff; stroke-width: 4px; stroke-linejoin: round; paint-order: stroke }
.path { fill: none; stroke-width: 2.5px; stroke-linecap: round; stroke-linejoin: round }
</style>
`

// frame draws the floor, with a line every five metres, and the headings.
func (p *picture) frame() {
	p.printf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d">`+"\n", pictureW, pictureH)
	p.printf(style)
	p.printf(`<rect width="%d" height="%d" fill="#f6f4ef"/>`+"\n", pictureW, pictureH)
	p.text(roomX, 38, `class="title"`, p.Room+", as "+p.name(p.You)+" has seen it")
	p.text(roomX, 62, `class="note"`, fmt.Sprintf("%d players, %d positions and %d lines of chat received "+
		"in %.1f s", len(p.ids), p.everywhere, len(p.Chat), p.to.Sub(p.from).Seconds()))
	p.text(roomX, roomY+roomH+25, `class="note"`, "A ring is where a player began, a dot on a path every "+
		"second; paler is longer ago. The squares are 5 m wide.")
	p.printf(`<rect x="%d" y="%d" width="%d" height="%d" rx="6" fill="#fff" stroke="#ced4da"/>`+"\n",
		roomX, roomY, roomW, roomH)
	p.printf(`<path d="`)
	for x := 500; x < width; x += 500 {
		p.printf("M%d %dv%d", roomX+x/perUnit, roomY, roomH)
	}
	for y := 500; y < height; y += 500 {
		p.printf("M%d %dh%d", roomX, roomY+y/perUnit, roomW)
	}
	p.printf(`" stroke="#f1f3f5"/>` + "\n")
}

// text writes text, whatever is in it, with its left end at a place.
func (p *picture) text(x, y float64, attributes, s string) {
	p.printf(`<text x="%.1f" y="%.1f" %s>`, x, y, attributes)
	_ = xml.EscapeText(p, []byte(s)) // an error stays in the writer
	p.printf("</text>\n")
}

// dot draws a circle; more is further attributes.
func (p *picture) dot(x, y, radius float64, ink, more string) {
	p.printf(`<circle cx="%.1f" cy="%.1f" r="%.1f" fill="%s" %s/>`+"\n", x, y, radius, ink, more)
}

// pieces is how many shades a path has.
const pieces = 16

// path draws where a player went.
func (p *picture) path(who *Seen, ink string) {
	p.printf(`<g class="path" stroke="%s">`+"\n", ink)
	whole := p.to.Sub(p.from)
	old := func(s Spot) int { return max(0, min(pieces-1, int(pieces*s.At.Sub(p.from)/whole))) }
	for i := 0; i < len(who.Path)-1; {
		shade := old(who.Path[i])
		x, y := at(who.Path[i])
		p.printf(`<path opacity="%.2f" d="M%.1f %.1fL`, 0.14+0.76*float64(shade)/(pieces-1), x, y)
		for i++; ; i++ {
			x, y := at(who.Path[i])
			p.printf("%.1f %.1f ", x, y)
			if i == len(who.Path)-1 || old(who.Path[i]) != shade {
				break
			}
		}
		p.printf(`"/>` + "\n")
	}
	p.printf("</g>\n")
	x, y := at(who.Path[0])
	p.dot(x, y, 4.5, "#fff", `stroke-width="1.5" stroke="`+ink+`"`)
	next := p.from.Add(time.Second)
	for _, s := range who.Path {
		if s.At.Before(next) {
			continue
		}
		x, y := at(s)
		p.dot(x, y, 2.6, ink, "")
		for !s.At.Before(next) {
			next = next.Add(time.Second)
		}
	}
}

// marks draws the number of each line where it was said, above other numbers that are there.
func (p *picture) marks() {
	for _, said := range p.Chat {
		x, y := at(said.Where)
		b := box{x - 9, y - 24, 18, 18}
		for slices.ContainsFunc(p.labels, func(other box) bool { return other.covers(b) > 0 }) {
			b.y -= 5
		}
		p.labels = append(p.labels, b)
		p.printf(`<path d="M%.1f %.1fL%.1f %.1fh8z" fill="%s"/>`+"\n", x, y-1, x-4, b.y+17, p.ink(said.From))
	}
	for i, said := range p.Chat {
		p.number(said, p.labels[i].x+9, p.labels[i].y+9)
	}
}

// number draws the number of a line around a place.
func (p *picture) number(said Heard, x, y float64) {
	p.dot(x, y, 9, p.ink(said.From), "")
	p.text(x, y+4, `class="number"`, strconv.Itoa(said.N))
}

// player draws where a player is at the end, with his name.
func (p *picture) player(id int) {
	who, ink := p.Players[id], p.ink(id)
	x, y := at(who.Path[len(who.Path)-1])
	p.dot(x, y, 7.5, ink, `stroke="#fff" stroke-width="2"`)
	if id == p.You {
		p.dot(x, y, 11, "none", `stroke-width="1.5" stroke="`+ink+`"`)
	}
	name := who.Name
	if who.Gone {
		name += " (has left)"
	}
	b := p.room(x, y, widthOf(name))
	p.text(b.x, b.y+12, `class="name halo" style="fill:`+ink+`"`, name)
}

// box is a place for text: its left upper corner, and its size.
type box struct{ x, y, w, h float64 }

func (a box) covers(b box) float64 {
	return max(0, min(a.x+a.w, b.x+b.w)-max(a.x, b.x)) * max(0, min(a.y+a.h, b.y+b.h)-max(a.y, b.y))
}

// room returns the place near a point, within the floor, where text of that width is least in the way.
func (p *picture) room(x, y, w float64) box {
	const h = 16
	places := []box{{x + 13, y - 8, w, h}, {x - 13 - w, y - 8, w, h}, {x - w/2, y - 30, w, h},
		{x - w/2, y + 14, w, h}, {x + 9, y + 9, w, h}, {x - 9 - w, y + 9, w, h}}
	floor := box{roomX + 2, roomY + 2, roomW - 4, roomH - 4}
	cost := func(b box) (sum float64) {
		sum = 10 * (w*h - b.covers(floor))
		for _, other := range p.labels {
			sum += 3 * b.covers(other)
		}
		for _, who := range p.Players {
			for i, s := range who.Path {
				x, y := at(s)
				size := 2.0
				if i == len(who.Path)-1 {
					size = 18 // the dot of the player
				}
				sum += b.covers(box{x - size/2, y - size/2, size, size})
			}
		}
		return sum
	}
	best := slices.MinFunc(places, func(a, b box) int { return cmp.Compare(cost(a), cost(b)) })
	p.labels = append(p.labels, best)
	return best
}

// chat lists the lines beside the room.
func (p *picture) chat() {
	p.text(chatX, roomY+12, `class="head"`, "chat")
	lines, y := p.Chat, roomY+40.0
	if most := (roomH - 60) / lineHeight; len(lines) > most {
		p.text(chatX, y, `class="note"`, fmt.Sprintf("%d earlier lines", len(lines)-most))
		lines, y = lines[len(lines)-most:], y+lineHeight
	}
	for _, said := range lines {
		name := p.name(said.From)
		p.number(said, chatX+9, y-4)
		p.text(chatX+26, y, `class="name" style="fill:`+p.ink(said.From)+`"`, name)
		p.text(chatX+34+widthOf(name), y, "", said.Text)
		y += lineHeight
	}
}

// widthOf returns about how wide a name is.
func widthOf(name string) float64 { return 7.9 * float64(utf8.RuneCountInString(name)) }
