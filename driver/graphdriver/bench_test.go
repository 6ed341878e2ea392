package graphdriver_test

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkContainer is what an engine asks for to create a container and to start it: each call's share is reported.
func BenchmarkContainer(b *testing.B) {
	e := newEngine(b)
	e.ok("Init", object{"Home": "/mnt/x"})
	parent := ""
	for n := range 21 { // as many as a large image has
		layer := fmt.Sprint("layer", n)
		e.apply(layer, parent, archiveOf(b, [2]string{"file", layer}))
		parent = layer
	}
	var took [4]time.Duration
	step := func(n int, method string, args object) {
		began := time.Now()
		e.ok(method, args)
		took[n] += time.Since(began)
	}
	n := 0
	for b.Loop() {
		id := fmt.Sprint("c", n)
		n++
		step(0, "CreateReadWrite", object{"ID": id + "-init", "Parent": parent})
		step(1, "Get", object{"ID": id + "-init"})
		step(2, "Put", object{"ID": id + "-init"})
		step(0, "CreateReadWrite", object{"ID": id, "Parent": id + "-init"})
		step(3, "Remove", object{"ID": id})
		step(3, "Remove", object{"ID": id + "-init"})
	}
	for i, name := range []string{"create", "get", "put", "remove"} {
		b.ReportMetric(float64(took[i].Microseconds())/float64(n), name+"-µs")
	}
}
