package record

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"cvmfs-graphdriver/cvmfs/publish"
)

// Publisher serves the repository of a publisher's folder on this host's loopback, and makes a folder of configuration
// that is the host's but for that repository, whose files come from there. stop ends both.
func Publisher(ctx context.Context, r *publish.Repository, host string) (configuration string, stop func() error,
	err error,
) {
	dir, remove, err := scratch(os.TempDir())
	if err != nil {
		return "", nil, err
	}
	files, err := publish.NewServer(r)
	if err != nil {
		return "", nil, errors.Join(err, remove())
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, errors.Join(err, files.Close(), remove())
	}
	serving, end := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- files.Serve(serving, listener) }()
	stop = func() error {
		end()
		return errors.Join(<-ended, files.Close(), remove())
	}
	url := fmt.Sprintf("http://%s/cvmfs/%s", listener.Addr(), r.FQRN())
	if err := configure(dir, host, r.FQRN(), url, r.MasterKeyFile()); err != nil {
		return "", nil, errors.Join(err, stop())
	}
	return dir, stop, nil
}

// configure makes a folder of configuration out of the host's, and says where a repository is. The host's need not be
// there.
func configure(dir, host, fqrn, url, key string) error {
	for _, sub := range []string{"", "config.d"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
		entries, err := os.ReadDir(filepath.Join(host, sub))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			name := filepath.Join(sub, e.Name())
			if name == "config.d" || sub != "" && (e.Name() == fqrn+".conf" || e.Name() == fqrn+".local") {
				continue
			}
			target, err := filepath.Abs(filepath.Join(host, name))
			if err == nil {
				err = os.Symlink(target, filepath.Join(dir, name))
			}
			if err != nil {
				return err
			}
		}
	}
	key, err := filepath.Abs(key)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "config.d", fqrn+".conf"), fmt.Appendf(nil,
		"CVMFS_SERVER_URL='%s'\nCVMFS_HTTP_PROXY=DIRECT\nCVMFS_PUBLIC_KEY='%s'\nCVMFS_USE_GEOAPI=no\n", url, key), 0o644)
}
