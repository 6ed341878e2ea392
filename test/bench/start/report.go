package main

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"github.com/dustin/go-humanize"

	"cvmfs-graphdriver/internal/durable"
)

//go:embed performance.md.tmpl
var document string

// What the report consists of, below its folder: a document, and a folder of what it shows and was made from.
const (
	documentName = "performance.md"
	pictureDir   = "performance"
	resultsName  = "results.json"
)

// writeReport writes the document, its pictures and the results into a folder.
func writeReport(r *results, dir string) error {
	text, err := r.document()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, pictureDir), 0o755); err != nil {
		return err
	}
	for _, p := range r.pictures() {
		if err := p.draw(filepath.Join(dir, pictureDir, p.file)); err != nil {
			return fmt.Errorf("draw %s: %w", p.file, err)
		}
	}
	for _, c := range r.growth() {
		if err := c.draw(filepath.Join(dir, pictureDir, c.file)); err != nil {
			return fmt.Errorf("draw %s: %w", c.file, err)
		}
	}
	if err := r.write(filepath.Join(dir, pictureDir, resultsName)); err != nil {
		return err
	}
	return durable.Replace(filepath.Join(dir, documentName), 0o644, []byte(text))
}

// document is the text.
func (r *results) document() (string, error) {
	t, err := template.New(documentName).Parse(document)
	if err != nil {
		return "", err
	}
	first, last, least, most, versions := r.period()
	var b strings.Builder
	err = t.Execute(&b, map[string]any{
		"Machine": fmt.Sprintf("%s, %d cores, %s of memory, Linux %s", r.Machine.Processor, r.Machine.Cores,
			humanize.IBytes(r.Machine.Memory), r.Machine.Kernel),
		"From": first.Format("2006-01-02 15:04"), "To": last.Format("2006-01-02 15:04"),
		"Least": fmt.Sprintf("%.1f", least), "Most": fmt.Sprintf("%.1f", most),
		"Samples": r.samples(), "Busy": most > float64(r.Machine.Cores)+1, // one is the load of a sample itself
		"Versions": strings.Join(versions, ", "),
		"Images":   r.imageTable(), "Starts": r.starts(), "Fetched": r.fetchedTable(), "Nodes": r.nodeTable(),
		"Missing": r.missing(), "GrownNodes": r.grownNodes(), "GrownImages": r.grownImages(),
		"GrownTogether": r.grownTogether(), "GrownHoards": r.grownHoards(), "OnPaper": r.onPaper(), "Drawn": r.drawn(),
		"PaperNodes": humanize.Comma(paperNodes), "ProxyRequests": humanize.Comma(proxyRequests),
	})
	return b.String(), err
}

// tabular is a table of Markdown.
type tabular struct {
	b strings.Builder
	n int // rows
}

func newTable(columns ...string) *tabular {
	t := &tabular{}
	t.row(columns...)
	t.b.WriteString(strings.Repeat("|---", len(columns)) + "|\n")
	t.n = 0
	return t
}

func (t *tabular) row(cells ...string) {
	t.b.WriteString("| " + strings.Join(cells, " | ") + " |\n")
	t.n++
}

// text is the table, or "" if it has no row.
func (t *tabular) text() string {
	if t.n == 0 {
		return ""
	}
	return t.b.String()
}

func megabytes(bytes float64) string { return fmt.Sprintf("%.1f MB", bytes/1e6) }

// ratio is how many times b is a, or "".
func ratio(a, b float64) string {
	if a == 0 || b == 0 {
		return ""
	}
	return fmt.Sprintf("× %.2f", a/b)
}

// imageTable says what was started.
func (r *results) imageTable() string {
	t := newTable("image", "what a start does", "layers", "files", "compressed", "touched by a start",
		"touched, compressed")
	for _, i := range table {
		if f, ok := r.Images[i.name]; ok {
			t.row(i.name, i.what, fmt.Sprint(f.Layers), megabytes(float64(f.Size)), megabytes(float64(f.Compressed)),
				megabytes(float64(f.Touched)), megabytes(float64(f.Needed)))
		}
	}
	return t.b.String()
}

// section is the starts of all images on one engine, over one link.
type section struct {
	Title, Picture, Table string
}

// starts are the sections, of those combinations that were measured.
func (r *results) starts() (list []section) {
	for _, n := range networks {
		for _, d := range doors {
			if table := r.startTable(n, d); table != "" {
				list = append(list, section{
					Title: "Docker " + d.name + ", " + n.what(), Table: table,
					Picture: pictureDir + "/" + startPicture(n, d),
				})
			}
		}
	}
	return list
}

// mostApart is how many times the load of the machine may differ for times to be compared.
const mostApart = 2

