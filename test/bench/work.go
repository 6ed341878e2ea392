package main

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// workload is the first argument of the program in a container.
const workload = "workload"

// timing is how long a part of the workload took.
type timing struct {
	Name    string
	Seconds float64
}

// work walks and reads the image's files and prints how long each part took.
func work() {
	if len(os.Args) < 3 || os.Args[2] != "all" {
		return
	}
	var times []timing
	measure := func(name string, part func() error) {
		begin := time.Now()
		if err := part(); err != nil {
			fmt.Fprintln(os.Stderr, "workload:", err)
			os.Exit(1)
		}
		times = append(times, timing{name, time.Since(begin).Seconds()})
	}
	measure("find + stat, cold", walk)
	measure("find + stat, warm", walk)
	measure("open + read of small files, cold", readSmall)
	measure("open + read of small files, warm", readSmall)
	measure("sequential read of 256 MiB, cold", readLarge)
	measure("sequential read of 256 MiB, warm", readLarge)
	if err := json.NewEncoder(os.Stdout).Encode(times); err != nil {
		os.Exit(1)
	}
}

// walk asks for the attributes of everything.
func walk() error {
	return filepath.WalkDir("/tree", func(_ string, d fs.DirEntry, err error) error {
		if err == nil {
			_, err = d.Info()
		}
		return err
	})
}

// readSmall reads every small file.
func readSmall() error {
	buf := make([]byte, 64<<10)
	return filepath.WalkDir("/tree", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		for err == nil {
			_, err = f.Read(buf)
		}
		if err == io.EOF {
			return nil
		}
		return err
	})
}

// readLarge reads the large file.
func readLarge() error {
	f, err := os.Open("/large")
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for err == nil {
		_, err = f.Read(buf)
	}
	if err == io.EOF {
		return nil
	}
	return err
}
