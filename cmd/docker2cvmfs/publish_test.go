package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cvmfs-graphdriver/cvmfs/publish/s3/s3test"
	"cvmfs-graphdriver/internal/program"
	"cvmfs-graphdriver/test/testutil"
)

func TestRepositoryIsMadeAndLookedAfter(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "layers")
	must(t, "publish", "create", "--hash", "shake128", "--ttl", "2m", dir, testFQRN)
	var info struct {
		FQRN      string `json:"fqrn"`
		Algorithm string `json:"algorithm"`
		TTL       int    `json:"ttl"`
	}
	if err := json.Unmarshal([]byte(must(t, "publish", "info", "--json", dir)), &info); err != nil ||
		info.FQRN != testFQRN || info.Algorithm != "shake128" || info.TTL != 120 {
		t.Errorf("%+v, %v", info, err)
	}
	if out := must(t, "publish", "info", dir); !strings.Contains(out, "revision    0") {
		t.Error(out)
	}
	must(t, "publish", "tag", "--description", "empty", dir, "add", "start")
	if out := must(t, "publish", "tag", dir); !strings.Contains(out, "start\t0\t") ||
		!strings.Contains(out, `"empty"`) {
		t.Error(out)
	}
	must(t, "publish", "tag", dir, "remove", "start")
	if out := must(t, "publish", "tag", dir, "list"); strings.Contains(out, "start") {
		t.Error(out)
	}
	if out := must(t, "publish", "resign", "--days", "3", "--new-key", dir); !strings.Contains(out, "good until") {
		t.Error(out)
	}
	if out := must(t, "publish", "check", "--content", dir); !strings.Contains(out, "is sound") {
		t.Error(out)
	}
	if out := must(t, "publish", "gc", "--dry-run", dir); !strings.Contains(out, "would be removed") {
		t.Error(out)
	}
	must(t, "publish", "gc", "--keep-revisions", "0", dir)
	must(t, "publish", "check", dir)
}

func TestAnImageIsConvertedIntoABucket(t *testing.T) {
	alone(t)
	store := s3test.NewStore(t)
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} {
		t.Setenv(name, s3test.Env(name))
	}
	dir := filepath.Join(t.TempDir(), "layers")
	must(t, "publish", "create", "--storage", store.Address(), dir, testFQRN)
	store.Fail = 2 // the first requests; they are made again
	must(t, "make-thin", "-i", "docker-archive:"+testutil.Data(t, "images", "tiny.tar"), "-o",
		"oci:"+t.TempDir()+"/thin", "--target", "native:"+dir)
	if out := must(t, "publish", "check", "--content", dir); !strings.Contains(out, "is sound") {
		t.Error(out)
	}
	must(t, "publish", "tag", dir, "add", "start")
	must(t, "publish", "gc", dir)
	must(t, "publish", "check", dir)
	if _, err := os.Stat(filepath.Join(dir, "www")); err == nil {
		t.Error("there is a folder to be served")
	}
	for _, file := range []string{".cvmfspublished", ".cvmfswhitelist", ".cvmfsreflog"} {
		if len(store.Objects["cvmfs/repo/"+file].Content) == 0 {
			t.Errorf("%s is not in the bucket", file)
		}
	}
}

func TestPublishCommandsRefuseWhatIsWrong(t *testing.T) {
	dir := newPublisher(t)
	for _, c := range []struct {
		code int
		args []string
	}{
		{program.Usage, []string{"create", dir}},
		{program.Usage, []string{"create", "--ttl", "1ms", dir, testFQRN}},
		{program.Usage, []string{"create", "--chunk-size", "many", dir, testFQRN}},
		{program.Failed, []string{"create", "--chunk-size", "1", dir + "2", testFQRN}},
		{program.Usage, []string{"nonsense"}},
		{program.Usage, []string{"info"}},
		{program.Usage, []string{"resign", "--days", "0", dir}},
		{program.Usage, []string{"tag", dir, "rename", "a"}},
		{program.Usage, []string{"gc", "--keep-revisions", "-1", dir}},
		{program.Failed, []string{"create", dir, testFQRN}},
		{program.Failed, []string{"create", "--storage", "ftp://x/y", dir + "2", testFQRN}},
		{program.Failed, []string{"tag", dir, "remove", "trunk"}},
		{program.Failed, []string{"info", t.TempDir()}},
	} {
		if code, _, errOut := call(t, append([]string{"publish"}, c.args...)...); code != c.code || errOut == "" {
			t.Errorf("%v: exit code %d, want %d: %s", c.args, code, c.code, errOut)
		}
	}
	if _, err := os.Stat(dir + "2"); !os.IsNotExist(err) {
		t.Error("a refused repository left its folder")
	}
}

func TestServeServesUntilItIsEnded(t *testing.T) {
	dir := newPublisher(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	in, out := io.Pipe()
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, []string{"docker2cvmfs", "publish", "serve", "--listen", "127.0.0.1:0", dir}, out, io.Discard)
		out.Close()
	}()
	line, err := bufio.NewReader(in).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.Get(strings.TrimSpace(strings.TrimPrefix(line, "serving ")) + "/.cvmfspublished")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		t.Error(answer.Status)
	}
	cancel()
	if code := <-done; code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestPublishingGuideSaysWhatWorks(t *testing.T) {
	bin, dir := t.TempDir(), filepath.Join(t.TempDir(), "layers")
	program, err := os.Executable()
	if err == nil {
		err = os.Symlink(program, filepath.Join(bin, "docker2cvmfs"))
	}
	if err != nil {
		t.Fatal(err)
	}
	script := "set -e\n" + strings.ReplaceAll(strings.Join(blocks(t, "publishing.md", "sh"), "\n"), "/srv/layers", dir)
	if strings.Count(script, "docker2cvmfs publish") < 8 {
		t.Fatalf("the guide's commands are missing:\n%s", script)
	}
	c := exec.CommandContext(t.Context(), "sh", "-c", script)
	c.Env = append(os.Environ(), asProgram+"=1", "PATH="+bin+":"+os.Getenv("PATH"))
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v:\n%s\n%s", err, script, out)
	}
}
