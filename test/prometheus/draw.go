package prometheus

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"cvmfs-graphdriver/test/engine"
)

// gnuplot is the program that draws, which is fetched when it is asked for.
func gnuplot() *engine.Unpacked {
	return &engine.Unpacked{
		Folder: "gnuplot-1", What: "the Debian package of gnuplot", Packages: []string{"gnuplot-nox"}, Needs: true,
		Works: func(dir string) error {
			_, err := find(dir, "gnuplot-nox")
			return err
		},
	}
}

// Draw draws a dashboard's panels, of what the server at a URL knows of a time, into a PNG file.
func Draw(ctx context.Context, progress io.Writer, server string, d *Dashboard, from, to time.Time, file string) error {
	cache, err := engine.CacheDir()
	if err != nil {
		return err
	}
	if err := gnuplot().Fetch(ctx, cache, progress); err != nil {
		return err
	}
	dir := filepath.Join(cache, gnuplot().Folder)
	program, err := find(dir, "gnuplot-nox")
	if err != nil {
		return err
	}
	libs, err := engine.Libraries(dir)
	if err != nil {
		return err
	}
	script, err := script(ctx, server, d, from, to, file)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program)
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join(libs, ":"))
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("gnuplot: %w: %s", err, out)
	}
	return nil
}

// columns of panels in the picture, as in Grafana's grid.
const columns = 3

// script is what gnuplot is to do.
func script(ctx context.Context, server string, d *Dashboard, from, to time.Time, file string) (string, error) {
	var b strings.Builder
	rows := (len(d.Panels) + columns - 1) / columns
	fmt.Fprintf(&b, "set terminal pngcairo size %d,%d font 'sans,9' rounded\nset output '%s'\n", 520*columns, 250*rows, file)
	fmt.Fprintf(&b, "set multiplot layout %d,%d margins 0.05,0.985,0.03,0.975 spacing 0.055,0.05\n", rows, columns)
	b.WriteString("set grid lc rgb '#dddddd'\nset border 3 lc rgb '#888888'\nset tics nomirror\nset yrange [0:*]\nset offsets 0,0,graph 0.4,0\n" +
		"set key top left samplen 1.5 spacing 0.9 font 'sans,8' maxrows 8\nset xtics font 'sans,8'\n")
	fmt.Fprintf(&b, "set xrange [0:%.0f]\nset format x '%%.0f s'\n", to.Sub(from).Seconds())
	for _, p := range d.Panels {
		var series []Series
		for _, t := range p.Targets {
			got, err := Range(ctx, server, t, from, to, time.Second)
			if err != nil {
				return "", err
			}
			series = append(series, got...)
		}
		b.WriteString(plot(&p, series, float64(from.Unix())))
	}
	b.WriteString("unset multiplot\n")
	return b.String(), nil
}

// formats are gnuplot's for the units of panels.
var formats = map[string]string{
	"bytes": "%.1b %BB", "Bps": "%.1b %BB/s", "s": "%.1s %cs", "ops": "%g /s", "percentunit": "%.3g %%", "short": "%g",
}

// plot is what gnuplot is to do for a panel.
func plot(p *Panel, series []Series, begin float64) string {
	var b strings.Builder
	unit := p.FieldConfig.Defaults.Unit
	fmt.Fprintf(&b, "set title \"%s\" font 'sans Bold,10' offset 0,-0.6\nset format y '%s'\n", p.Title, formats[unit])
	var plots []string
	for i, s := range series {
		fmt.Fprintf(&b, "$d%d << EOD\n", i)
		last := math.Inf(-1)
		for n, v := range s.Values {
			if s.Times[n]-last > 5 {
				b.WriteByte('\n') // a gap
			}
			if last = s.Times[n]; unit == "percentunit" {
				v *= 100
			}
			if math.IsNaN(v) {
				b.WriteByte('\n')
				continue
			}
			fmt.Fprintf(&b, "%.0f %g\n", s.Times[n]-begin, v)
		}
		b.WriteString("EOD\n")
		if slices.ContainsFunc(s.Values, func(v float64) bool { return !math.IsNaN(v) }) {
			plots = append(plots, fmt.Sprintf("$d%d with lines lw 1.5 title \"%s\" noenhanced", i, s.Legend))
		}
	}
	if len(plots) == 0 {
		plots = []string{"[][0:1] 2 notitle"} // outside
	}
	return b.String() + "plot " + strings.Join(plots, ", ") + "\n"
}
