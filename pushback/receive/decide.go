package receive

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"cvmfs-graphdriver/internal/durable"
	"cvmfs-graphdriver/pushback/api"
)

// verdict is a person's decision on a layer, left for the service.
type verdict struct {
	Approve bool   `json:"approve"`
	By      string `json:"by"`
	Reason  string `json:"reason,omitempty"`
}

// List returns the records of a service's state, which may be running, in the order in which the layers came.
func List(c *Config) ([]Record, error) {
	records, err := readRecords(c.State)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: no service has run with this configuration", err)
	}
	return sorted(records), err
}

// Archive is the file of a layer's archive while it waits.
func Archive(c *Config, digest string) string { return filepath.Join(c.State, incomingFolder, digest) }

// Decide leaves a person's decision on a layer for the service, which heeds it within seconds, or once it runs, and
// returns what will become of the layer. Approving a layer that was rejected takes that back: it can be sent again.
func Decide(c *Config, digest string, approve bool, by, reason string) (outcome string, err error) {
	digest = strings.TrimPrefix(digest, "sha256:")
	if !api.ValidDigest(digest) {
		return "", fmt.Errorf("layer %.100q: want a digest, 64 lower-case hex digits", digest)
	}
	records, err := readRecords(c.State)
	if err != nil {
		return "", err
	}
	switch r := records[digest]; {
	case r.State == Asking && approve:
		outcome = "it is published next"
	case r.State == Asking:
		outcome = "it is refused"
	case r.State == Rejected && approve:
		outcome = "it may be sent again, and waits for approval then"
	default:
		return "", fmt.Errorf("layer %s doesn't wait for a decision: see docker2cvmfs receive list", digest)
	}
	b, err := json.Marshal(verdict{approve, by, reason})
	if err != nil {
		return "", err
	}
	// read by the service, whose user may be another one; nobody else may enter its state
	file := filepath.Join(c.State, decisionsFolder, digest)
	if err := durable.New(file, 0o644, b); !errors.Is(err, fs.ErrExist) {
		return outcome, err
	}
	var before verdict
	if b, err := os.ReadFile(file); err == nil && json.Unmarshal(b, &before) == nil {
		return "", fmt.Errorf("layer %s was decided on by %s already, which the service is about to heed", digest, before.By)
	}
	return "", fmt.Errorf("layer %s was decided on already, which the service is about to heed", digest)
}

// heed does what people have decided.
func (s *Service) heed() {
	folder := filepath.Join(s.c.State, decisionsFolder)
	entries, err := os.ReadDir(folder)
	s.complain("looking for decisions", "", err)
	for _, e := range entries {
		if api.ValidDigest(e.Name()) {
			s.complain("heeding a decision", e.Name(), s.heedOne(filepath.Join(folder, e.Name()), e.Name()))
		}
	}
}

func (s *Service) heedOne(file, digest string) error {
	release, ok := s.book.claim(digest)
	if !ok {
		return nil
	}
	defer release()
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var v verdict
	if json.Unmarshal(b, &v) == nil { // what isn't understood is nobody's decision
		if err := s.obey(digest, v); err != nil {
			return err
		}
	}
	return durable.Remove(file)
}

func (s *Service) obey(digest string, v verdict) error {
	r, ok := s.book.get(digest)
	switch {
	case ok && r.State == Rejected && v.Approve:
		r.By, r.Reason = v.By, "it may be sent again"
		return s.follows(DecidedApproved, &r, "", func() error { return s.book.drop(digest) })
	case !ok || r.State != Asking:
		return nil
	case v.Approve:
		r.State, r.By, r.Reason = Ready, v.By, ""
		return s.enter(DecidedApproved, &r, "")
	}
	r.State, r.By, r.Reason = Rejected, v.By, strings.TrimSuffix(api.RejectedBy+v.By+": "+v.Reason, ": ")
	return s.enter(DecidedRejected, &r, "") // a poll removes the object
}
