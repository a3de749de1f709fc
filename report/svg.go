package report

import (
	"fmt"
	"html/template"
	"math"
	"slices"
	"strings"

	"github.com/onnxq/onnxq/eval"
)

// drawing collects the elements of a picture.
type drawing struct{ strings.Builder }

func (d *drawing) add(format string, args ...any) { fmt.Fprintf(&d.Builder, format+"\n", args...) }

// text writes s, which may hold anything.
func (d *drawing) text(class string, x, y float64, anchor, s string) {
	d.add(`<text class="%s" x="%.1f" y="%.1f" text-anchor="%s">%s</text>`, class, x, y, anchor, template.HTMLEscapeString(s))
}

func (d *drawing) html() template.HTML { return template.HTML(d.String()) }

// course draws the SQNR of each value in the order of the network.
func course(values []eval.Value, errors []eval.NodeError, width int) template.HTML {
	const height, left, right, top, bottom = 300.0, 34.0, 14.0, 26.0, 30.0
	w := float64(width)
	// The scale runs from 0, or what is below, to the best value, at most 80 dB;
	// what is better lies at its upper end.
	low, high := 0.0, 10.0
	for _, v := range values {
		if v.SQNR != nil {
			low, high = math.Min(low, *v.SQNR), math.Max(high, *v.SQNR)
		}
	}
	low, high = math.Max(math.Floor(low/10)*10, -20), math.Min(math.Ceil(high/10)*10, 80)
	x := func(i int) float64 {
		return left + (w-left-right)*float64(i)/math.Max(1, float64(len(values)-1))
	}
	y := func(db *float64) float64 {
		v := high
		if db != nil {
			v = math.Max(low, math.Min(high, *db))
		}
		return top + (height-top-bottom)*(high-v)/(high-low)
	}
	d := &drawing{}
	d.add(`<svg class="chart w%d" viewBox="0 0 %d %.0f" role="img" aria-label="Signal to noise of each value along the network">`, width, width, height)
	step := 10.0
	if high-low > 60 {
		step = 20
	}
	for db := low; db <= high; db += step {
		at := y(&db)
		d.add(`<line class="grid" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`, left, w-right, at, at)
		label := fmt.Sprintf("%.0f", db)
		if db+step > high {
			label += " dB"
		}
		if db+step > high {
			d.text("axis", 0, at+4-14, "start", label)
		} else {
			d.text("axis", left-8, at+4, "end", strings.Replace(label, "-", "−", 1))
		}
	}
	d.text("axis", left, height-8, "start", "input")
	d.text("axis", w-right, height-8, "end", "output")
	var points []string
	for i := range values {
		points = append(points, fmt.Sprintf("%.1f,%.1f", x(i), y(values[i].SQNR)))
	}
	d.add(`<polyline class="line" points="%s"/>`, strings.Join(points, " "))
	born := map[string]float64{}
	for _, e := range errors {
		born[e.Output] = e.Share
	}
	radius := 2.2
	if len(values) > 150 {
		radius = 1.4
	}
	for i, v := range values {
		class, r := "dot", radius
		if s := born[v.Name]; s >= 0.02 {
			class, r = "dot born", radius+5*math.Sqrt(s)
		}
		title := fmt.Sprintf("%s: %s dB", place(v.Scope, v.Name), eval.Decibel(v.SQNR))
		if s, ok := born[v.Name]; ok {
			title += ", " + percent(s) + " of the output's error starts here"
		}
		d.add(`<circle class="%s" cx="%.1f" cy="%.1f" r="%.1f"><title>%s</title></circle>`, class, x(i), y(v.SQNR), r, template.HTMLEscapeString(title))
	}
	labels(d, values, born, x, y, w-right)
	d.add(`</svg>`)
	return d.html()
}

// labels names the values where most of the error starts, as far as there is
// room beside the line.
func labels(d *drawing, values []eval.Value, born map[string]float64, x func(int) float64, y func(*float64) float64, right float64) {
	var order []int
	for i, v := range values {
		if born[v.Name] >= 0.02 {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return sign(born[values[b].Name] - born[values[a].Name]) })
	type box struct{ x0, x1, y0, y1 float64 }
	var taken []box
	free := func(b box) bool {
		if b.y1 > 272 || b.y0 < 14 || slices.ContainsFunc(taken, func(o box) bool { return b.x0 < o.x1 && o.x0 < b.x1 && b.y0 < o.y1 && o.y0 < b.y1 }) {
			return false
		}
		for i := range len(values) - 1 {
			ax, bx := x(i), x(i+1)
			if bx < b.x0 || ax > b.x1 {
				continue
			}
			ay, by := y(values[i].SQNR), y(values[i+1].SQNR)
			at := func(x float64) float64 {
				if bx == ax {
					return ay
				}
				return ay + (by-ay)*(math.Max(ax, math.Min(bx, x))-ax)/(bx-ax)
			}
			lo, hi := math.Min(at(b.x0), at(b.x1)), math.Max(at(b.x0), at(b.x1))
			if hi > b.y0-2 && lo < b.y1+2 {
				return false
			}
		}
		return true
	}
	most := 7
	if right < 600 {
		most = 4
	}
	for _, i := range order {
		if len(taken) == most {
			return
		}
		name := values[i].Name
		if r := []rune(name); len(r) > 22 {
			name = "…" + string(r[len(r)-21:])
		}
		text := name + " " + percent(born[values[i].Name])
		size := 6.3 * float64(len([]rune(text)))
		at, cy := x(i), y(values[i].SQNR)
		x0, anchor, tx := at-size/2, "middle", at
		if x0 < 36 {
			x0, anchor, tx = 36, "start", 36
		}
		if x0+size > right {
			x0, anchor, tx = right-size, "end", right
		}
		for _, dy := range []float64{20, -13, 36, -29, 54, -47, 74, 96, 120, -70, 150} {
			b := box{x0 - 3, x0 + size + 3, cy + dy - 10, cy + dy + 3}
			if !free(b) {
				continue
			}
			taken = append(taken, b)
			if dy > 24 || dy < -24 {
				near, far := cy+5, cy+dy-11
				if dy < 0 {
					near, far = cy-5, cy+dy+5
				}
				d.add(`<line class="leader" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`, at, at, near, far)
				taken = append(taken, box{at - 1, at + 1, math.Min(near, far), math.Max(near, far)})
				most++
			}
			d.text("label", tx, cy+dy, anchor, text)
			break
		}
	}
}

