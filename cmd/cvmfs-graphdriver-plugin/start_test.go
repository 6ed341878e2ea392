package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/objects"
	"cvmfs-graphdriver/driver/control"
	"cvmfs-graphdriver/test/publishtest"
)

// asked returns how many objects the servers were asked for.
func (s *sight) asked() (n int) {
	for _, f := range s.servers {
		n += f.Requests("/data/") - f.Requests("C") // catalogs
	}
	return n
}

// profileOf names the content of some files of an image, and some that is no image's.
func (s *sight) profileOf(image string, files map[string]bool) []byte {
	s.t.Helper()
	var p objects.Profile
	v := publishtest.Newest(s.t, s.repo)
	must(s.t, v.Walk(s.t.Context(), "/layers/"+image, func(n *client.Node) error {
		if !files[n.Name] {
			return nil
		}
		o, err := objects.FromEntry(n.Entry, n.Path)
		if err != nil {
			return err
		}
		name, err := objects.ParseName(o.Name())
		p = append(p, objects.Read{Name: name})
		return err
	}))
	if len(p) != len(files) {
		s.t.Fatalf("%d files of %d", len(p), len(files))
	}
	return append(p.Encode(), fmt.Sprintf("%040x.z.7\n", 1)...)
}

// An image that was pulled has what its profile names, and so has one of which that has gone, once a container is
// there, which needn't read anything. A container that reads it asks for nothing more.
func TestStartProfileIsFetchedAheadOfTheReader(t *testing.T) {
	for _, view := range []string{"auto", "fuse"} {
		t.Run(view, func(t *testing.T) { startWithProfile(t, view) })
	}
}

func startWithProfile(t *testing.T, view string) {
	s := newSight(t, map[string]int{"web": 200}, "cvmfs.view="+view)
	const path = "/.metadata/web/start-profile"
	wanted := map[string]bool{}
	for i := 10; i < 200; i += 20 {
		wanted[fmt.Sprintf("f%04d", i)] = true
	}
	content := s.profileOf("web", wanted)
	tx := publishtest.Begin(t, s.repo)
	must(t, tx.WriteFile(t.Context(), path, content, 0o644))
	publishtest.Commit(t, tx)
	pull := func(id, digest string) {
		body := fmt.Sprintf(`{"version":"1.1","layers":[{"digest":"%064x","url":"cvmfs://%[2]s/layers/web"}],`+
			`"profile":{"url":"cvmfs://%[2]s%s","digest":"%s"}}`, 1, publishtest.FQRN, path, digest)
		if text := s.apply(id, "", archive(t, map[string]string{"thin.json": body})); text != "" {
			t.Fatal(text)
		}
	}
	const fetched = "start profile: fetched ahead"
	before := s.asked() + 2 // the certificate and the profile itself
	pull("web", fmt.Sprintf("%x", sha256.Sum256(content)))
	s.said.await(t, fetched)
	if n := s.asked() - before; n != len(wanted) {
		t.Errorf("%d objects were asked for, want %d", n, len(wanted))
	}
	_, err := control.CacheClean.Do(t.Context(), control.NewClient(s.root+socket), objects.CleanOptions{}, nil)
	must(t, err)
	before = s.asked()
	dir := s.container("c1", "web")
	for end := time.Now().Add(20 * time.Second); len(s.said.lines(fetched)) < 2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a container starts, and nothing is fetched")
		}
	}
	if n := s.asked() - before; n != len(wanted) {
		t.Errorf("%d objects were asked for a container, want %d", n, len(wanted))
	}
	for name := range wanted {
		if b, err := os.ReadFile(dir + "/" + name); err != nil || len(b) < 1000 {
			t.Error(name, len(b), err)
		}
	}
	if n := s.asked() - before; n != len(wanted) {
		t.Errorf("%d objects were asked for once they were read, want %d", n, len(wanted))
	}
	if st := s.status().Objects; st.StartBytes < 1000*int64(len(wanted)) {
		t.Errorf("%d bytes count as fetched by profiles", st.StartBytes)
	}
	s.end("c1")

	// A start goes on without one that isn't what the descriptor says.
	s.ok("Remove", object{"ID": "web"})
	pull("other", strings.Repeat("0", 64))
	s.container("c2", "other")
	if line := s.said.await(t, "start profile: it can't be used"); !strings.Contains(line, "wants 000000") {
		t.Error(line)
	}
}

// Without a profile the node records one, and gives it away.
func TestStartIsRecorded(t *testing.T) {
	s := newSight(t, map[string]int{"web": 200}, "cvmfs.view=auto")
	s.pull("web")
	s.read("c1", "web", 100, 120)
	s.said.await(t, "a start was recorded")
	key := s.ok("GetMetadata", object{"ID": "c1"})["Metadata"].(map[string]any)["Image"].(string)
	node := control.NewClient(s.root + socket)
	text, err := control.CacheProfile.Do(t.Context(), node, control.CacheImage{Key: key}, nil)
	must(t, err)
	p, err := objects.ParseProfile([]byte(text))
	must(t, err)
	if len(p) != 20 {
		t.Errorf("%d reads were recorded, want 20:\n%s", len(p), text)
	}
	s.end("c1")

	// The profile goes with the image. When that comes again, it is recorded again.
	s.ok("Remove", object{"ID": "web"})
	_, err = control.CacheClean.Do(t.Context(), node, objects.CleanOptions{}, nil)
	must(t, err)
	s.pull("web")
	s.read("c2", "web", 120, 140) // others: the kernel may have what it has read
	const recorded = "a start was recorded"
	for end := time.Now().Add(20 * time.Second); len(s.said.lines(recorded)) < 2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it isn't recorded again")
		}
	}
	s.end("c2")
}
