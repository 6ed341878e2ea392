package main

import (
	"bytes"
	"os"
	"runtime"
	"strconv"

	"cvmfs-graphdriver/cvmfs/fetch"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/driver/layers"
)

// status is what /CvmfsGraphDriver.Status answers. Counters begin with the server's life.
type status struct {
	Version string                 `json:"version"`
	Commit  string                 `json:"commit"`
	PID     int                    `json:"pid"`
	Objects objects.Stats          `json:"objects"`
	Fetch   map[string]fetch.Stats `json:"fetch"` // by repository, of those that images in use were composed from
	Store   layers.Report          `json:"store"`
	Memory  memory                 `json:"memory"`
	Err     string                 `json:"error,omitempty"` // why Store is empty
}

// memory of the server, bytes.
type memory struct {
	Heap     uint64 `json:"heap"`     // live and not yet collected
	Resident uint64 `json:"resident"` // 0 where /proc doesn't tell
}

func (s *server) status() any {
	st := status{
		Version: version, Commit: commit, PID: os.Getpid(), Objects: s.objects.Stats(),
		Fetch: map[string]fetch.Stats{}, Memory: usage(),
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
				st.Fetch[pin.FQRN] = f.Stats()
			}
		}
	}
	return st
}

// usage measures the server's memory.
func usage() memory {
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	m := memory{Heap: stats.HeapAlloc}
	if b, err := os.ReadFile("/proc/self/statm"); err == nil {
		if fields := bytes.Fields(b); len(fields) > 1 {
			if pages, err := strconv.ParseUint(string(fields[1]), 10, 64); err == nil {
				m.Resident = pages * uint64(os.Getpagesize())
			}
		}
	}
	return m
}
