package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	registryname "github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/test/images"
	"cvmfs-graphdriver/test/stand"
	"cvmfs-graphdriver/thin"
)

// layersFQRN is the repository that tests convert images into.
const layersFQRN = "layers.example.org"

// converter is a user with a repository of their own.
type converter struct {
	user
	publisher string // the publisher's folder
}

func newConverter(t *testing.T, o stand.Options) *converter {
	t.Helper()
	u := onStandWith(t, tools(t), o)
	c := &converter{u, filepath.Join(t.TempDir(), "publisher")}
	if err := publish.Create(t.Context(), c.publisher, publish.Settings{FQRN: layersFQRN},
		publish.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := c.Serve(layersFQRN, filepath.Join(c.publisher, "www/cvmfs", layersFQRN),
		filepath.Join(c.publisher, "keys", layersFQRN+".pub")); err != nil {
		t.Fatal(err)
	}
	return c
}

// convert runs the converter's program, which must succeed.
func (c *converter) convert(args ...string) string {
	c.Helper()
	cmd := exec.CommandContext(c.Context(), shared.converter(), args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+c.Engine.Socket())
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		c.Fatalf("docker2cvmfs %s: %v: %s%s", strings.Join(args, " "), err, &out, &complaint)
	}
	c.Logf("docker2cvmfs %s: %s%s", strings.Join(args, " "), &out, &complaint)
	return out.String()
}

// files runs an image until the test ends and gives the listing of its files, as they are mounted for it.
func (c *converter) files(image string, program ...string) map[string]item {
	c.Helper()
	id := c.docker(append([]string{"run", "--detach", "--network", "none", image}, program...)...)
	c.removeLater("rm", id)
	self, err := os.Executable()
	if err != nil {
		c.Fatal(err)
	}
	cmd := c.Engine.Inside(c.Context(), "/", "exec '"+self+"'")
	cmd.Env = append(cmd.Env, listVariable+"="+c.onHost(c.graph(id)["MergedDir"]))
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		c.Fatalf("list the files of %s: %v: %s", image, err, &complaint)
	}
	all := map[string]item{}
	for in := json.NewDecoder(bytes.NewReader(out)); ; {
		var i item
		err := in.Decode(&i)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			c.Fatal(err)
		}
		all[strings.Trim(i.Path, `"`)] = i
	}
	if len(all) < 5 {
		c.Fatalf("%s has %d files", image, len(all))
	}
	return pruned(all)
}

// pruned leaves out what the engine makes for each container, and what is not the image's: the times of folders that no
// layer has an entry for; times before 1970, which engines make 1970; and, in the count of a file's names, those that a
// layer above removes.
func pruned(all map[string]item) map[string]item {
	names := map[string]uint64{}
	for path, i := range all {
		switch {
		case path == "/", path == "/.dockerenv", path == "/dev", strings.HasPrefix(path, "/dev/"), path == "/etc",
			path == "/proc", path == "/sys",
			path == "/etc/hosts", path == "/etc/hostname", path == "/etc/resolv.conf", path == "/etc/mtab":
			delete(all, path)
		default:
			names[i.Same]++
		}
	}
	for path, i := range all {
		if i.Same != "" {
			i.Links = names[i.Same]
		}
		if strings.HasPrefix(path, images.NastyImplicit) && i.Content == "" {
			i.Mtime = ""
		}
		if strings.HasPrefix(i.Mtime, "-") {
			i.Mtime = "0.000000000"
		}
		all[path] = i
	}
	return all
}

// sample is an image of a test, loaded and pushed.
type sample struct {
	*images.Image
	program  []string // that runs until it is killed
	archive  string
	registry string // its name there
	want     map[string]item
}

// sample brings an image into the engine and the registry.
func (c *converter) sample(image *images.Image, registry string, program ...string) *sample {
	c.Helper()
	s := &sample{
		Image: image, program: program, archive: filepath.Join(c.TempDir(), "image.tar"),
		registry: registry + image.Name,
	}
	if err := image.WriteArchive(s.archive); err != nil {
		c.Fatal(err)
	}
	c.docker("load", "--quiet", "--input", s.archive)
	c.push(image, s.registry)
	s.want = c.files(s.Name, program...)
	return s
}

// push puts an image into the registry as it is: engines can't push a layer with a sparse file, which they have stored
// whole.
func (c *converter) push(image *images.Image, name string) {
	c.Helper()
	to, err := registryname.ParseReference(name)
	if err != nil {
		c.Fatal(err)
	}
	index, err := layout.ImageIndexFromPath(image.Dir)
	if err != nil {
		c.Fatal(err)
	}
	list, err := index.IndexManifest()
	if err != nil {
		c.Fatal(err)
	}
	from, err := index.Image(list.Manifests[0].Digest)
	if err == nil {
		err = remote.Write(to, from)
	}
	if err != nil {
		c.Fatal(err)
	}
}

