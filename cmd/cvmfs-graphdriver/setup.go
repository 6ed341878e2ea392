package main

import (
	"bufio"
	"cmp"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"aead.dev/minisign"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"cvmfs-graphdriver/bundle"
	"cvmfs-graphdriver/installer"
	"cvmfs-graphdriver/installer/daemonjson"
	"cvmfs-graphdriver/installer/service"
	"cvmfs-graphdriver/internal/program"
)

// packaged is where packages put the bundle.
const packaged = "/usr/share/cvmfs-graphdriver"

// Flags that install, upgrade, uninstall and test have in common.
var (
	hostFlag = &cli.StringFlag{
		Name:  "host",
		Usage: "`SOCKET` of the engine (default: $DOCKER_HOST, or unix:///var/run/docker.sock)",
	}
	nameFlag = &cli.StringFlag{
		Name: "name",
		Usage: "`NAME` of the plugin and of the storage driver (default: the one there is, or " +
			installer.DefaultName + ")",
	}
	fileFlag = &cli.StringFlag{
		Name:  "daemon-json",
		Usage: "the engine's configuration `FILE` (default: the one it runs with, or " + daemonjson.DefaultPath + ")",
	}
	restartFlag = &cli.StringFlag{
		Name:  "restart",
		Usage: "how the engine is restarted: auto, systemd, systemd:UNIT, openrc, sysv, command:`COMMAND` or none",
		Value: "auto",
	}
	yesFlag    = &cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "don't ask before the host is changed"}
	jsonFlag   = &cli.BoolFlag{Name: "json", Usage: "answer for programs; of steps, a line of JSON for each"}
	recordFlag = &cli.StringFlag{
		Name: "record", Usage: "`FILE` that keeps what was changed",
		Value: installer.DefaultRecord,
	}
	bundleFlag = &cli.StringFlag{Name: "bundle", Usage: "plugin bundle, a `FILE` or folder (default: the one in " +
		packaged + " or beside this program)"}
	keyFlag  = &cli.StringFlag{Name: "key", Usage: "public `KEY` (minisign) that must have signed the bundle"}
	testFlag = &cli.StringFlag{Name: "test-image", Usage: "run this ordinary `IMAGE` in place of one made here"}
	thinFlag = &cli.StringFlag{Name: "thin-image", Usage: "run this thin `IMAGE`"}
)

// pluginName is the plugin that is meant, of an engine with a configuration file.
func pluginName(c *cli.Context, engine *installer.Engine, file string) (string, error) {
	if name := c.String(nameFlag.Name); name != "" {
		return name, nil
	}
	return installer.FindName(c.Context, engine, c.String(recordFlag.Name), file)
}

// setup is a command that works on the host's engine.
type setup struct {
	*installer.Installer
	c      *cli.Context
	engine *service.Engine // the process; nil if it doesn't run, or can't be looked at
	file   string          // the engine's configuration file
}

// newSetup makes an installer of a command's flags.
func newSetup(c *cli.Context) (*setup, error) {
	if c.NArg() > 0 {
		return nil, program.Usagef(c, "unknown argument %q", c.Args().First())
	}
	engine, err := installer.Connect(c.String(hostFlag.Name))
	if err != nil {
		return nil, err
	}
	socket, local := strings.CutPrefix(engine.Client().DaemonHost(), "unix://")
	if !local {
		return nil, program.Usagef(c, "the engine at %s is not this host's: run this where it runs",
			engine.Client().DaemonHost())
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	p := newPrinter(c)
	s := &setup{c: c, Installer: &installer.Installer{
		Engine: engine, Record: c.String(recordFlag.Name), Hello: self, Tell: p.tell,
		Ask: func(ctx context.Context, what []string) error { return ask(ctx, c, p, what) },
	}}
	if s.engine, err = service.Find(c.Context, socket); err != nil {
		s.engine = nil
	}
	s.file, s.Log = filesOf(c, s.engine)
	return s, nil
}

// filesOf returns the configuration file of an engine, and the file that its log goes to, "" for none. Of one that
// doesn't run (nil), the record and its unit may tell.
func filesOf(c *cli.Context, engine *service.Engine) (file, log string) {
	file, log = installer.Remembered(c.String(recordFlag.Name))
	if engine != nil {
		file, log = service.ConfigFile(service.ParseFlags(engine.Args)), engine.LogFile
	} else if u, err := service.LoadUnit(c.Context, service.DefaultUnit); err == nil && file == "" {
		file = service.ConfigFile(service.ParseFlags(u.Args))
	}
	return cmp.Or(c.String(fileFlag.Name), file, daemonjson.DefaultPath), log
}

// restarts returns the installer what restarts the engine.
func (s *setup) restarts() (err error) {
	socket := s.Engine.Client().DaemonHost()
	s.Service, err = installer.HostService(s.c.Context, socket, s.c.String(restartFlag.Name), s.Log, s.Tell)
	if err != nil {
		return program.Usagef(s.c, "%v", err)
	}
	return nil
}

// images are those the user wants to see run. The image made here holds this program, which must then be static.
func (s *setup) images() (installer.Images, error) {
	images := installer.Images{Ordinary: s.c.String(testFlag.Name), Thin: s.c.String(thinFlag.Name)}
	if images.Ordinary != "" {
		return images, nil
	}
	f, err := elf.Open(s.Hello)
	if err != nil {
		return images, err
	}
	defer f.Close()
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return images, program.Usagef(s.c,
			"this build of the program can't run in an image made here, as it needs a dynamic loader: name one with --%s, or build with CGO_ENABLED=0", testFlag.Name)
	}
	return images, nil
}

