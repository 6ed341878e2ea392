package metrics

import (
	"bytes"
	"math"
	"slices"
	"strconv"
	"strings"

	"cvmfs-graphdriver/driver/status"
)

// contentType is that of the text format.
const contentType = "text/plain; version=0.0.4; charset=utf-8"

// writer writes families in the text format of Prometheus
// (https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format).
type writer struct {
	bytes.Buffer
	name string // of the family that is being written
}

var (
	helpEscapes  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	labelEscapes = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)

// write writes a family, and nothing of one that has no sample.
func (w *writer) write(f *Family, st *status.Node) {
	begin := w.Len()
	w.name = f.Name
	w.WriteString("# HELP " + f.Name + " " + helpEscapes.Replace(f.Help) + "\n")
	w.WriteString("# TYPE " + f.Name + " " + f.Type + "\n")
	head := w.Len()
	f.samples(w, st)
	if w.Len() == head {
		w.Truncate(begin)
	}
}

// sample writes one; labels are names and values in turn.
func (w *writer) sample(value float64, labels ...string) { w.line("", value, labels) }

// count writes a sample that is a whole number.
func (w *writer) count(n int64, labels ...string) { w.line("", float64(n), labels) }

// durations writes a histogram, whose buckets hold what is in those below them, too.
func (w *writer) durations(d status.Durations, labels ...string) {
	var n int64
	for i, count := range d.Counts {
		n += count
		bound := math.Inf(1)
		if i < len(d.Bounds) {
			bound = d.Bounds[i]
		}
		w.line("_bucket", float64(n), append(slices.Clip(labels), "le", number(bound)))
	}
	w.line("_sum", d.Sum, labels)
	w.line("_count", float64(n), labels)
}

func (w *writer) line(suffix string, value float64, labels []string) {
	w.WriteString(w.name + suffix)
	for i := 0; i < len(labels); i += 2 {
		w.WriteByte("{,"[min(i, 1)])
		w.WriteString(labels[i] + `="` + labelEscapes.Replace(strings.ToValidUTF8(labels[i+1], "\uFFFD")) + `"`)
	}
	if len(labels) > 0 {
		w.WriteByte('}')
	}
	w.WriteString(" " + number(value) + "\n")
}

// number spells a number. Whole ones are spelled out, as far as they are exact.
func number(v float64) string {
	if math.IsInf(v, 1) {
		return "+Inf"
	}
	if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
		return strconv.FormatInt(int64(v), 10)
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}