// isSame runs a thin image and compares it with the one it was made of.
func (c *converter) isSame(s *sample, thinImage string) {
	c.Helper()
	if folders := c.graph(thinImage)["Folders"]; !strings.Contains(folders, "cvmfs://"+layersFQRN+"/") {
		c.Errorf("%s is not thin: %q", thinImage, folders)
	}
	if diff := cmp.Diff(s.want, c.files(thinImage, s.program...)); diff != "" {
		c.Errorf("files of %s (-original +converted):\n%s", thinImage, diff)
	}
	const config = "{{json .Config.Entrypoint}} {{json .Config.Cmd}} {{json .Config.Env}} {{json .Config.Volumes}} {{.Config.StopSignal}} {{.Config.User}} {{.Config.WorkingDir}} {{.Architecture}}"
	c.same("the configuration", c.docker("image", "inspect", "--format", config, thinImage),
		c.docker("image", "inspect", "--format", config, s.Name))
	labels := c.labels(thinImage)
	for name, value := range c.labels(s.Name) {
		if labels[name] != value {
			c.Errorf("%s: the label %s is %q, not %q", thinImage, name, labels[name], value)
		}
	}
	if labels["cvmfs-graphdriver.thin-image"] == "" {
		c.Errorf("%s: no label says that it is thin: %v", thinImage, labels)
	}
}

func (c *converter) labels(image string) (labels map[string]string) {
	c.Helper()
	said := c.docker("image", "inspect", "--format", "{{json .Config.Labels}}", image)
	if err := json.Unmarshal([]byte(said), &labels); err != nil {
		c.Fatal(err)
	}
	return labels
}

func TestConvertedImagesRunAsTheirOriginals(t *testing.T) {
	for _, view := range among([]string{"erofs", "fuse"}, "erofs") {
		t.Run(view, func(t *testing.T) { runAsOriginals(newConverter(t, inView(view))) })
	}
}

func runAsOriginals(c *converter) {
	t := c.T
	registry, busybox := c.registry(), c.program("busybox")
	nasty, err := images.MakeNasty(t.Context(), t.TempDir(), busybox)
	if err != nil {
		t.Fatal(err)
	}
	small, err := images.MakeBusybox(t.Context(), t.TempDir(), busybox)
	if err != nil {
		t.Fatal(err)
	}
	holes, err := images.MakeSparse(t.Context(), t.TempDir(), busybox)
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range []*images.Image{small, nasty, holes} {
		s := c.sample(image, registry, "sleep", "10000")
		name, _, _ := strings.Cut(filepath.Base(s.Name), ":")
		loaded := filepath.Join(t.TempDir(), "thin.tar")
		for _, way := range []struct{ from, source, output, image string }{
			{"registry", s.registry, registry + "thin/" + name + "-registry:1", ""},
			{
				"daemon", "docker-daemon:" + s.Name, "docker-daemon:thin/" + name + "-daemon:1",
				"thin/" + name + "-daemon:1",
			},
			{
				"archive", "docker-archive:" + s.archive, "docker-archive:" + loaded + ":thin/" + name + "-archive:1",
				"thin/" + name + "-archive:1",
			},
			{"layout", "oci:" + s.Dir, registry + "thin/" + name + "-layout:1", ""},
		} {
			if way.from == "daemon" && s.Name == images.Sparse {
				continue // which it can't give
			}
			t.Run(name+" from "+way.from, func(t *testing.T) {
				c := &converter{user{t, c.Stand}, c.publisher}
				// A folder each: the same layers would not be read again.
				c.convert("make-thin", "--input-reference", way.source, "--output-reference", way.output,
					"--repository", layersFQRN,
					"--subdirectory", name+"-"+way.from, "--target", "native:"+c.publisher)
				switch way.from {
				case "archive":
					c.docker("load", "--quiet", "--input", loaded)
				case "registry", "layout":
					way.image = way.output
					c.docker("pull", "--quiet", way.image)
				}
				c.isSame(s, way.image)
			})
			t.Run(name+" from "+way.from+" through a folder", func(t *testing.T) {
				(&converter{user{t, c.Stand}, c.publisher}).throughFolder(s, way.source,
					registry+"thin/"+name+"-"+way.from+"-folder:1")
			})
		}
	}
}

