package service

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What engines of each version log before they end. 20.10 and 26 also run, in TestARealEngine.
func TestTheCauseStandsBeforeTheLastWords(t *testing.T) {
	const unsupported = "failed to start daemon: error initializing graphdriver: driver not supported"
	for _, c := range []struct {
		name string
		log  []string
		want string
	}{
		{
			"20.10, not experimental",
			[]string{
				`time="2026-11-28T08:43:34.286Z" level=info msg="Starting up"`,
				`time="2026-11-28T08:43:35.398Z" level=error msg="Failed to GetDriver graph" driver=thin error="graphdriver plugins are only supported with experimental mode" home-dir=/var/lib/docker`,
				`time="2026-11-28T08:43:35.399Z" level=info msg="[core] Subchannel Connectivity change to SHUTDOWN" module=grpc`,
				unsupported,
			},
			"graphdriver plugins are only supported with experimental mode",
		},
		{
			"26, no plugin",
			[]string{
				`time="2026-11-28T08:43:23.595609406Z" level=warning msg="Unable to locate plugin: thin, retrying in 8s"`,
				`time="2026-11-28T08:43:31.597372060Z" level=error msg="Failed to GetDriver graph" driver=thin error="Error looking up graphdriver plugin thin: plugin \"thin\" not found" home-dir=/tmp/data`,
				`time="2026-11-28T08:43:31.599537605Z" level=info msg="stopping event stream following graceful shutdown" error="context canceled" module=libcontainerd namespace=plugins.moby`,
				unsupported + ": thin",
			},
			`Error looking up graphdriver plugin thin: plugin "thin" not found`,
		},
		{
			"26, a plugin that is disabled, in JSON",
			[]string{
				`{"driver":"thin","error":"Error looking up graphdriver plugin thin: plugin thin found but disabled","home-dir":"/var/lib/docker","level":"error","msg":"Failed to GetDriver graph","time":"2026-11-28T08:43:31.597372060Z"}`,
				unsupported + ": thin",
			},
			"Error looking up graphdriver plugin thin: plugin thin found but disabled",
		},
		{
			"27, without the variable",
			[]string{
				`time="2026-11-28T08:43:31.597372060Z" level=error msg="Failed to GetDriver graph" driver=thin error="DEPRECATED: Experimental graphdriver plugins are deprecated, and disabled by default" home-dir=/var/lib/docker`,
				unsupported + ": thin",
			},
			"DEPRECATED: Experimental graphdriver plugins are deprecated, and disabled by default",
		},
		{
			"28, which has no such plugins: there is no line before",
			[]string{`time="2026-11-28T08:43:31.597372060Z" level=info msg="[graphdriver] trying configured driver: thin"`, unsupported + ": thin"},
			unsupported + ": thin",
		},
		{
			"29",
			[]string{`failed to start daemon: configured driver "thin" not available: unavailable`},
			`failed to start daemon: configured driver "thin" not available: unavailable`,
		},
		{
			"an option",
			[]string{"failed to start daemon: error initializing graphdriver: overlay2: unknown option cvmfs.view: overlay2"},
			"failed to start daemon: error initializing graphdriver: overlay2: unknown option cvmfs.view: overlay2",
		},
		{
			"the configuration",
			[]string{"unable to configure the Docker daemon with file /etc/docker/daemon.json: invalid character '/' looking for beginning of value"},
			"unable to configure the Docker daemon with file /etc/docker/daemon.json: invalid character '/' looking for beginning of value",
		},
		{
			"what systemd says after it, and its dates",
			[]string{
				`Nov 28 08:43:31 host dockerd[12]: time="2026-11-28T08:43:31.597372060Z" level=error msg="Failed to GetDriver graph" driver=thin error="no" home-dir=/x`,
				"Nov 28 08:43:31 host dockerd[12]: " + unsupported,
				"Nov 28 08:43:31 host systemd[1]: docker.service: Main process exited, code=exited, status=1/FAILURE",
				"Nov 28 08:43:31 host systemd[1]: docker.service: Start request repeated too quickly.",
			},
			"no",
		},
		{
			"the last of several starts",
			[]string{
				`time="2026-11-28T08:43:30Z" level=info msg="Starting up"`,
				`time="2026-11-28T08:43:31Z" level=error msg="Failed to GetDriver graph" driver=thin error="old"`,
				unsupported,
				`time="2026-11-28T08:43:32Z" level=info msg="Starting up"`,
				`time="2026-11-28T08:43:33Z" level=error msg="Failed to GetDriver graph" driver=thin error="new"`,
				unsupported,
			},
			"new",
		},
		{
			"a fatal line of a library",
			[]string{`time="2026-11-28T08:43:30Z" level=fatal msg="unable to bind" error="address already in use"`},
			"unable to bind: address already in use",
		},
		{
			"a panic",
			[]string{"panic: runtime error: index out of range", "", "goroutine 1 [running]:"},
			"panic: runtime error: index out of range",
		},
		{
			"an engine that runs after one that didn't",
			[]string{
				unsupported, `time="2026-11-28T08:43:32Z" level=info msg="Starting up"`,
				`time="2026-11-28T08:43:33Z" level=info msg="API listen on /run/docker.sock"`,
			},
			"",
		},
		{
			"a container's trouble",
			[]string{`time="2026-11-28T08:43:32Z" level=error msg="Handler for POST /containers/x/start returned error: failed to start daemon: no"`},
			"",
		},
		{"nothing", nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			log := strings.Join(c.log, "\n")
			if got := Cause(log); got != c.want {
				t.Errorf("the cause is %q, want %q", got, c.want)
			}
			if gaveUp(log) != (c.want != "") {
				t.Errorf("gave up: %t", gaveUp(log))
			}
		})
	}
}