// histogram draws what values a tensor has, and the range of its codes.
func histogram(t *eval.Tensor) template.HTML {
	const width, height, top, bottom = 300.0, 108.0, 16.0, 16.0
	h := &t.Histogram
	end := h.Start + h.Width*float64(len(h.Counts))
	low, high := math.Min(h.Start, t.Range[0]), math.Max(end, t.Range[1])
	if !(high > low) {
		high = low + 1
	}
	// A range far wider than the values is cut, with an arrow.
	if span := end - h.Start; span > 0 {
		low, high = math.Max(low, h.Start-span), math.Min(high, end+span)
	}
	pad := (high - low) * 0.02
	low, high = low-pad, high+pad
	x := func(v float64) float64 { return width * (math.Max(low, math.Min(high, v)) - low) / (high - low) }
	most := uint64(1)
	for _, c := range h.Counts {
		most = max(most, c)
	}
	d := &drawing{}
	d.add(`<svg class="hist" viewBox="0 0 %.0f %.0f" role="img" aria-label="Histogram of the values, with the range of the codes">`, width, height)
	base := height - bottom
	d.add(`<rect class="span" x="%.1f" y="%.1f" width="%.1f" height="%.1f"/>`, x(t.Range[0]), top, math.Max(x(t.Range[1])-x(t.Range[0]), 1), base-top)
	for i, c := range h.Counts {
		if c == 0 {
			continue
		}
		a, b := h.Start+h.Width*float64(i), h.Start+h.Width*float64(i+1)
		class := "bar"
		if b <= t.Range[0] || a >= t.Range[1] {
			class = "bar out"
		}
		size := (base - top - 4) * math.Log1p(float64(c)) / math.Log1p(float64(most))
		d.add(`<rect class="%s" x="%.2f" y="%.1f" width="%.2f" height="%.1f"/>`, class, x(a), base-size, math.Max(x(b)-x(a)-0.4, 0.6), size)
	}
	d.add(`<line class="base" x1="0" x2="%.0f" y1="%.1f" y2="%.1f"/>`, width, base, base)
	for k, edge := range t.Range {
		at := x(edge)
		d.add(`<line class="edge" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`, at, at, top-4, base)
		anchor := "start"
		if k == 1 {
			anchor = "end"
		}
		d.text("tick", math.Max(0, math.Min(width, at)), 8, anchor, number(edge))
	}
	zero := x(0)
	if low < 0 && high > 0 {
		d.text("tick", zero, height-3, "middle", "0")
	}
	d.add(`</svg>`)
	return d.html()
}

// channels draws the range of each output channel of a weight before and after,
// the widest channel first.
func channels(w *eval.Weight) template.HTML {
	const width, height, most = 300.0, 108.0, 100
	order := make([]int, len(w.Before))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return sign(extent(w.Before[b]) - extent(w.Before[a])) })
	if len(order) > most { // evenly spaced ones, the widest among them
		kept := make([]int, most)
		for i := range kept {
			kept[i] = order[i*len(order)/most]
		}
		order = kept
	}
	top := 0.0
	for i := range w.Before {
		top = math.Max(top, math.Max(extent(w.Before[i]), extent(w.After[i])))
	}
	if top == 0 {
		top = 1
	}
	y := func(v float64) float64 {
		return height/2 - math.Copysign((height/2-10)*math.Sqrt(math.Abs(v)/top), v)
	}
	d := &drawing{}
	d.add(`<svg class="channels" viewBox="0 0 %.0f %.0f" role="img" aria-label="Smallest and largest weight of each output channel, before and after">`, width, height)
	step := width / float64(len(order))
	for k, i := range order {
		at, size := step*float64(k), math.Max(step*0.42, 0.5)
		for part, r := range [][2]float32{w.Before[i], w.After[i]} {
			low, high := y(float64(r[0])), y(float64(r[1]))
			class := "before"
			if part == 1 {
				class = "after"
			}
			d.add(`<rect class="%s" x="%.2f" y="%.1f" width="%.2f" height="%.1f"/>`, class, at+float64(part)*size, high, size, math.Max(low-high, 0.6))
		}
	}
	d.add(`<line class="base" x1="0" x2="%.0f" y1="%.1f" y2="%.1f"/>`, width, y(0), y(0))
	d.text("tick", width, 8, "end", "±"+number(top))
	d.add(`</svg>`)
	return d.html()
}