// startTable has a column for each mode, and what thin starts are compared with.
func (r *results) startTable(n network, d door) string {
	columns := []string{"image"}
	for _, m := range modes {
		columns = append(columns, m.name)
	}
	columns = append(columns, "thin by FUSE", "floor")
	for _, m := range modes {
		if m.form != ordinary {
			columns = append(columns, m.name+" ÷ overlay2", m.name+" ÷ floor")
		}
	}
	t := newTable(append(columns, "warm, overlay2", "warm, thin", "load")...)
	for _, i := range table {
		row := []string{i.name}
		var loads figure
		show := func(c *cell, get func(sample) float64) {
			loads = append(loads, c.of(func(s sample) float64 { return s.Load })...)
			row = append(row, c.of(get).text("%.1f"))
		}
		for _, m := range modes {
			show(r.inMode(i.name, n, d.name, m), sample.ready)
		}
		show(r.cell(key{i.name, n.name, d.name, string(thin), "fuse"}), sample.ready)
		own := r.inMode(i.name, n, d.name, modes[0])
		least, known := r.floor(i.name, n, d.name)
		alike := len(loads) > 0 && slices.Max(loads) <= mostApart*slices.Min(loads)
		if known {
			row = append(row, fmt.Sprintf("%.1f", least))
		} else {
			row = append(row, "")
		}
		for _, m := range modes {
			if m.form != ordinary {
				cold := r.inMode(i.name, n, d.name, m).of(sample.ready).median()
				if !alike {
					cold = 0
				}
				row = append(row, ratio(cold, own.of(sample.ready).median()), ratio(cold, least))
			}
		}
		show(own, sample.warm)
		show(r.thin(i.name, n, d.name), sample.warm)
		if len(loads) > 0 {
			t.row(append(row, fmt.Sprintf("%.0f–%.0f", slices.Min(loads), slices.Max(loads)))...)
		}
	}
	return t.text()
}

// thinCells calls fn for the cells of thin images, with the overlay2's of the same start, which may be nil.
func (r *results) thinCells(fn func(start []string, ours, own *cell)) {
	for _, i := range table {
		for _, n := range networks {
			for _, d := range doors {
				for _, m := range modes {
					c := r.inMode(i.name, n, d.name, m)
					if c != nil && m.form != ordinary {
						fn([]string{i.name, n.name, d.name, m.name}, c, r.inMode(i.name, n, d.name, modes[0]))
					}
				}
			}
		}
	}
}

// fetchedTable says what thin starts fetch.
func (r *results) fetchedTable() string {
	t := newTable("image", "link", "engine", "mode", "fetched", "requests", "of catalogs", "÷ overlay2",
		"÷ touched, compressed", "fetched later")
	r.thinCells(func(start []string, c, own *cell) {
		fetched := c.of(sample.fetched).median()
		t.row(append(start, megabytes(fetched), fmt.Sprintf("%.0f", c.of(sample.requests).median()),
			megabytes(c.of(sample.catalogs).median()), ratio(fetched, own.of(sample.fetched).median()),
			ratio(fetched, float64(r.Images[c.Image].Needed)), megabytes(c.of(sample.later).median()))...)
	})
	return t.b.String()
}

// nodeTable says what starts take of a node.
func (r *results) nodeTable() string {
	t := newTable("image", "link", "engine", "mode", "disk, overlay2", "disk", "processor time of our daemon",
		"its memory")
	r.thinCells(func(start []string, c, own *cell) {
		t.row(append(start, orNothing(own.of(sample.disk).median()), megabytes(c.of(sample.disk).median()),
			c.of(func(s sample) float64 { return s.CPU }).text("%.1f s"),
			megabytes(c.of(func(s sample) float64 { return float64(s.Memory) }).median()))...)
	})
	return t.b.String()
}

func orNothing(bytes float64) string {
	if bytes == 0 {
		return ""
	}
	return megabytes(bytes)
}

// missing lists what the table of images and links has and the results have not.
func (r *results) missing() (list []string) {
	for _, n := range networks {
		for _, d := range doors {
			var names []string
			for _, i := range table {
				if i.name != quickImage && r.thin(i.name, n, d.name) == nil {
					names = append(names, i.name)
				}
			}
			if len(names) == len(table)-1 {
				names = []string{"all images"}
			}
			if len(names) > 0 {
				list = append(list, fmt.Sprintf("Docker %s, %s: %s", d.name, n.what(), strings.Join(names, ", ")))
			}
		}
	}
	return list
}

// what is the link for people.
func (n network) what() string {
	if n.speed.Rate == 0 {
		return "no limit and no delay"
	}
	return fmt.Sprintf("%d Mbit/s, %g ms there and back", n.speed.Rate/megabit, n.speed.Trip.Seconds()*1000)
}
