package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cvmfs-graphdriver/test/stand"
	"cvmfs-graphdriver/test/testutil"
)

func TestASavedThinImageLoadsWithTheSameLayer(t *testing.T) {
	u := onOwnStand(t)
	u.load("thin_tiny.tar")
	const format = "{{.Id}} {{.RootFS.Layers}}"
	before := u.docker("image", "inspect", "--format", format, stand.Thin)
	said := u.run(stand.Thin)
	archive := filepath.Join(t.TempDir(), "saved.tar")
	u.docker("save", "--output", archive, stand.Thin)
	u.docker("rmi", stand.Thin)
	u.docker("load", "--input", archive)
	if after := u.docker("image", "inspect", "--format", format, stand.Thin); after != before {
		t.Errorf("was %s, is %s", before, after)
	}
	if again := u.run(stand.Thin); again != said {
		t.Errorf("the container said %q and says %q", said, again)
	}
}

func TestACommittedThinContainerRuns(t *testing.T) {
	u := onStand(t)
	const committed = "example/committed:1"
	container := u.create(stand.Thin)
	u.put(container, "/data/new", "new in the commit\n")
	u.docker("commit", container, committed)
	t.Cleanup(func() {
		if _, err := u.Engine.Docker(context.Background(), "rmi", "--force", committed); err != nil {
			t.Error(err)
		}
	})
	if got, want := u.run(committed, "/data/new", "/data/a.txt"), "new in the commit\na is back"; got != want {
		t.Errorf("the committed image says %q, want %q", got, want)
	}
	want := u.export(u.create(stand.Thin))
	got := u.export(u.create(committed))
	if _, ok := got["/data/new"]; !ok {
		t.Error("the committed image has no /data/new")
	}
	for _, changed := range []string{"/", "/data", "/data/new", "/etc", "/.dockerenv"} {
		delete(want, changed)
		delete(got, changed)
	}
	for _, files := range []map[string]file{want, got} {
		for name, f := range files {
			if f.Size == 0 { // made by the engine at the container's start, at that time
				f.ModTime = 0
				files[name] = f
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the commit changed more: %s", diff)
	}
}

func TestDiffListsExactlyWhatChanged(t *testing.T) {
	u := onStand(t)
	for _, image := range []string{stand.Ordinary, stand.Thin} {
		t.Run(image, func(t *testing.T) {
			u := user{t, u.Stand}
			container := u.create(image)
			if got := u.docker("diff", container); got != "" {
				t.Errorf("an untouched container differs: %s", got)
			}
			u.put(container, "/data/new", "new\n")
			u.put(container, "/opt/old/z", "changed\n")
			want := "C /data\nA /data/new\nC /opt\nC /opt/old\nC /opt/old/z"
			if diff := cmp.Diff(want, u.docker("diff", container)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestInspectTellsWhereAnImageLies(t *testing.T) {
	u := onStand(t)
	for image, thin := range map[string]bool{stand.Ordinary: false, stand.Thin: true} {
		t.Run(image, func(t *testing.T) {
			u := user{t, u.Stand}
			u.same("the driver", u.docker("inspect", "--format", "{{.GraphDriver.Name}}", image), stand.Plugin)
			container := u.create(image)
			u.put(container, "/data/new", "new\n")
			data := u.graph(container)
			if _, err := os.Stat(filepath.Join(u.onHost(data["UpperDir"]), "data/new")); err != nil {
				t.Errorf("the container's changes: %v", err)
			}
			if data["LowerDir"] == "" || data["MergedDir"] == "" || data["WorkDir"] == "" {
				t.Errorf("a folder is missing: %v", data)
			}
			for name, want := range map[string]string{
				"Repositories": "^" + stand.Repository + "@[0-9]+$",
				"Folders":      "^cvmfs://" + stand.Repository + "/layers/.* cvmfs://",
				"Local":        "^[0-9]+ of [0-9]+ objects, ",
			} {
				if got := u.graph(image)[name]; thin != regexp.MustCompile(want).MatchString(got) {
					t.Errorf("%s is %q; thin: %v", name, got, thin)
				}
			}
		})
	}
}

func TestAThinImageIsMadeOfItsDescriptor(t *testing.T) {
	u := onStand(t)
	folder := testutil.Data(t, "images")
	for name, build := range map[string]func(u user, image string){
		"imported": func(u user, image string) {
			archive := filepath.Join(u.TempDir(), "thin.tar")
			if out, err := exec.Command("tar", "-c", "-f", archive, "-C", folder,
				"thin.json").CombinedOutput(); err != nil {
				u.Fatalf("%v: %s", err, out)
			}
			u.docker("import", "--change", `ENTRYPOINT ["/bin/hello"]`, archive, image)
		},
		"built": func(u user, image string) {
			descriptor, err := os.ReadFile(filepath.Join(folder, "thin.json"))
			if err != nil {
				u.Fatal(err)
			}
			u.build(image, "FROM scratch\nADD thin.json /\nENTRYPOINT [\"/bin/hello\"]\n",
				map[string]string{"thin.json": string(descriptor)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			u := user{t, u.Stand}
			image := "example/" + name + "-thin:1"
			build(u, image)
			u.removeLater("rmi", image)
			u.same("what it says", u.run(image, "/data/a.txt"), u.run(stand.Thin, "/data/a.txt"))
			u.same("what it is composed of", u.graph(image)["Folders"], u.graph(stand.Thin)["Folders"])
			u.same("what is shared", u.graph(image)["Image"], u.graph(stand.Thin)["Image"])
		})
	}
}
