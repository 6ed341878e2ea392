package engine

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/testutil"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

// leavesTheMachine runs a test with engines, in a temporary folder that is theirs, and fails if the machine is not
// afterwards as it was before.
func leavesTheMachine(t *testing.T, run func(t *testing.T)) {
	t.Helper()
	dir, err := os.MkdirTemp("", "engines-") // t.TempDir is too long a path for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("TMPDIR", dir)
	before, err := Machine(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("run", run)
	after, err := Machine(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("the machine changed: %s", diff)
	}
}

func TestAnEngineRunsAContainerAndLeavesTheMachineAsItWas(t *testing.T) {
	leavesTheMachine(t, func(t *testing.T) {
		e := NewFor(t, Find)
		ctx := t.Context()
		if err := e.Start(ctx, map[string]any{"storage-driver": "overlay2"}); err != nil {
			t.Fatal(err)
		}
		loaded, err := e.Docker(ctx, "load", "--input", testutil.Data(t, "images", "tiny.tar"))
		if err != nil {
			t.Fatal(err)
		}
		image := strings.TrimSpace(strings.TrimPrefix(loaded, "Loaded image: "))
		script := e.path("bin/runc")
		text, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		calls := e.path("calls")
		if err := os.WriteFile(script,
			[]byte(strings.Replace(string(text), "\n", "\n{ echo \"$@\"; ls "+pipes+"/*; } >>'"+calls+"'\n", 1)),
			0o755); err != nil {
			t.Fatal(err)
		}
		said, err := e.Docker(ctx, "run", "--network", "none", image)
		if err != nil {
			t.Fatal(err)
		}
		if said == "" {
			t.Error("the container said nothing")
		}
		if called, err := os.ReadFile(calls); err != nil || !strings.Contains(string(called), " start ") ||
			!strings.Contains(string(called), "init-stdout\n") {
			t.Errorf("the engine starts containers past %s, or has its pipes elsewhere: %q, %v", script, called, err)
		}
		during, err := Machine(os.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		for _, trace := range []string{"process ", "/sys/fs/cgroup/"} {
			if !slices.ContainsFunc(during, func(s string) bool { return strings.HasPrefix(s, trace) }) {
				t.Errorf("Machine does not see the running engine: nothing that begins with %q", trace)
			}
		}
		inside, err := e.Inside(ctx, "/etc", "docker info --format '{{.Driver}}' | tee engine-driver").CombinedOutput()
		if err != nil || strings.TrimSpace(string(inside)) != "overlay2" {
			t.Errorf("a script beside the engine said %q, %v, want its storage driver", inside, err)
		}
		if err := e.Kill(ctx); err != nil {
			t.Fatal(err)
		}
		if err := e.Start(ctx, map[string]any{"storage-driver": "overlay2"}); err != nil {
			t.Fatalf("after a kill: %v", err)
		}
		if err := e.Stop(ctx); err != nil {
			t.Fatal(err)
		}
	})
}

func TestAnEngineThatDoesNotStartSaysWhy(t *testing.T) {
	e := NewFor(t, Find)
	err := e.Start(t.Context(), map[string]any{"no-such-setting": true})
	if err == nil {
		t.Fatal("an engine with an unknown setting started")
	}
	if !strings.Contains(err.Error(), "no-such-setting") {
		t.Errorf("the error doesn't name the setting: %v", err)
	}
}

func TestCloseEndsAnEngineThatStillRuns(t *testing.T) {
	e := NewFor(t, Find)
	if err := e.Start(t.Context(), map[string]any{"storage-driver": "vfs"}); err != nil {
		t.Fatal(err)
	}
	keeper := e.keeper.Process.Pid
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(keeper, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("the keeper is still there: %v", err)
	}
	if _, err := e.Docker(t.Context(), "version"); err == nil {
		t.Error("the engine still answers")
	}
}

func TestFindNamesWhatIsMissing(t *testing.T) {
	t.Setenv("ENGINE", "")
	if _, err := Find(t.Context(), t.TempDir()); !errors.Is(err, ErrNotFetched) {
		t.Errorf("an empty cache: %v", err)
	}
	broken := t.TempDir()
	if err := os.MkdirAll(filepath.Join(broken, "engine/usr/sbin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Find(t.Context(), broken); !errors.Is(err, ErrNotFetched) {
		t.Errorf("a cache without programs: %v", err)
	}
	t.Setenv("ENGINE", filepath.Join(broken, "dockerd"))
	if _, err := Find(t.Context(), broken); err == nil || errors.Is(err, ErrNotFetched) {
		t.Errorf("an ENGINE that does not exist: %v", err)
	}
}
