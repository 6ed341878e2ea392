package fetch

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/testutil"
)

// squid is a proxy of a row that is Debian's squid.
var squid = party{kind: "squid"}

// squidRows are what sites have: a squid before servers of which the first misbehaves.
var squidRows = []reading{
	{name: "squid, all well", servers: []party{ok, ok}},
	{name: "squid, server closed", servers: []party{closed, ok}},
	{name: "squid;DIRECT, server closed", servers: []party{closed, ok}, proxies: "p;DIRECT"},
	{
		name: "squid, server stalls", servers: []party{bad(testutil.Fault{Silent: true}), ok},
		ours: cost{asked: 1, proxied: 1}, ref: cost{asked: 2, proxied: 2},
	},
	{
		name: "squid;DIRECT, server stalls", servers: []party{bad(testutil.Fault{Silent: true}), ok}, proxies: "p;DIRECT",
		ours: cost{asked: 2, proxied: 1, alone: 1}, ref: cost{asked: 4, proxied: 2, alone: 1},
	},
	{
		name: "squid, server's data stalls", servers: []party{bad(only(data, testutil.Fault{Silent: true})), ok},
		ours: cost{asked: 2, proxied: 1}, ref: cost{asked: 3, proxied: 2},
	},
	{
		name: "squid, server drips", servers: []party{bad(drip), ok},
		ours: cost{asked: 1, proxied: 1}, ref: cost{asked: 2, proxied: 2},
	},
	{
		name: "squid, server truncates data", servers: []party{bad(only(data, testutil.Fault{Cut: 9})), ok},
		ours: cost{asked: 3}, ref: cost{asked: 3},
	},
	{
		name: "squid, server 404 for data", servers: []party{bad(only(data, testutil.Fault{Status: 404})), ok},
		ours: cost{asked: 2}, ref: cost{asked: 2},
	},
	{
		name: "squid, server garbage for data", servers: []party{bad(only(data, garbage)), ok},
		ours: cost{asked: 3}, ref: cost{asked: 3},
	},
	{
		name: "squid, server 503", servers: []party{bad(testutil.Fault{Status: 503}), ok},
		ours: cost{asked: 1}, ref: cost{asked: 1},
	},
	{
		name: "squid, server unresolvable", servers: []party{unknown, ok},
	},
	{
		name: "squid, nobody's well", servers: []party{closed, bad(testutil.Fault{Status: 503})}, fails: true,
		ours: cost{asked: 1}, ref: cost{asked: 1},
	},
}

func TestFailOverThroughASquidCostsNoMoreThanTheReference(t *testing.T) {
	t.Parallel()
	for _, row := range squidRows {
		if row.proxies == "" {
			row.proxies = "p"
		}
		row.via = map[string]party{"p": squid}
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			row.hold(t)
		})
	}
}

// startSquid runs a squid until the test ends and gives its URL.
func startSquid(t testing.TB) string {
	t.Helper()
	cache, err := engine.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	program, err := engine.FindSquid(t.Context(), cache)
	if errors.Is(err, engine.ErrNotFetched) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	addr := testutil.ClosedAddress(t, "127.0.0.1")
	dir := t.TempDir()
	file := filepath.Join(dir, "squid.conf")
	conf := fmt.Sprintf(`http_port %s
http_access allow all
visible_hostname squid.test
cache_effective_user nobody
cache_effective_group nogroup
pid_filename none
cache_log /dev/null
access_log none
netdb_filename none
coredump_dir none
pinger_enable off
unlinkd_program /bin/true
logfile_daemon /bin/true
memory_cache_shared off
mime_table %[2]s/mime.conf
icon_directory %[2]s/icons
error_directory %[2]s/errors/templates
shutdown_lifetime 0 seconds
`, addr, program.Share)
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	var said testutil.Buffer
	cmd := exec.Command(program.Program, "-N", "-d", "1", "-f", file)
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+program.Libraries)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // its helpers, too; it has nothing to lose
		<-ended
	})
	for deadline := time.Now().Add(30 * time.Second); ; {
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
		if err == nil {
			_ = c.Close() // nothing was sent
			return "http://" + addr
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("squid ended: %v: %s", err, said.String())
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("squid doesn't listen: %s", said.String())
		}
	}
}
