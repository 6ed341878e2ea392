package main

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
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
		"Missing": r.missing(),
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
	t := newTable("image", "what a start does", "layers", "files", "compressed", "touched by a start", "touched, compressed")
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

func (r *results) startTable(n network, d door) string {
	t := newTable("image", "overlay2", "ordinary on ours", "thin", "thin by FUSE", "thin ÷ overlay2", "floor", "thin ÷ floor",
		"warm, overlay2", "warm, thin")
	seconds := func(c *cell, get func(sample) float64) string { return c.of(get).text("%.1f") }
	for _, i := range table {
		own := r.cell(key{i.name, n.name, d.name, "overlay2", ""})
		ours := r.cell(key{i.name, n.name, d.name, "ordinary", ""})
		thin := r.thin(i.name, n, d.name)
		fuse := r.cell(key{i.name, n.name, d.name, "thin", "fuse"})
		if own == nil && ours == nil && thin == nil {
			continue
		}
		floor, above := "", ""
		cold := thin.of(sample.ready).median()
		if least, known := r.floor(i.name, n, d.name); known {
			floor, above = fmt.Sprintf("%.1f", least), ratio(cold, least)
		}
		t.row(i.name, seconds(own, sample.ready), seconds(ours, sample.ready), seconds(thin, sample.ready),
			seconds(fuse, sample.ready), ratio(cold, own.of(sample.ready).median()), floor, above, seconds(own, sample.warm), seconds(thin, sample.warm))
	}
	if t.n == 0 {
		return ""
	}
	return t.b.String()
}

// fetchedTable says what thin starts fetch.
func (r *results) fetchedTable() string {
	t := newTable("image", "link", "engine", "ordinary", "thin", "requests", "of catalogs", "thin ÷ ordinary",
		"thin ÷ touched, compressed", "fetched later")
	for _, i := range table {
		for _, n := range networks {
			for _, d := range doors {
				c := r.thin(i.name, n, d.name)
				if c == nil {
					continue
				}
				own := r.cell(key{i.name, n.name, d.name, "overlay2", ""}).of(sample.fetched).median()
				fetched := c.of(sample.fetched)
				t.row(i.name, n.name, d.name, orNothing(own), megabytes(fetched.median()),
					fmt.Sprintf("%.0f", c.of(sample.requests).median()),
					megabytes(c.of(func(s sample) float64 { return float64(s.Site.Catalogs) }).median()),
					ratio(fetched.median(), own), ratio(fetched.median(), float64(r.Images[i.name].Needed)),
					megabytes(c.of(func(s sample) float64 { return float64(s.Later.Bytes) }).median()))
			}
		}
	}
	return t.b.String()
}

func orNothing(bytes float64) string {
	if bytes == 0 {
		return ""
	}
	return megabytes(bytes)
}

// nodeTable says what starts take of a node.
func (r *results) nodeTable() string {
	t := newTable("image", "link", "engine", "disk, overlay2", "disk, thin", "processor time of our daemon, thin",
		"its memory, thin")
	for _, i := range table {
		for _, n := range networks {
			for _, d := range doors {
				c := r.thin(i.name, n, d.name)
				if c == nil {
					continue
				}
				disk := func(s sample) float64 { return float64(s.Disk) }
				t.row(i.name, n.name, d.name,
					orNothing(r.cell(key{i.name, n.name, d.name, "overlay2", ""}).of(disk).median()),
					megabytes(c.of(disk).median()),
					fmt.Sprintf("%.1f s", c.of(func(s sample) float64 { return s.CPU }).median()),
					megabytes(c.of(func(s sample) float64 { return float64(s.Memory) }).median()))
			}
		}
	}
	return t.b.String()
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
