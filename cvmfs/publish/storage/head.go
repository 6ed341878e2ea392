package storage

import (
	"context"
	"errors"
	"time"

	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/manifest"
	"cvmfs-graphdriver/cvmfs/trust"
)

// MaxCertificate is the most plain bytes of a certificate.
const MaxCertificate = 64 << 10

// ReadHead returns the newest revision's manifest, verified as clients do it. Where all that is amiss is that the
// whitelist expired, it returns the manifest and the error, trust.ErrExpired.
func ReadHead(ctx context.Context, from Reader, policy trust.Policy) (*trust.Trusted, error) {
	letter, err := ReadFile(ctx, from, manifest.FileName, manifest.MaxSize)
	if err != nil {
		return nil, err
	}
	head, err := policy.Verify(ctx, letter, source{from})
	if !errors.Is(err, trust.ErrExpired) {
		return head, err
	}
	policy.Now = time.Time{} // before all whitelists
	head, other := policy.Verify(ctx, letter, source{from})
	if other != nil {
		return nil, other
	}
	return head, err
}

// ReadWhitelist returns the whitelist, which isn't verified.
func ReadWhitelist(ctx context.Context, from Reader) ([]byte, error) {
	return ReadFile(ctx, from, trust.WhitelistFile, trust.MaxLetter)
}

// source gets what belongs to a manifest.
type source struct{ from Reader }

func (s source) Certificate(ctx context.Context, d hash.Digest) ([]byte, error) {
	return ReadObject(ctx, s.from, d, hash.Certificate, hash.Zlib, MaxCertificate)
}

func (s source) Whitelist(ctx context.Context) ([]byte, error) { return ReadWhitelist(ctx, s.from) }
