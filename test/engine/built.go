package engine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"cvmfs-graphdriver/internal/durable"
)

// modules holds a go.mod and a go.sum for each [build], as FOLDER.mod and FOLDER.sum. They pin what is built, and are
// none of the project's own. To have another version, copy both into an empty folder as go.mod and go.sum, run `go get`
// and `go mod tidy` there, and copy them back.
//
//go:embed modules
var modules embed.FS

// build is a set of programs that Debian has not, built from the Go modules they are published as. Its modules file has
// a tool line for each.
type build struct {
	folder  string // in the cache, named with the version
	ldflags string // what stamps the programs, if their sources don't
}

var (
	containerdBuild = build{folder: "containerd-2.4.2"}
	dockerdBuild    = build{
		folder: "dockerd-29.0.0-beta.24", ldflags: "-X github.com/moby/moby/v2/dockerversion.Version=29.0.0-beta.24",
	}
	crictlBuild = build{
		folder: "crictl-1.37.0", ldflags: "-X sigs.k8s.io/cri-tools/pkg/version.Version=1.37.0",
	}
	// The machinery of Kubernetes replaces modules of the same version; see there. Its etcd is named server.
	kubernetesBuild = build{
		folder: "kubernetes-1.36.3", ldflags: "-X k8s.io/component-base/version.gitVersion=v1.36.3",
	}
	helmBuild  = build{folder: "helm-3.22.0"}
	storeBuild = build{folder: "versitygw-1.8.0"}
)

// FetchStore builds what [FindStore] gives into the cache folder unless it is there: two minutes of a processor.
func FetchStore(ctx context.Context, cache string, progress io.Writer) error {
	return storeBuild.fetch(ctx, cache, progress)
}

// FindStore returns the path of versitygw, an S3 store that keeps objects in a folder; errors.Is(err, ErrNotFetched)
// when [FetchStore] would help.
func FindStore(cache string) (string, error) {
	dir := filepath.Join(cache, storeBuild.folder)
	if _, err := os.Stat(filepath.Join(dir, stampFile)); err != nil {
		return "", fmt.Errorf("find versitygw: %w: %w", ErrNotFetched, err)
	}
	return filepath.Join(dir, "bin/versitygw"), nil
}

// FetchKubernetes builds what a cluster of one node consists of into the cache folder unless it is there: ten minutes
// of two processors.
func FetchKubernetes(ctx context.Context, cache string, progress io.Writer) error {
	return errors.Join(containerdBuild.fetch(ctx, cache, progress), crictlBuild.fetch(ctx, cache, progress),
		helmBuild.fetch(ctx, cache, progress), kubernetesBuild.fetch(ctx, cache, progress))
}

// KubernetesPrograms are the folders of what [FetchKubernetes] builds, by "kubernetes" (etcd's program, named server,
// among them), "containerd", "crictl" and "helm"; errors.Is(err, ErrNotFetched) when it would help.
func KubernetesPrograms(cache string) (map[string]string, error) {
	folders := map[string]string{}
	for _, b := range []build{containerdBuild, crictlBuild, helmBuild, kubernetesBuild} {
		if _, err := os.Stat(filepath.Join(cache, b.folder, stampFile)); err != nil {
			return nil, fmt.Errorf("find the programs of a cluster: %w: %w", ErrNotFetched, err)
		}
		name, _, _ := strings.Cut(b.folder, "-")
		folders[name] = filepath.Join(cache, b.folder, "bin")
	}
	return folders, nil
}

// stampFile is made last in a folder of built programs; it names what they were built of.
const stampFile = "built-of"

// fetch builds the programs into the cache folder unless they are there.
func (b *build) fetch(ctx context.Context, cache string, progress io.Writer) error {
	stamp, err := b.stamp()
	if err != nil {
		return err
	}
	return bring(ctx, cache, b.folder, progress, func(dir string) error {
		got, err := os.ReadFile(filepath.Join(dir, stampFile))
		if err == nil && !bytes.Equal(got, stamp) {
			err = errors.New("it was built of something else")
		}
		return err
	}, func(_, root string) error {
		fmt.Fprintf(progress, "build %s\n", b.folder)
		if err := b.make(ctx, root, progress); err != nil {
			return fmt.Errorf("build %s: %w (the tests that need it will skip)", b.folder, err)
		}
		return durable.New(filepath.Join(root, stampFile), 0o644, stamp)
	})
}

// stamp returns what tells one build from another.
func (b *build) stamp() ([]byte, error) {
	sum := sha256.New()
	for _, ext := range []string{".mod", ".sum"} {
		text, err := modules.ReadFile("modules/" + b.folder + ext)
		if err != nil {
			return nil, err
		}
		sum.Write(text)
	}
	return fmt.Appendf(nil, "%x %s\n", sum.Sum(nil), b.ldflags), nil
}

// make builds the programs into root/bin. Go's own caches keep what an interrupted build has done.
func (b *build) make(ctx context.Context, root string, progress io.Writer) error {
	for _, ext := range []string{"mod", "sum"} {
		text, err := modules.ReadFile("modules/" + b.folder + "." + ext)
		if err == nil {
			err = os.WriteFile(filepath.Join(root, "go."+ext), text, 0o644)
		}
		if err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, "nice", "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w "+b.ldflags,
		"-o", "bin/", "tool")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-mod=readonly")
	cmd.Stdout, cmd.Stderr = progress, progress
	return cmd.Run()
}
