package main

import (
	"fmt"
	"image/color"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// picture is a chart of stacked bars, a group of bars an image.
type picture struct {
	file, title, unit string
	bars              []string // what stands below each
	parts             []part   // from the bottom up
}

// part is a colour of the bars: so much of each.
type part struct {
	name   string
	colour color.Color
	values plotter.Values
}

// Colours that can be told apart without colour vision (Okabe and Ito), on white.
var (
	blue   = color.RGBA{0x00, 0x72, 0xb2, 0xff}
	orange = color.RGBA{0xe6, 0x9f, 0x00, 0xff}
	green  = color.RGBA{0x00, 0x9e, 0x73, 0xff}
)

func startPicture(n network, d door) string {
	return fmt.Sprintf("start-%s-docker-%s.png", n.name, d.name)
}

const fetchedPicture = "fetched.png"

// pictures are those of what was measured.
func (r *results) pictures() (list []picture) {
	for _, n := range networks {
		for _, d := range doors {
			if p := r.startsDrawn(n, d); len(p.bars) > 0 {
				list = append(list, p)
			}
		}
	}
	if p := r.fetchedDrawn(); len(p.bars) > 0 {
		list = append(list, p)
	}
	return list
}

// startsDrawn shows of what the time until ready consists.
func (r *results) startsDrawn(n network, d door) picture {
	p := picture{
		file: startPicture(n, d), title: "Until ready: Docker " + d.name + ", " + n.what(), unit: "seconds, medians",
		parts: []part{
			{name: "a warm run", colour: green},
			{name: "first run, beyond", colour: orange},
			{name: "pull", colour: blue},
		},
	}
	for _, i := range table {
		for _, m := range modes {
			c := r.inMode(i.name, n, d.name, m)
			if c == nil {
				continue
			}
			pull := c.of(func(s sample) float64 { return s.Pull }).median()
			first := c.of(func(s sample) float64 { return s.Run }).median()
			warm := min(c.of(sample.warm).median(), first)
			p.bars = append(p.bars, i.name+"\n"+m.name)
			for n, v := range []float64{warm, first - warm, pull} {
				p.parts[n].values = append(p.parts[n].values, v)
			}
		}
	}
	return p
}

// fetchedDrawn shows how much of an image a thin start fetches.
func (r *results) fetchedDrawn() picture {
	p := picture{
		file: fetchedPicture, title: "Fetched by a start of the thin image",
		unit:  "share of the ordinary image's bytes",
		parts: []part{{name: "catalogs", colour: blue}, {name: "files", colour: orange}},
	}
	for _, i := range table {
		for _, m := range modes {
			c := r.anywhere(i.name, m)
			size := float64(r.Images[i.name].Compressed)
			if m.form == ordinary || c == nil || size == 0 {
				continue
			}
			catalogs := c.of(sample.catalogs).median()
			p.bars = append(p.bars, i.name+"\n"+m.name)
			p.parts[0].values = append(p.parts[0].values, catalogs/size)
			p.parts[1].values = append(p.parts[1].values, (c.of(sample.fetched).median()-catalogs)/size)
		}
	}
	return p
}

// anywhere is the cell of an image in a mode on the first engine and link that were measured, or nil: bytes hardly
// depend on them.
func (r *results) anywhere(image string, m mode) *cell {
	for _, d := range doors {
		for _, n := range networks {
			if c := r.inMode(image, n, d.name, m); c != nil {
				return c
			}
		}
	}
	return nil
}

// draw writes a PNG file.
func (p picture) draw(file string) error {
	chart := plot.New()
	chart.Title.Text, chart.Y.Label.Text, chart.Y.Min = p.title, p.unit, 0
	chart.Legend.Top = true
	width := vg.Points(28)
	var below *plotter.BarChart
	for _, part := range p.parts {
		bars, err := plotter.NewBarChart(part.values, width)
		if err != nil {
			return err
		}
		bars.Color, bars.LineStyle.Width = part.colour, 0
		if below != nil {
			bars.StackOn(below)
		}
		below = bars
		chart.Add(bars)
		chart.Legend.Add(part.name, bars)
	}
	chart.NominalX(p.bars...)
	chart.X.Min, chart.X.Max = -0.5, float64(len(p.bars))-0.5
	chart.Y.Max *= 1.25 // room for the legend
	return chart.Save(vg.Points(160+52*float64(len(p.bars))), vg.Points(300), file)
}
