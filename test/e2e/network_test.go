package e2e

import (
	"context"
	"errors"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/stand"
)

// patience is how long a container may wait for a file that can't be had: the configured wait for a server, 2 s, for
// each of two tries, and what a busy machine needs to start a container.
const patience = 60 * time.Second

// blob is the stored object of /data/blob in the reference repository.
const blob = "data/80/9f7c9508c7f9a16258b57859621129a8bf2571"

func TestASecondStartAsksNothingOfTheNetwork(t *testing.T) {
	u := onStand(t)
	said := u.run(stand.Thin)
	before := u.Site.Count()
	if again := u.run(stand.Thin); again != said {
		t.Errorf("the container said %q and says %q", said, again)
	}
	if asked := u.Site.Count().Sub(before); asked.Requests != 0 {
		t.Errorf("the second start made %d requests", asked.Requests)
	}
}

func TestLoadingAThinImageFetchesNoFileOfIt(t *testing.T) {
	u := onOwnStand(t)
	u.load("thin_tiny.tar")
	if got := u.Site.Count(); got.Bytes > 100_000 {
		t.Errorf("loading fetched %d bytes: the image's large file, or what it needs not", got.Bytes)
	}
}

func TestWithTheServerGoneWhatWasReadIsThereAndTheRestIsAnError(t *testing.T) {
	for name, lose := range map[string]func(u user) (back func()){
		"stopped": func(u user) func() {
			if err := u.Site.Stop(); err != nil {
				u.Fatal(err)
			}
			return func() {
				if err := u.Site.Start(); err != nil {
					u.Fatal(err)
				}
			}
		},
		"stalled": func(u user) func() { return u.Site.Stall() },
	} {
		t.Run(name, func(t *testing.T) {
			u := onOwnStand(t)
			// A file that is fetched ahead would be there: this one never gets through.
			u.Site.Withhold(path.Join(stand.Repository, blob))
			u.load("thin_tiny.tar")
			said := u.run(stand.Thin, "/data/a.txt")
			container := u.start(stand.Thin)
			back := lose(u)
			u.Site.Withhold("")

			u.within(patience, "running what was read once", func(ctx context.Context) {
				again, err := u.Engine.Docker(ctx, "run", "--rm", "--network", "none", stand.Thin, "/data/a.txt")
				if err != nil || strings.TrimSpace(again) != said {
					t.Errorf("the container said %q and says %q, %v", said, again, err)
				}
			})
			u.within(patience, "reading a file that was never read", func(context.Context) {
				if _, err := os.ReadFile(filepath.Join(container.root, "data/blob")); !errors.Is(err, unix.EIO) {
					t.Errorf("got %v, want an input/output error", err)
				}
			})
			back()
			u.eventually("reading it with the server back", func() error {
				content, err := os.ReadFile(filepath.Join(container.root, "data/blob"))
				if err == nil && len(content) != 600_000 {
					t.Errorf("it has %d bytes, want 600000", len(content))
				}
				return err
			})
			if _, err := container.end(); err != nil {
				t.Error(err)
			}
		})
	}
}