// throughFolder converts an image into an ordinary folder, and publishes what is there as somebody's tar would have it.
func (c *converter) throughFolder(s *sample, source, output string) {
	c.Helper()
	dir, under := c.TempDir(), strings.ReplaceAll(filepath.Base(output), ":", "-")
	c.convert("make-thin", "--input-reference", source, "--output-reference", output, "--repository", layersFQRN,
		"--subdirectory", under, "--target", "dir:"+dir)
	c.publishFolders(dir, "/"+under+"/")
	c.docker("pull", "--quiet", output)
	c.isSame(s, output)
}

// publishFolders publishes a folder for each layer, and its record where there is one, as somebody's tar would have it.
func (c *converter) publishFolders(dir, into string) {
	c.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		c.Fatal(err)
	}
	r, err := publish.Open(c.publisher, publish.Options{})
	if err != nil {
		c.Fatal(err)
	}
	tx, err := r.Begin(c.Context())
	if err != nil {
		c.Fatal(err)
	}
	defer tx.Abort()
	for _, e := range entries {
		if !e.IsDir() || len(e.Name()) != 64 {
			continue // not a layer's
		}
		record, err := os.ReadFile(filepath.Join(dir, e.Name()+thin.RecordSuffix))
		if err == nil {
			err = tx.WriteFile(c.Context(), into+e.Name()+thin.RecordSuffix, record, 0o644)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.Fatal(err)
		}
		cmd := exec.CommandContext(c.Context(), "tar", "--create", "--format=posix", "--xattrs", "--xattrs-include=*",
			"--sort=name",
			"--directory", filepath.Join(dir, e.Name()), ".")
		out, err := cmd.StdoutPipe()
		if err = errors.Join(err, cmd.Start()); err != nil {
			c.Fatal(err)
		}
		_, err = tx.Ingest(c.Context(), into+e.Name(), out, publish.LayerOptions{})
		if err = errors.Join(err, cmd.Wait()); err != nil {
			c.Fatal(err)
		}
	}
	if _, err := tx.Commit(c.Context(), publish.CommitOptions{}); err != nil {
		c.Fatal(err)
	}
}

// The steps of docs/converting.md, "By hand", with an engine that imports, pushes and runs.
func TestTheManualWayMakesAThinImage(t *testing.T) {
	c := newConverter(t, stand.Options{})
	registry := c.registry()
	image, err := images.MakeBusybox(t.Context(), t.TempDir(), c.program("busybox"))
	if err != nil {
		t.Fatal(err)
	}
	s := c.sample(image, registry, "sleep", "10000")
	dir, name := t.TempDir(), strings.TrimPrefix(s.registry, registry)
	c.convert("--registry", "http://"+registry+"v2", "pull", name, dir)
	script := exec.CommandContext(t.Context(), "sh", "-euc", `cd "$0"
for layer in *.tar.gz; do
    mkdir -p layers/${layer%.tar.gz}
    tar --numeric-owner -xzf $layer -C layers/${layer%.tar.gz}
    touch layers/${layer%.tar.gz}/.cvmfscatalog
done`, dir)
	if out, err := script.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c.publishFolders(filepath.Join(dir, "layers"), "/layers/")
	descriptor := c.convert("--registry", "http://"+registry+"v2", "thin", name, layersFQRN+"/layers")
	if err := os.WriteFile(filepath.Join(dir, "thin.json"), []byte(descriptor), 0o644); err != nil {
		t.Fatal(err)
	}
	made := registry + "thin/by-hand:1"
	c.inside("cd " + dir + "\ntar cf - thin.json | docker import - " + made + "\ndocker push " + made +
		"\ndocker rmi " + made)
	c.docker("pull", "--quiet", made)
	if diff := cmp.Diff(s.want, c.files(made, append([]string{"/bin/busybox"}, s.program...)...)); diff != "" {
		t.Errorf("files (-original +by hand):\n%s", diff)
	}
}

func TestAUserlandWithPythonRunsAsItsOriginal(t *testing.T) {
	image := needDebian(t)
	c := newConverter(t, stand.Options{})
	registry := c.registry()
	s := c.sample(image, registry, "sleep", "10000")
	c.convert("make-thin", "--input-reference", "oci:"+s.Dir, "--output-reference", registry+"thin/analysis:1",
		"--repository", layersFQRN,
		"--target", "native:"+c.publisher)
	c.docker("pull", "--quiet", registry+"thin/analysis:1")
	c.same("what the program says", c.run(registry+"thin/analysis:1"), images.DebianSays)
	c.isSame(s, registry+"thin/analysis:1")
}
