package main

import (
	"bytes"
	"os"
	"runtime"
	"strconv"

	"cvmfs-graphdriver/driver/status"
)

func (s *server) status() any {
	st := status.Node{
		Version: version, Commit: commit, PID: os.Getpid(), Objects: status.Objects(s.objects.Stats()),
		Fetch: map[string]status.Fetch{}, Memory: usage(),
	}
	report, err := s.layers.Report()
	if err != nil {
		st.Err = err.Error()
		return st
	}
	st.Store = report
	repositories := s.repositories.Load()
	if repositories == nil {
		return st
	}
	for _, image := range report.Images {
		for _, pin := range image.Layers {
			if f, ok := repositories.Opened(pin.FQRN); ok { // one that isn't open has fetched nothing
				st.Fetch[pin.FQRN] = status.Fetch(f.Stats())
			}
		}
	}
	return st
}

// usage measures the server's memory.
func usage() status.Memory {
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	m := status.Memory{Heap: stats.HeapAlloc}
	if b, err := os.ReadFile("/proc/self/statm"); err == nil {
		if fields := bytes.Fields(b); len(fields) > 1 {
			if pages, err := strconv.ParseUint(string(fields[1]), 10, 64); err == nil {
				m.Resident = pages * uint64(os.Getpagesize())
			}
		}
	}
	return m
}
