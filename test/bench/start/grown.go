package main

import (
	"fmt"
	"image/color"
	"math"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"

	"cvmfs-graphdriver/test/bench/scale"
)

// What a proxy of a site is taken to do, on paper. Both are usual, and to be replaced by one's own.
const (
	proxyRequests = 5000               // a second, by one process of squid, small objects from its memory
	proxyBytes    = 10_000_000_000 / 8 // a second
	// paperNodes start the same image within paperTime.
	paperNodes = 10_000
	paperTime  = 60 // seconds
)

// grownNodes says what nodes ask for together, and what of it reaches the server.
func (r *results) grownNodes() string {
	t := newTable("nodes", "profile", "proxy", "at one time", "requests of a node", "bytes of a node",
		"requests at the proxy", "requests at the server", "bytes at the server", "seconds", "load")
	for _, c := range r.sortedNodes() {
		with := "no"
		if c.Key.Profile {
			with = "yes"
		}
		m, n := c.Measured, float64(c.Key.Nodes)
		t.row(fmt.Sprint(c.Key.Nodes), with, c.Key.Proxy, fmt.Sprint(m.AtOnce),
			fmt.Sprintf("%.0f", float64(m.Node.Requests)/n), megabytes(float64(m.Node.Bytes)/n),
			fmt.Sprint(m.Node.Requests), fmt.Sprint(m.Server.Requests), megabytes(float64(m.Server.Bytes)),
			fmt.Sprintf("%.0f", m.Took), fmt.Sprintf("%.0f", c.Load))
	}
	return t.text()
}

func (r *results) sortedNodes() []*scaleCell[scale.NodesKey, scale.Nodes] {
	list := slices.Clone(r.Scale.Nodes)
	slices.SortFunc(list, func(a, b *scaleCell[scale.NodesKey, scale.Nodes]) int {
		return a.Key.Compare(b.Key)
	})
	return list
}

// grownImages says what composing takes.
func (r *results) grownImages() string {
	t := newTable("images", "files", "layers", "composing", "its processor time", "taking into use", "memory", "afterwards",
		"EROFS image", "table of objects", "catalogs", "load")
	for _, c := range r.sortedComposed() {
		m := c.Measured
		held := ""
		if m.Held > 0 {
			held = megabytes(float64(m.Held))
		}
		t.row(fmt.Sprint(c.Key.Number()), fmt.Sprint(c.Key.Files), fmt.Sprint(c.Key.Layers),
			fmt.Sprintf("%.2f s", m.Took), fmt.Sprintf("%.2f s", m.CPU), fmt.Sprintf("%.2f s", m.Opened), megabytes(float64(m.Memory)), held,
			megabytes(float64(m.Metadata)), megabytes(float64(m.Table)), megabytes(float64(m.Catalogs.Bytes)),
			fmt.Sprintf("%.0f", c.Load))
	}
	return t.text()
}

func (r *results) sortedComposed() []*scaleCell[scale.ComposedKey, scale.Composed] {
	list := slices.Clone(r.Scale.Composed)
	slices.SortFunc(list, func(a, b *scaleCell[scale.ComposedKey, scale.Composed]) int {
		return a.Key.Compare(b.Key)
	})
	return list
}

// onPaper says what starts that were measured come to where many nodes start within a short time.
func (r *results) onPaper() string {
	t := newTable("image", "mode", "requests of a start", "its bytes", "requests a second", "Gbit a second",
		"proxies for the requests", "proxies for the bytes", "what is full first",
		"requests at the server, of each proxy")
	for _, i := range table {
		for _, m := range modes {
			c := r.anywhere(i.name, m)
			if m.form == ordinary || c == nil {
				continue
			}
			requests := c.of(func(s sample) float64 { return float64(s.Site.Requests) }).median()
			bytes := c.of(func(s sample) float64 { return float64(s.Site.Bytes) }).median()
			asked, sent := requests*paperNodes/paperTime, bytes*paperNodes/paperTime
			first := "requests"
			if sent/proxyBytes > asked/proxyRequests {
				first = "bytes"
			}
			t.row(i.name, m.name, fmt.Sprintf("%.0f", requests), megabytes(bytes), fmt.Sprintf("%.0f", asked),
				fmt.Sprintf("%.1f", sent*8/1e9), fmt.Sprintf("%.0f", math.Ceil(asked/proxyRequests)),
				fmt.Sprintf("%.0f", math.Ceil(sent/proxyBytes)), first, fmt.Sprintf("%.0f", requests))
		}
	}
	return t.text()
}

