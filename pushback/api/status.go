package api

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode"
)

// Status is what became of a layer.
type Status string

// What a service says of a layer. Publishing is also what waits for its turn, or for a person's approval.
const (
	Unknown    Status = "unknown"    // the service knows nothing of it, or not yet
	Publishing Status = "publishing" // it will be done, or fail
	Done       Status = "done"       // it is in the repository, for good
	Failed     Status = "failed"     // it won't be published; Reason says why
)

// Answer is a layer's status with all that a service says of it.
type Answer struct {
	Status   Status `json:"status"`
	Digest   string `json:"digest"`
	DiffID   string `json:"diff_id,omitempty"`  // where it is known
	Size     int64  `json:"size,omitempty"`     // bytes of the archive, where they are known
	URL      string `json:"url,omitempty"`      // "cvmfs://FQRN/PATH": where the layer is, when it is done
	Revision uint64 `json:"revision,omitempty"` // of the repository that has the layer; 0 where it isn't known
	Reason   string `json:"reason,omitempty"`   // why it failed, or what it waits for

	Since time.Time `json:"since,omitzero"` // when the layer came, by the service's clock: another one if it comes again

	Repository string `json:"repository,omitempty"` // FQRN that layers are published in; to who has a token
	Refusal    string `json:"refusal,omitempty"`    // why the service takes no layers from who asks, where it doesn't

	Plain bool `json:"-"` // it came as text, as a service of 2017 says it
}

// Text is the answer as of 2017, "failed" being newer: a word, behind that of a failure the reason, on one line.
func (a *Answer) Text() string {
	if a.Status != Failed {
		return string(a.Status)
	}
	return string(Failed) + ": " + strings.Join(strings.Fields(a.Reason), " ")
}

// RejectedBy begins the reason of a layer that a person has decided against. Sending it again is of no use.
const RejectedBy = "rejected by "

var digestForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// ValidDigest reports whether a text is a digest, or a diffID: 64 lower-case hex digits.
func ValidDigest(text string) bool { return digestForm.MatchString(text) }

// ParseText reads a status that came as text.
func ParseText(digest, text string) (*Answer, error) {
	word, reason, _ := strings.Cut(strings.TrimSpace(text), ":")
	a := &Answer{
		Status: Status(strings.TrimSpace(word)), Digest: digest, Reason: strings.TrimSpace(reason), Plain: true,
	}
	if a.Status != Failed && a.Reason != "" {
		return nil, fmt.Errorf("status %.100q is none that is known", text)
	}
	return a, a.check(digest)
}

// ParseJSON reads the answer to a question for a layer's status.
func ParseJSON(digest string, b []byte) (*Answer, error) {
	a := &Answer{}
	if err := json.Unmarshal(b, a); err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	return a, a.check(digest)
}

// maxReason is how much of a reason is told, in bytes.
const maxReason = 1000

// readable is a reason as people may be shown it: one line that gives a terminal no orders.
func readable(reason string) string {
	clean := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, reason[:min(len(reason), maxReason)])
	return strings.ToValidUTF8(strings.TrimSpace(clean), "")
}

func (a *Answer) check(digest string) error {
	a.Reason, a.Refusal = readable(a.Reason), readable(a.Refusal)
	switch {
	case a.Status != Unknown && a.Status != Publishing && a.Status != Done && a.Status != Failed:
		return fmt.Errorf("status %.100q is none that is known", a.Status)
	case a.Digest != digest:
		return fmt.Errorf("the status of %.80q was answered for that of %s", a.Digest, digest)
	case a.DiffID != "" && !ValidDigest(a.DiffID):
		return fmt.Errorf("status: diffID %.80q: want 64 lower-case hex digits", a.DiffID)
	}
	return nil
}
