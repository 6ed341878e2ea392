package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cvmfs-graphdriver/internal/child"
	"cvmfs-graphdriver/test/stand"
)

const (
	grownImage = "example/grown:1"
	demoToken  = "a-token-of-the-demonstration"
)

// receive starts the service that publishes layers of commits, and returns what ends it.
func (d *demo) receive() (end func() error, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // for a port that is free
	if err != nil {
		return nil, err
	}
	d.service = l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, err
	}
	config, tokens := filepath.Join(d.dir, "receive.yaml"), filepath.Join(d.dir, "tokens")
	err = errors.Join(
		os.WriteFile(tokens, []byte("demo "+demoToken+"\n"), 0o600),
		os.WriteFile(config, fmt.Appendf(nil, "version: 1\ntarget: native:%s\nlisten: %s\ntokens: %s\nstate: %s\n",
			d.publisher(), d.service, tokens, filepath.Join(d.dir, "receive")), 0o600))
	if err != nil {
		return nil, err
	}
	service := exec.Command(d.converter, "receive", config)
	if err := child.Start(service); err != nil {
		return nil, err
	}
	return func() error { return errors.Join(service.Process.Signal(unix.SIGTERM), service.Wait()) }, nil
}

// pushBack has a container of the thin image add a file, and its commit published, and runs what came of that.
func (d *demo) pushBack(ctx context.Context, s *stand.Stand, engine string) error {
	settings := fmt.Sprintf(`{"CvmfsRepo": %q, "PublishStatusURL": "http://%s/status", "Token": %q, "Wait": "2m"}`,
		repository, d.service, demoToken)
	added := filepath.Join(d.dir, "added")
	if err := errors.Join(os.WriteFile(filepath.Join(s.Config, "config.json"), []byte(settings), 0o600),
		os.WriteFile(added, []byte("what a container adds in "+s.Driver()+"\n"), 0o644)); err != nil {
		return err
	}
	for _, command := range [][]string{
		{"create", "--name", "work", "--network", "none", thinImage},
		{"cp", added, "work:/added"},
		{"commit", "work", grownImage},
		{"rm", "work"},
	} {
		if _, err := s.Engine.Docker(ctx, command...); err != nil {
			return err
		}
	}
	before, begin := s.Site.Count(), time.Now()
	said, err := s.Engine.Docker(ctx, "run", "--rm", "--network", "none", grownImage)
	d.grown = append(d.grown, result{
		engine: engine, driver: s.Driver(), name: grownImage, said: strings.TrimSpace(said), took: time.Since(begin),
		fetch: s.Site.Count().Sub(before),
	})
	return err
}
