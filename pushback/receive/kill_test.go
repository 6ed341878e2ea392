package receive

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cvmfs-graphdriver/convert/sink"
	"cvmfs-graphdriver/convert/sink/sinktest"
	"cvmfs-graphdriver/cvmfs/publish"
	"cvmfs-graphdriver/cvmfs/publish/s3/s3test"
	"cvmfs-graphdriver/pushback/api"
	"cvmfs-graphdriver/test/publishtest"
	"cvmfs-graphdriver/test/testutil"
)

// What makes the test's own program a service: its configuration, and the step after which it kills itself, or "" where
// it runs until it is killed.
const (
	asService = "TEST_RUNS_SERVICE"
	killedAt  = "TEST_KILLED_AT"
	sends     = "TEST_SENDS"           // file that it sends itself
	machine   = "TEST_RELEASE_MACHINE" // where its release manager machine is
)

func TestMain(m *testing.M) {
	if text := os.Getenv(asService); text != "" {
		if err := beService(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	publishtest.Main(m, nil)
}

func beService(text string) error {
	var c Config
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	if place := os.Getenv(machine); place != "" {
		if err := json.Unmarshal([]byte(place), &c.place); err != nil {
			return err
		}
	}
	s, err := New(&c, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return err
	}
	at := os.Getenv(killedAt)
	if at == "" {
		return s.Run(context.Background(), nil)
	}
	s.step = func(step string) {
		if step == at {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	if file := os.Getenv(sends); file != "" {
		if err := sendItself(s, file); err != nil {
			return err
		}
	}
	if err := s.poll(context.Background()); err != nil {
		return err
	}
	s.round(context.Background())
	return nil
}

func sendItself(s *Service, file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	web := httptest.NewServer(s.handler())
	defer web.Close()
	c, err := api.NewClient(web.URL+"/status", api.Options{Token: token1})
	if err != nil {
		return err
	}
	_, err = c.Upload(context.Background(), api.Layer{Digest: hexSum(b), Size: int64(len(b))}, bytes.NewReader(b))
	return err
}

// service starts the test's program as a service.
func service(t *testing.T, c *Config, env ...string) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
	cmd.Env = append(append(os.Environ(), asService+"="+string(text)), env...)
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// atRest is a configuration with a store, of a service that doesn't run.
func atRest(t *testing.T) (*Config, *s3test.Store) {
	t.Helper()
	c, store := newConfig(t), s3test.NewStore(t)
	c.Bucket.Address = "s3://" + s3test.Bucket + "/in?endpoint=" + store.URL
	t.Setenv("AWS_ACCESS_KEY_ID", s3test.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s3test.SecretKey)
	return c, store
}

// sound checks the publisher's repository.
func sound(t *testing.T, c *Config) {
	t.Helper()
	r, err := publish.Open(strings.TrimPrefix(c.Target, "native:"), publish.Options{})
	if err != nil {
		t.Fatal(err)
	}
	publishtest.MustBeSound(t, r)
}

func TestAServiceThatIsKilledAtAnyStepGoesOnFromThere(t *testing.T) {
	for _, step := range []string{
		"received", "recorded", "fetched", "judged", "added", "committed", "audited", "settled", "whole",
	} {
		t.Run(step, func(t *testing.T) {
			c, store := atRest(t)
			l, second := newLayer(t, "file"), newLayer(t, "second")
			put := func(l layer) {
				store.Set("in/"+l.digest, l.archive, nil)
			}
			put(second)
			env := []string{killedAt + "=" + step}
			if step == "whole" {
				file := t.TempDir() + "/archive"
				if err := os.WriteFile(file, l.archive, 0o600); err != nil {
					t.Fatal(err)
				}
				env = append(env, sends+"="+file)
			} else {
				put(l)
			}
			err := service(t, c, env...).Wait()
			if err == nil || !strings.Contains(err.Error(), "killed") {
				t.Fatalf("it wasn't killed: %v", err)
			}
			s, err := New(c, slog.New(slog.NewTextHandler(t.Output(), nil)))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			s.round(t.Context())
			if err := s.poll(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.round(t.Context())
			if err := s.poll(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, l := range []layer{l, second} {
				if a := s.answer(l.digest); a.Status != api.Done {
					t.Errorf("%+v", a)
				}
				said := decided(audited(t, c, l))
				if !strings.HasPrefix(said, "received") || !strings.HasSuffix(said, "published") &&
					!strings.HasSuffix(said, "present") {
					t.Errorf("audit: %s", said)
				}
			}
			hasLayers(t, c, l, second)
			sound(t, c)
			if left := store.Keys(); len(left) != 0 {
				t.Errorf("left in the bucket: %v", left)
			}
			if left, err := os.ReadDir(c.State + "/" + incomingFolder); err != nil || len(left) != 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

// A killed process leaves a release manager machine's transaction open: the next one ends it, and publishes.
func TestAServiceThatIsKilledOnAReleaseManagerMachineGoesOn(t *testing.T) {
	testutil.NeedRoot(t)
	for _, step := range []string{"added", "committed", "audited"} {
		t.Run(step, func(t *testing.T) {
			c, store := atRest(t)
			m := sinktest.NewServer(t, testFQRN, sinktest.GoodSettings)
			c.Target = "cvmfs_server:" + testFQRN
			c.place = sink.Options{Server: m.Program, Root: m.Root, Config: m.Config, Spool: m.Spool}
			place, err := json.Marshal(c.place)
			if err != nil {
				t.Fatal(err)
			}
			l := newLayer(t, "file")
			store.Set("in/"+l.digest, l.archive, nil)
			err = service(t, c, killedAt+"="+step, machine+"="+string(place)).Wait()
			if err == nil || !strings.Contains(err.Error(), "killed") {
				t.Fatalf("it wasn't killed: %v", err)
			}
			s, err := New(c, slog.New(slog.NewTextHandler(t.Output(), nil)))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			s.round(t.Context())
			if a := s.answer(l.digest); a.Status != api.Done {
				t.Errorf("%+v", a)
			}
			names, err := os.ReadDir(filepath.Join(m.Root, testFQRN, "layers", l.digest))
			if err != nil || len(names) != 3 {
				t.Errorf("%v, %v", names, err)
			}
			calls, err := os.ReadFile(filepath.Join(m.Dir, "calls"))
			want := "transaction F\npublish F\n"
			if step == "added" {
				want = "transaction F\nabort -f F\n" + want
			}
			if err != nil || string(calls) != strings.ReplaceAll(want, "F", testFQRN) {
				t.Errorf("calls: %s, %v", calls, err)
			}
		})
	}
}

func TestAServiceThatIsKilledAgainAndAgainPublishesAll(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	c, store := atRest(t)
	c.Bucket.Poll = 20 * time.Millisecond
	random := rand.New(rand.NewPCG(1, 2))
	var all []layer
	for round := range rounds {
		for n := range 3 {
			l := newLayer(t, fmt.Sprint("file ", round, n))
			all = append(all, l)
			store.Set("in/"+l.digest, l.archive, nil)
		}
		cmd := service(t, c)
		time.Sleep(time.Duration(20+random.IntN(250)) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	s, err := New(c, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for range 2 {
		if err := s.poll(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.round(t.Context())
	}
	hasLayers(t, c, all...)
	sound(t, c)
	if left := store.Keys(); len(left) != 0 {
		t.Errorf("left in the bucket: %v", left)
	}
}
