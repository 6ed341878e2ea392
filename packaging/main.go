// Command packaging makes the deb and rpm packages of the host's programs and the plugin bundle.
//
// What a package holds is put into a folder; manual pages and completions are printed by the programs themselves,
// licences come from the sources of the modules that are linked. nfpm makes the packages of it, as nfpm.yaml says. The
// same programs, bundle, version and date give the same bytes.
//
// nfpm is not of the project's module: its own modules, pinned in nfpm.mod, would be many more than ours.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"aead.dev/minisign"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/bundle"
)

// release says of what to make packages.
type release struct {
	source     string // the source tree
	programs   string // folder with the programs of each architecture, in folders named as in GOARCH
	bundles    string // folder with the bundles' archives
	output     string // folder that receives the packages
	version    string // of the programs and bundles
	maintainer string // name and address, as in "Jo Doe <jo@example.org>"
	date       time.Time
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "packaging:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	r := release{source: "."}
	flag.StringVar(&r.programs, "programs", "dist/bin", "`FOLDER` with a folder of programs for each architecture")
	flag.StringVar(&r.bundles, "bundles", "dist", "`FOLDER` with the bundles' archives")
	flag.StringVar(&r.output, "output", "dist", "`FOLDER` that receives the packages")
	flag.StringVar(&r.version, "version", "", "`VERSION` of programs and bundles")
	flag.StringVar(&r.maintainer, "maintainer", "", "`NAME <ADDRESS>` of who looks after the packages")
	sign := flag.String("sign", "",
		"sign SHA256SUMS by the secret `KEY`, one of minisign's; its password is $MINISIGN_PASSWORD")
	arches := flag.String("arch", "amd64,arm64", "`ARCHITECTURES`, divided by commas")
	flag.Parse()
	if flag.NArg() > 0 || r.version == "" || r.maintainer == "" {
		return errors.New("want --version and --maintainer, and no arguments")
	}
	seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: want the date of the release in seconds since 1970: %w", err)
	}
	r.date = time.Unix(seconds, 0).UTC()
	var key *minisign.PrivateKey
	if *sign != "" {
		if key, err = bundle.ReadPrivateKey(*sign, password); err != nil {
			return err
		}
	}
	made, err := r.make(ctx, strings.Split(*arches, ","), key)
	for _, name := range made {
		fmt.Println(filepath.Join(r.output, name))
	}
	return err
}

// password returns that of the signing key.
func password() (string, error) {
	p, set := os.LookupEnv("MINISIGN_PASSWORD")
	if !set {
		return "", errors.New("it has a password: set $MINISIGN_PASSWORD")
	}
	return p, nil
}

// make makes the packages for some architectures, and the output's SHA256SUMS over all files there. It gives the
// packages' names.
func (r *release) make(ctx context.Context, arches []string, key *minisign.PrivateKey) ([]string, error) {
	var made []string
	for _, arch := range arches {
		names, err := r.packages(ctx, arch)
		if err != nil {
			return made, fmt.Errorf("make packages for %s: %w", arch, err)
		}
		made = append(made, names...)
	}
	entries, err := os.ReadDir(r.output)
	if err != nil {
		return made, err
	}
	var files []string
	for _, e := range entries {
		if e.Type().IsRegular() && e.Name() != bundle.SumsName && e.Name() != bundle.SignatureName {
			files = append(files, e.Name())
		}
	}
	return made, bundle.AddSums(ctx, r.output, r.version, files, key)
}

// formats are the kinds of packages, as nfpm calls them.
var formats = []string{"deb", "rpm"}

// packages makes the packages for an architecture, in place of those of the same name, and gives their names. A package
// is complete or absent.
func (r *release) packages(ctx context.Context, arch string) ([]string, error) {
	if err := os.MkdirAll(r.output, 0o755); err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp(r.output, ".packages-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	tree := filepath.Join(work, "tree")
	if err := r.tree(ctx, tree, arch); err != nil {
		return nil, err
	}
	nfpm, err := r.nfpm(ctx)
	if err != nil {
		return nil, err
	}
	config, err := filepath.Abs(filepath.Join(r.source, "packaging/nfpm.yaml"))
	if err != nil {
		return nil, err
	}
	var made []string
	for _, format := range formats {
		ready := filepath.Join(work, format)
		if err := os.Mkdir(ready, 0o755); err != nil {
			return nil, err
		}
		cmd := exec.CommandContext(ctx, nfpm, "package", "--config", config, "--packager", format, "--target",
			filepath.Join("..", format))
		cmd.Dir = tree
		cmd.Env = append(os.Environ(),
			"ARCH="+arch, "VERSION="+packageVersion(r.version, r.date), "MAINTAINER="+r.maintainer,
			"SOURCE_DATE_EPOCH="+strconv.FormatInt(r.date.Unix(), 10))
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("make a %s package: nfpm: %w: %s", format, err, out)
		}
		files, err := os.ReadDir(ready)
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			if err := os.Rename(filepath.Join(ready, f.Name()), filepath.Join(r.output, f.Name())); err != nil {
				return nil, err
			}
			made = append(made, f.Name())
		}
	}
	return made, nil
}

// nfpm returns the path of nfpm, which the go command builds and keeps in its cache.
func (r *release) nfpm(ctx context.Context) (string, error) {
	out, err := r.goCommand(ctx, "tool", "-modfile=packaging/nfpm.mod", "-n", "nfpm")
	return strings.TrimSpace(string(out)), err
}

// goCommand runs the go command in the source tree and gives its output.
func (r *release) goCommand(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = r.source
	out, err := cmd.Output()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	if err != nil {
		return nil, fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return out, nil
}
