package engine

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// runc is a script that stands for the tools' runc; what it does besides is said there.
//
//go:embed runc.sh
var runc string

// pipes is where an engine keeps the named pipes of its containers, below the folder of its state.
const pipes = "/run/docker/containerd"

// wrapRunc puts the script into a folder of the engine's, which is to come first in PATH.
func (e *Engine) wrapRunc() (folder string, err error) {
	program := e.tools.find("runc")
	if program == "" {
		return "", fmt.Errorf("runc is not in %s", strings.Join(e.tools.path, ", "))
	}
	folder = e.path("bin")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return "", err
	}
	return folder, os.WriteFile(filepath.Join(folder, "runc"), []byte(RuncScript(program, e.path("engine.pid"))), 0o755)
}

// RuncScript returns the script for a runc and an engine whose process id is in a file, for engines that aren't made
// here.
func RuncScript(program, pid string) string { return runcScript(program, pid, pipes) }

func runcScript(program, pid, pipes string) string {
	head := "#!/bin/sh\n"
	for _, v := range [][2]string{{"runc", program}, {"pid", pid}, {"pipes", pipes}} {
		head += v[0] + "='" + strings.ReplaceAll(v[1], "'", `'\''`) + "'\n"
	}
	return head + runc
}
