package engine

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// squidWait bounds how long a squid may take to listen.
const squidWait = 30 * time.Second

// squidSettings are those of a squid that leaves nothing behind. It answers everybody, and keeps objects in memory.
const squidSettings = `http_port %[1]s
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
%[3]s
`

// Start runs the squid at an address, with its configuration in a folder and settings besides. It has answered when
// Start returns, and ends with stop.
func (s Squid) Start(ctx context.Context, dir, addr string, settings ...string) (stop func(), err error) {
	file := filepath.Join(dir, "squid.conf")
	text := fmt.Sprintf(squidSettings, addr, s.Share, strings.Join(settings, "\n"))
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return nil, err
	}
	var said bytes.Buffer
	cmd := exec.Command(s.Program, "-N", "-d", "1", "-f", file)
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+s.Libraries)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait() // whoever starts it ends it
	}()
	stop = func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // its helpers, too; it has nothing to lose
		<-ended
	}
	ctx, cancel := context.WithTimeout(ctx, squidWait)
	defer cancel()
	for {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err == nil {
			c.Close() // nothing was sent
			return stop, nil
		}
		select {
		case <-ended:
			return nil, fmt.Errorf("squid ended: %s", said.String())
		case <-ctx.Done():
			stop()
			return nil, fmt.Errorf("squid doesn't listen at %s: %s", addr, said.String())
		case <-time.After(50 * time.Millisecond):
		}
	}
}