// curves is a chart of lines over numbers that grow by powers.
type curves struct {
	file, title, x, y string
	lines             []line
}

// line is a series of points.
type line struct {
	name   string
	points plotter.XYs
}

const (
	nodesPicture    = "nodes.png"
	composedPicture = "composed.png"
)

// growth are the charts of what was measured of what grows.
func (r *results) growth() (list []curves) {
	nodes := curves{
		file: nodesPicture, title: "Nodes that start one image through one proxy", x: "nodes", y: "requests",
	}
	for _, profile := range []bool{false, true} {
		with := "without a profile"
		if profile {
			with = "with a profile"
		}
		arrived := line{name: "at the proxy, " + with}
		var passed []line
		for _, proxy := range []string{scale.Squid, scale.Collapsing, scale.Own} {
			l := line{name: "at the server, " + with + ": " + proxy}
			for _, c := range r.sortedNodes() {
				if c.Key.Profile != profile || c.Key.Proxy != proxy {
					continue
				}
				x := float64(c.Key.Nodes)
				l.points = append(l.points, plotter.XY{X: x, Y: float64(c.Measured.Server.Requests)})
				if proxy == scale.Squid {
					arrived.points = append(arrived.points, plotter.XY{X: x, Y: float64(c.Measured.Node.Requests)})
				}
			}
			passed = append(passed, l)
		}
		nodes.lines = append(append(nodes.lines, arrived), passed...)
	}
	composed := curves{file: composedPicture, title: "Composing an image", x: "files", y: "seconds of processors"}
	byLayers := map[int]*line{}
	var order []int
	for _, c := range r.sortedComposed() {
		if c.Key.Number() > 1 {
			continue
		}
		l := byLayers[c.Key.Layers]
		if l == nil {
			l = &line{name: fmt.Sprintf("%d layers", c.Key.Layers)}
			byLayers[c.Key.Layers] = l
			order = append(order, c.Key.Layers)
		}
		l.points = append(l.points, plotter.XY{X: float64(c.Key.Files), Y: c.Measured.CPU})
	}
	slices.Sort(order)
	for _, n := range order {
		composed.lines = append(composed.lines, *byLayers[n])
	}
	for _, c := range []curves{nodes, composed} {
		c.lines = slices.DeleteFunc(c.lines, func(l line) bool { return len(l.points) < 2 })
		if len(c.lines) > 0 {
			list = append(list, c)
		}
	}
	return list
}

// drawn tells which charts of them there are.
func (r *results) drawn() map[string]string {
	there := map[string]string{}
	for _, c := range r.growth() {
		there[c.x] = pictureDir + "/" + c.file
	}
	return there
}

// more colours of Okabe and Ito.
var lineColours = []color.Color{
	blue, orange, green,
	color.RGBA{0xcc, 0x79, 0xa7, 0xff},
	color.RGBA{0x56, 0xb4, 0xe9, 0xff},
	color.RGBA{0xd5, 0x5e, 0x00, 0xff},
}

// draw writes a PNG file.
func (c curves) draw(file string) error {
	chart := plot.New()
	chart.Title.Text, chart.X.Label.Text, chart.Y.Label.Text = c.title, c.x, c.y
	chart.X.Scale, chart.Y.Scale = plot.LogScale{}, plot.LogScale{}
	chart.X.Tick.Marker, chart.Y.Tick.Marker = plot.LogTicks{Prec: -1}, plot.LogTicks{Prec: -1}
	chart.Legend.Top, chart.Legend.Left = true, true
	for n, l := range c.lines {
		drawn, points, err := plotter.NewLinePoints(l.points)
		if err != nil {
			return err
		}
		drawn.Color, points.Color = lineColours[n%len(lineColours)], lineColours[n%len(lineColours)]
		drawn.Width = vg.Points(2)
		chart.Add(drawn, points)
		chart.Legend.Add(l.name, drawn, points)
	}
	chart.Y.Max *= 10 // room for the legend
	return chart.Save(vg.Points(560), vg.Points(380), file)
}
