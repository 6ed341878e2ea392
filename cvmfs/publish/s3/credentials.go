package s3

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/minio/minio-go/v7/pkg/credentials"
)

// Options are where the rest of an address and the credentials come from.
type Options struct {
	Getenv func(string) string // nil: os.Getenv
	// File is one of credentials as Amazon's tools have it, of mode 0600. "": AWS_SHARED_CREDENTIALS_FILE, then
	// ~/.aws/credentials.
	File string
}

func (o Options) env(names ...string) string {
	get := o.Getenv
	if get == nil {
		get = os.Getenv
	}
	for _, name := range names {
		if value := get(name); value != "" {
			return value
		}
	}
	return ""
}

func (o Options) endpoint() string {
	if e := o.env("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MINIO_ENDPOINT"); e != "" {
		return e
	}
	return "https://s3.amazonaws.com"
}

func (o Options) region() string {
	if r := o.env("AWS_REGION", "AWS_DEFAULT_REGION", "MINIO_REGION"); r != "" {
		return r
	}
	return "us-east-1"
}

// pairs are the variables that hold an access key and its secret.
var pairs = [][2]string{
	{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
	{"MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"},
	{"MINIO_ACCESS_KEY", "MINIO_SECRET_KEY"},
}

// credentials returns those of the environment, else those of the file. Nothing is sent without any.
func (o Options) credentials() (*credentials.Credentials, error) {
	for _, p := range pairs {
		key, secret := o.env(p[0]), o.env(p[1])
		if (key == "") != (secret == "") {
			return nil, fmt.Errorf("of %s and %s one is set: set both, or none", p[0], p[1])
		}
		if key != "" {
			token := ""
			if p == pairs[0] {
				token = o.env("AWS_SESSION_TOKEN")
			}
			return credentials.NewStaticV4(key, secret, token), nil
		}
	}
	return o.fromFile()
}

func (o Options) fromFile() (*credentials.Credentials, error) {
	path := o.File
	if path == "" {
		path = o.env("AWS_SHARED_CREDENTIALS_FILE")
	}
	if path == "" {
		home := o.env("HOME")
		if home == "" {
			return nil, errNone
		}
		path = filepath.Join(home, ".aws", "credentials")
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w (%s is not there)", errNone, path)
	}
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("credentials %s: others than the owner may use it (mode %04o): chmod 0600 it", path,
			info.Mode().Perm())
	}
	c := credentials.NewFileAWSCredentials(path, o.env("AWS_PROFILE"))
	v, err := c.GetWithContext(nil)
	if err != nil || v.AccessKeyID == "" || v.SecretAccessKey == "" {
		// the cause may quote the file
		return nil, fmt.Errorf("credentials %s: no access key and secret for the profile in it", path)
	}
	return c, nil
}

// errNone says that there are no credentials.
var errNone = errors.New(
	"no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a file with AWS_SHARED_CREDENTIALS_FILE",
)