// bundleToInstall opens the bundle that is to be installed, and checks it.
func bundleToInstall(c *cli.Context) (*bundle.Bundle, error) {
	name := c.String(bundleFlag.Name)
	if name == "" {
		var err error
		if name, err = findBundle(); err != nil {
			return nil, program.Usagef(c, "%v", err)
		}
	}
	var key *minisign.PublicKey
	if file := c.String(keyFlag.Name); file != "" {
		read, err := minisign.PublicKeyFromFile(file)
		if err != nil {
			return nil, fmt.Errorf("read the key %s: %w", file, err)
		}
		key = &read
	}
	verified, err := bundle.Verify(name, key)
	if err != nil {
		return nil, err
	}
	if arch := verified.Build.Arch; arch != runtime.GOARCH {
		return nil, fmt.Errorf("the bundle %s is for %s, and this machine is %s", name, arch, runtime.GOARCH)
	}
	return verified.Bundle, nil
}

// findBundle finds the bundle of this program's version, or the only one, where packages put it or beside the program.
func findBundle() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the bundle: %w", err)
	}
	for _, dir := range []string{filepath.Dir(self), packaged} {
		var found []string
		for _, format := range []bundle.Format{bundle.TarGz, bundle.TarZst} {
			pattern := fmt.Sprintf("cvmfs-graphdriver-plugin-*-%s.%s", runtime.GOARCH, format)
			some, err := filepath.Glob(filepath.Join(dir, pattern))
			if err != nil {
				return "", fmt.Errorf("find the bundle in %s: %w", dir, err)
			}
			found = append(found, some...)
		}
		ours := slices.DeleteFunc(slices.Clone(found), func(name string) bool {
			return !strings.HasPrefix(filepath.Base(name), fmt.Sprintf("cvmfs-graphdriver-plugin-%s-%s.", version,
				runtime.GOARCH))
		})
		switch {
		case len(ours) > 0:
			return ours[0], nil
		case len(found) == 1:
			return found[0], nil
		case len(found) > 1:
			return "", fmt.Errorf("several bundles are in %s: name one with --%s", dir, bundleFlag.Name)
		}
	}
	return "", fmt.Errorf("no plugin bundle is in %s or beside this program: name one with --%s", packaged,
		bundleFlag.Name)
}

// ask shows what is to be done, and has it confirmed unless the user has done so already.
func ask(ctx context.Context, c *cli.Context, p *printer, what []string) error {
	yes := c.Bool(yesFlag.Name)
	if !yes && !interactive() {
		return program.Usagef(c, "the host would be changed: %s\nThere is nobody to confirm it: give --%s",
			strings.Join(what, "\n"), yesFlag.Name)
	}
	p.tell(installer.Event{Step: "plan", Outcome: installer.Told, Text: strings.Join(what, "\n")})
	if yes {
		return nil
	}
	fmt.Fprint(c.App.ErrWriter, "Go on? [y/N] ")
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(os.Stdin).ReadString('\n') // an end without an answer is a no
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case said := <-answer:
		if said == "y" || said == "yes" {
			return nil
		}
		return errors.New("not confirmed: nothing was changed")
	case <-ctx.Done():
		return fmt.Errorf("not confirmed: %w; nothing was changed", ctx.Err())
	}
}

// interactive reports whether somebody can be asked.
func interactive() bool { return term.IsTerminal(int(os.Stdin.Fd())) }

// printer shows the steps of a run.
type printer struct {
	out      io.Writer
	json     bool
	terminal bool // a line may be written over
	waits    int  // of the step under way, so far
}

// seldom is how many tidings of a step that waits make a line where lines can't be written over.
const seldom = 5

func newPrinter(c *cli.Context) *printer {
	f, ok := c.App.Writer.(*os.File)
	return &printer{out: c.App.Writer, json: c.Bool(jsonFlag.Name), terminal: ok && term.IsTerminal(int(f.Fd()))}
}

// tell shows an event. What can't be written is lost, as it must not end a run half way.
func (p *printer) tell(e installer.Event) {
	if p.json {
		if e.Outcome != installer.Begins {
			json.NewEncoder(p.out).Encode(e)
		}
		return
	}
	if e.Outcome != installer.Waits {
		p.waits = 0
	} else if p.waits++; !p.terminal && p.waits%seldom != 0 {
		return
	}
	line := fmt.Sprintf("%-15s %-10s", e.Step, e.Outcome)
	if e.Text != "" && e.Outcome != installer.Failed { // of a step that failed the program's last line says why
		line += strings.ReplaceAll(e.Text, "\n", "\n"+strings.Repeat(" ", 26))
	}
	line = strings.TrimRight(line, " ")
	switch {
	case e.Outcome == installer.Waits && p.terminal:
		fmt.Fprint(p.out, "\r\x1b[K", line)
	case e.Outcome != installer.Begins:
		if p.terminal {
			line = "\r\x1b[K" + line
		}
		fmt.Fprintln(p.out, line)
	case p.terminal:
		fmt.Fprintf(p.out, "%-15s …", e.Step)
	}
}
