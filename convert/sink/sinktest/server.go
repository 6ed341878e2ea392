// Package sinktest is a release manager machine for tests.
package sinktest

import (
	"os"
	"path/filepath"
	"testing"
)

// GoodSettings are those of a repository that loses nothing of a layer.
const GoodSettings = `# made by mkfs
CVMFS_INCLUDE_XATTRS=false
CVMFS_INCLUDE_XATTRS=true
CVMFS_ENABLE_MTIME_NS='true'
CVMFS_IGNORE_XDIR_HARDLINKS="true"
CVMFS_UNION_FS_TYPE=overlayfs
CVMFS_AUTOCATALOGS=true
`

// Server is where things are of a release manager machine, as options of a sink have them.
type Server struct {
	Dir                          string // all of it
	Program, Root, Config, Spool string
}

// NewServer makes a program that behaves as cvmfs_server does, as far as sinks need it, and a repository: it notes how
// it is called in the file "calls", and a transaction copies the repository's folder, which publish keeps and abort
// takes back. With a file "refuse" nothing is published.
func NewServer(t testing.TB, fqrn, settings string) *Server {
	t.Helper()
	dir := t.TempDir()
	s := &Server{
		Dir: dir, Program: filepath.Join(dir, "cvmfs_server"), Root: filepath.Join(dir, "cvmfs"),
		Config: filepath.Join(dir, "repositories.d"), Spool: filepath.Join(dir, "spool"),
	}
	script := `#!/bin/sh
set -e
cd ` + dir + `
echo "$@" >> calls
case "$1" in
transaction) test ! -e spool/$2/in_transaction.lock || { echo "another transaction is open"; exit 1; }
	cp -a cvmfs/$2 open; touch spool/$2/in_transaction.lock;;
publish) test ! -e refuse || { echo "no space left in the spool"; exit 1; }
	echo "CVMFS_ROOT_HASH=$(date +%s%N)" > spool/$2/client.local; rm -rf open spool/$2/in_transaction.lock;;
abort) rm -rf cvmfs/$3; mv open cvmfs/$3; rm -f spool/$3/in_transaction*;;
*) exit 2;;
esac
`
	for name, text := range map[string]string{
		s.Program: script, filepath.Join(s.Config, fqrn, "server.conf"): settings,
		filepath.Join(s.Root, fqrn, "new_repository"): "",
		filepath.Join(s.Spool, fqrn, "client.local"):  "CVMFS_CACHE_BASE=/var/spool\nCVMFS_ROOT_HASH=first\n",
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return s
}
