// Command kubernetes makes what a cluster is given: the image of the node's pods, the chart, and the manifests for
// those who use no charts.
//
// The image is an OCI layout in an archive, or is pushed to a registry, with the programs of each architecture and
// nothing else. The same programs, version and date give the same bytes.
package main

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/bundle"
	"cvmfs-graphdriver/internal/durable"
)

// chart is the folder of the chart, and manifests what it gives with its values as they are: the test of a cluster
// holds them together.
//
//go:embed all:chart
var chart embed.FS

//go:embed cvmfs-snapshotter.yaml
var manifests string

// The image that chart and manifests name, to be replaced by whoever has pushed it somewhere.
const (
	placeholder = "registry.example.org/cvmfs-snapshotter"
	noVersion   = ":0.0.0"
)

// options say of what to make everything.
type options struct {
	programs string // folder with the programs of each architecture, in folders named as in GOARCH
	archs    []string
	version  string
	output   string // folder that receives the files
	push     string // repository of a registry that receives the image; "" for none
	date     time.Time
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "kubernetes:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	var o options
	flag.StringVar(&o.programs, "programs", "dist/bin", "`FOLDER` with a folder of programs for each architecture")
	flag.StringVar(&o.version, "version", "", "`VERSION` of the programs")
	flag.StringVar(&o.output, "output", "dist", "`FOLDER` that receives image, chart and manifests")
	flag.StringVar(&o.push, "push", "", "push the image to `REPOSITORY`, with the version as its tag, and name it in the manifests")
	archs := flag.String("arch", "amd64,arm64", "`ARCHITECTURES`, divided by commas")
	flag.Parse()
	if flag.NArg() > 0 || o.version == "" {
		return errors.New("want --version, and no arguments")
	}
	o.archs = strings.Split(*archs, ",")
	if o.date, err = bundle.SourceDate(); err != nil {
		return err
	}
	made, err := o.make(ctx)
	for _, name := range made {
		fmt.Println(name)
	}
	return err
}

// make makes everything, and gives what it made.
func (o *options) make(ctx context.Context) (made []string, err error) {
	index, err := o.image()
	if err != nil {
		return nil, fmt.Errorf("make the image: %w", err)
	}
	base := filepath.Join(o.output, "cvmfs-snapshotter-"+o.version)
	if err := os.MkdirAll(o.output, 0o755); err != nil {
		return nil, err
	}
	image := cmp.Or(o.push, placeholder) + ":" + o.version
	if o.push != "" {
		ref, err := name.ParseReference(image)
		if err != nil {
			return nil, err
		}
		if err := remote.WriteIndex(ref, index, remote.WithContext(ctx),
			remote.WithAuthFromKeychain(authn.DefaultKeychain)); err != nil {
			return nil, fmt.Errorf("push the image: %w", err)
		}
		made = append(made, image)
	}
	for _, file := range []struct {
		name  string
		write func(to string) error
	}{
		{base + "-image.tar", func(to string) error { return o.writeArchive(to, index) }},
		{base + "-chart.tgz", o.writeChart},
		{base + ".yaml", func(to string) error {
			text := strings.ReplaceAll(manifests, placeholder+noVersion, image)
			return durable.Replace(to, 0o644, []byte(text))
		}},
	} {
		if err := file.write(file.name); err != nil {
			return made, fmt.Errorf("make %s: %w", file.name, err)
		}
		made = append(made, file.name)
	}
	return made, nil
}
