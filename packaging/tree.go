package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"cvmfs-graphdriver/bundle"
)

// programs are those of the host, and shells those that have a place for completions: the path of a program's, %s being
// its name.
var (
	programs = []string{"cvmfs-graphdriver", "cvmfs-snapshotter", "docker2cvmfs"}
	shells   = map[string]string{
		"bash": "usr/share/bash-completion/completions/%s",
		"fish": "usr/share/fish/vendor_completions.d/%s.fish",
		"zsh":  "usr/share/zsh/_%s",
	}
)

// shared are the folders of the package's own.
const (
	share = "usr/share/cvmfs-graphdriver"
	doc   = "usr/share/doc/cvmfs-graphdriver"
)

// units are the definitions of services, by where they are.
var units = map[string]string{
	"cvmfs-snapshotter.service":    "installer/service",
	"docker2cvmfs-receive.service": "packaging/systemd",
}

// tree fills a new folder with what packages for an architecture hold, as nfpm.yaml wants it.
func (r *release) tree(ctx context.Context, dir, arch string) error {
	t := &tree{dir: dir, date: r.date}
	for _, name := range programs {
		program := filepath.Join(r.programs, arch, name)
		got, err := bundle.ProgramArch(program)
		if err != nil {
			return err
		}
		if got != arch {
			return fmt.Errorf("the program %s is for %s: want one for %s", program, got, arch)
		}
		t.copy("usr/bin/"+name, program, 0o755)
	}
	archive := fmt.Sprintf("cvmfs-graphdriver-plugin-%s-%s.tar.gz", r.version, arch)
	if _, err := bundle.Verify(filepath.Join(r.bundles, archive), nil); err != nil {
		return err
	}
	for unit, folder := range units {
		t.copy("usr/lib/systemd/system/"+unit, filepath.Join(r.source, folder, unit), 0o644)
	}
	t.copy(share+"/"+archive, filepath.Join(r.bundles, archive), 0o644)
	if err := r.addPrinted(ctx, t); err != nil {
		return err
	}
	if err := r.addDocs(t); err != nil {
		return err
	}
	licences, err := r.licences(ctx, arch)
	if err != nil {
		return err
	}
	t.compressed(doc+"/THIRD-PARTY-LICENSES.gz", licences)
	if t.err != nil {
		return t.err
	}
	return t.stamp()
}

// addPrinted adds what the programs print: this machine's, which say the same as those of another architecture.
func (r *release) addPrinted(ctx context.Context, t *tree) error {
	for _, name := range programs {
		printed := func(args ...string) []byte {
			cmd := exec.CommandContext(ctx, filepath.Join(r.programs, runtime.GOARCH, name),
				append([]string{"docs"}, args...)...)
			out, err := cmd.Output()
			if err != nil && t.err == nil {
				t.err = fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err)
			}
			return out
		}
		t.compressed("usr/share/man/man1/"+name+".1.gz", printed("man", "--date", r.date.Format(time.DateOnly)))
		for shell, place := range shells {
			t.write(fmt.Sprintf(place, name), printed(shell))
		}
	}
	return t.err
}

// addDocs adds guides, changelogs, licences and examples.
func (r *release) addDocs(t *tree) error {
	source := func(name string) string { return filepath.Join(r.source, name) }
	guides, err := filepath.Glob(source("docs/*.md"))
	if err != nil {
		return err
	}
	for _, name := range guides {
		t.copy(doc+"/docs/"+filepath.Base(name), name, 0o644)
	}
	t.copy(doc+"/README.md", source("README.md"), 0o644)
	t.copy(doc+"/copyright", source("packaging/copyright"), 0o644)
	t.copy("LICENSE", source("LICENSE"), 0o644)
	t.copy("lintian-overrides", source("packaging/lintian-overrides"), 0o644)
	changes, err := os.ReadFile(source("CHANGELOG.md"))
	if err != nil {
		return err
	}
	t.compressed(doc+"/changelog.gz", changes)
	t.compressed("changelog.Debian.gz",
		fmt.Appendf(nil, "cvmfs-graphdriver (%s-1) unstable; urgency=medium\n\n  * What is new: changelog.gz\n\n -- %s  %s\n",
			packageVersion(r.version, r.date), r.maintainer, r.date.Format(time.RFC1123Z)))
	for from, to := range map[string]string{"examples": "", "grafana": "grafana/", "prometheus": "prometheus/"} {
		if err := t.addFolder(doc+"/examples/"+to, source("packaging/"+from)); err != nil {
			return err
		}
	}
	return nil
}

// addFolder adds the files below a folder.
func (t *tree) addFolder(to, from string) error {
	return filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		below, err := filepath.Rel(from, name)
		t.copy(to+below, name, 0o644)
		return err
	})
}

// tree is a folder that is being filled. The first error stays and stops all else.
type tree struct {
	dir  string
	date time.Time
	err  error
}

func (t *tree) copy(name, from string, mode fs.FileMode) {
	if t.err != nil {
		return
	}
	var content []byte
	if content, t.err = os.ReadFile(from); t.err == nil {
		t.add(name, content, mode)
	}
}

func (t *tree) write(name string, content []byte) { t.add(name, content, 0o644) }

// compressed writes a file as Debian's tools do it: at the best level, without name and time.
func (t *tree) compressed(name string, content []byte) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err == nil {
		_, err = z.Write(content)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil && t.err == nil {
		t.err = err
	}
	t.write(name, b.Bytes())
}

// add writes a file, whatever the umask.
func (t *tree) add(name string, content []byte, mode fs.FileMode) {
	if t.err != nil {
		return
	}
	path := filepath.Join(t.dir, name)
	if t.err = os.MkdirAll(filepath.Dir(path), 0o755); t.err != nil {
		return
	}
	if t.err = os.WriteFile(path, content, mode); t.err == nil {
		t.err = os.Chmod(path, mode)
	}
}

// stamp gives everything the date of the release, and folders the mode that packages want.
func (t *tree) stamp() error {
	return filepath.WalkDir(t.dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = os.Chmod(name, 0o755)
		}
		if err != nil {
			return err
		}
		return os.Chtimes(name, t.date, t.date)
	})
}
