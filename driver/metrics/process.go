package metrics

import (
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/driver/status"
)

// began is about when the process began.
var began = time.Now()

// process has the names that Prometheus' client libraries give to what all programs have.
var process = []Family{
	gauge("process_resident_memory_bytes", "Memory of the server.",
		func(st *status.Node) int64 { return int64(st.Memory.Resident) }),
	gauge("go_memstats_heap_alloc_bytes", "Memory of the server's heap, live and not yet collected.",
		func(st *status.Node) int64 { return int64(st.Memory.Heap) }),
	gauge("go_goroutines", "Goroutines of the server.",
		func(*status.Node) int64 { return int64(runtime.NumGoroutine()) }),
	{
		Name: "process_cpu_seconds_total", Type: "counter", Help: "Processor time that the server took.",
		samples: func(w *writer, _ *status.Node) {
			var u unix.Rusage
			if unix.Getrusage(unix.RUSAGE_SELF, &u) == nil { // else there is none to tell
				w.sample(time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds())
			}
		},
	},
	{
		Name: "process_open_fds", Type: "gauge", Help: "File descriptors that the server has open.",
		samples: func(w *writer, _ *status.Node) {
			if entries, err := os.ReadDir("/proc/self/fd"); err == nil {
				w.count(int64(len(entries)))
			}
		},
	},
	{
		Name: "process_start_time_seconds", Type: "gauge", Help: "When the server began, since 1970: later after a crash.",
		samples: func(w *writer, _ *status.Node) { w.sample(float64(began.UnixMilli()) / 1000) },
	},
}