func FuzzCause(f *testing.F) {
	f.Add("time=\"2026-11-28T08:43:31Z\" level=error msg=\"Failed to GetDriver graph\" error=\"a \\\"b\\\"\"\nfailed to start daemon: x graphdriver")
	f.Add("{\"level\":\"fatal\",\"msg\":\"x\",\"error\":7}")
	f.Add("time=")
	f.Fuzz(func(t *testing.T, log string) {
		if cause := Cause(log); strings.ContainsAny(cause, "\r\n") || len(cause) > maxCause+len("…") {
			t.Errorf("%q has the cause %q", log, cause)
		}
	})
}

// A start that failed is found where the host has the engine's log: in a file that is named, or among other programs'
// lines.
func TestTheLogOfAnEngineThatDoesNotRunIsFound(t *testing.T) {
	const why = `level=error msg="Failed to GetDriver graph" driver=x error="plugin \"x\" not found" storage-driver=x`
	at := "time=\"" + time.Now().UTC().Format(time.RFC3339Nano) + "\" "
	lines := []string{
		at + `level=info msg="Starting up"`, at + why,
		"failed to start daemon: error initializing graphdriver: driver not supported",
	}
	system := "Jan  1 10:00:00 host kernel: panic: of another's\n"
	for _, line := range lines {
		system += "Jan  1 10:00:01 host dockerd[12]: " + line + "\n"
	}
	system += "Jan  1 10:00:02 host other[13]: fatal error: another's\n"
	none, own, syslog := filepath.Join(t.TempDir(), "none"), filepath.Join(t.TempDir(), "own"),
		filepath.Join(t.TempDir(), "syslog")
	if err := errors.Join(os.WriteFile(own, []byte(strings.Join(lines, "\n")+"\n"), 0o600),
		os.WriteFile(syslog, []byte(system), 0o600)); err != nil {
		t.Fatal(err)
	}
	defer func(files []string) { usualLogs = files }(usualLogs)
	for _, c := range []struct {
		named string
		usual []string
		where string
	}{{own, nil, own}, {none, []string{none, syslog}, syslog}, {"", []string{syslog}, syslog}} {
		usualLogs = c.usual
		log, where := FindLog(t.Context(), nil, c.named, time.Now().Add(-time.Hour))
		if cause := Cause(log); where != c.where || !strings.Contains(cause, `plugin "x" not found`) ||
			strings.Contains(log, "another's") {
			t.Errorf("%+v: in %s: %q, of\n%s", c, where, cause, log)
		}
	}
}
