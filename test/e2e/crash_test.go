package e2e

import (
	"path"
	"testing"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/test/stand"
)

func TestARunningContainerOutlivesACrashOfTheDriver(t *testing.T) {
	for name, test := range map[string]struct {
		victim func(inner int) bool // by the process's number within the plugin, where the supervisor is 1
		file   string               // read by the running container after the crash
		view   string
	}{
		// The one that takes over answers for files that were never fetched.
		"its server":                   {func(inner int) bool { return inner != 1 }, "/data/blob", "auto"},
		"its server, in the view fuse": {func(inner int) bool { return inner != 1 }, "/data/blob", "fuse"},
		"its supervisor":               {func(inner int) bool { return inner == 1 }, "/data/a.txt", "auto"},
	} {
		t.Run(name, func(t *testing.T) {
			u := onStandWith(t, tools(t), inView(test.view))
			u.load("tiny.tar")
			u.load("thin_tiny.tar")
			want := u.run(stand.Ordinary, test.file)
			u.Site.Withhold(path.Join(stand.Repository, blob)) // else it is fetched ahead
			u.run(stand.Thin, "/data/a.txt")

			waiting := u.start(stand.Thin, test.file)
			plugin := u.plugin()
			before := u.processes(plugin)
			for pid, inner := range before {
				if test.victim(inner) {
					if err := unix.Kill(pid, unix.SIGKILL); err != nil {
						t.Fatal(err)
					}
				}
			}
			u.Site.Withhold("")
			u.eventually("the driver works again", func() error {
				_, err := u.Engine.Docker(t.Context(), "run", "--rm", "--network", "none", stand.Thin, "/data/b.txt")
				return err
			})
			for pid, inner := range u.processes(plugin) {
				if test.victim(inner) && before[pid] != 0 {
					t.Errorf("process %d was not killed", pid)
				}
			}

			got, err := waiting.end()
			if err != nil {
				t.Errorf("the waiting container: %v", err)
			}
			if got != want {
				t.Errorf("the waiting container read %d bytes of %s, want %d", len(got), test.file, len(want))
			}
		})
	}
}
