package publish

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"cvmfs-graphdriver/cvmfs/fqrn"
	"cvmfs-graphdriver/cvmfs/hash"
	"cvmfs-graphdriver/cvmfs/publish/storage"
)

// Settings are what a publisher's folder says of its repository, in DIR/publisher.json. The zero value of a field is
// its default.
type Settings struct {
	FQRN               string `json:"fqrn"`
	Algorithm          string `json:"algorithm"`           // of digests: sha1 (default) or shake128
	Compression        string `json:"compression"`         // of files: zlib (default) or none
	MinChunk           int    `json:"min_chunk"`           // bytes; a larger file may be cut into chunks; AvgChunk/2
	AvgChunk           int    `json:"avg_chunk"`           // 128 KiB
	MaxChunk           int    `json:"max_chunk"`           // 2 AvgChunk
	WholeFile          int    `json:"whole_file"`          // bytes; a file up to this size isn't cut in any case; 1 MiB
	Storage            string `json:"storage,omitempty"`   // "": the folder DIR/www; else an address, as in s3://…
	Keys               string `json:"keys,omitempty"`      // folder of the keys; "": DIR/keys
	AutoTag            *bool  `json:"auto_tag"`            // each revision gets a tag of its time; true
	GarbageCollectable *bool  `json:"garbage_collectable"` // true
	TTL                int    `json:"ttl"`                 // seconds a client may go without looking again; 240
	WhitelistDays      int    `json:"whitelist_days"`      // how long the list of certificates is good for; 30
}

// SettingsFile is the settings' name in a publisher's folder.
const SettingsFile = "publisher.json"

// What ADR 33 decided by measurement.
const (
	defaultChunk = 128 << 10
	defaultWhole = 1 << 20
)

// The bounds of settings. A chunk is in memory while it is made into an object, several at once.
const (
	minChunkSize = 4 << 10
	maxChunkSize = 64 << 20
	maxDays      = 3650
	maxTTL       = 7 * 24 * 3600
	maxSettings  = 1 << 20 // bytes of the file
)

// largestPiece is how many bytes one object may hold that is made in memory.
func (s Settings) largestPiece() int { return max(s.MaxChunk, s.WholeFile) }

// complete puts the defaults in.
func (s Settings) complete() Settings {
	set(&s.Algorithm, hash.SHA1.String())
	set(&s.Compression, hash.Zlib.String())
	set(&s.AvgChunk, defaultChunk)
	set(&s.MinChunk, s.AvgChunk/2)
	set(&s.MaxChunk, 2*s.AvgChunk)
	set(&s.WholeFile, defaultWhole)
	set(&s.TTL, 240)
	set(&s.WhitelistDays, 30)
	yes := true
	set(&s.AutoTag, &yes)
	set(&s.GarbageCollectable, &yes)
	return s
}

func set[T comparable](field *T, standard T) {
	if *field == *new(T) {
		*field = standard
	}
}

// withChunks returns complete settings with another average chunk; 0 leaves them as they are.
func (s Settings) withChunks(average int) Settings {
	if average != 0 {
		s.MinChunk, s.AvgChunk, s.MaxChunk = 0, average, 0
	}
	return s.complete()
}

// check refuses complete settings that don't make a repository.
func (s Settings) check() error {
	if err := fqrn.Check(s.FQRN); err != nil {
		return err
	}
	if _, err := s.algorithm(); err != nil {
		return err
	}
	if _, err := s.compression(); err != nil {
		return err
	}
	switch {
	case s.MinChunk < minChunkSize || s.AvgChunk < s.MinChunk || s.MaxChunk < s.AvgChunk || s.MaxChunk > maxChunkSize:
		return fmt.Errorf("chunk sizes %d, %d, %d: want %d ≤ smallest ≤ average ≤ largest ≤ %d",
			s.MinChunk, s.AvgChunk, s.MaxChunk, minChunkSize, maxChunkSize)
	case s.WholeFile < 0 || s.WholeFile > maxChunkSize:
		return fmt.Errorf("whole_file %d: want 1 to %d bytes", s.WholeFile, maxChunkSize)
	case s.TTL < 1 || s.TTL > maxTTL:
		return fmt.Errorf("ttl %d: want 1 to %d seconds", s.TTL, maxTTL)
	case s.WhitelistDays < 1 || s.WhitelistDays > maxDays:
		return fmt.Errorf("whitelist_days %d: want 1 to %d", s.WhitelistDays, maxDays)
	}
	return nil
}

func (s Settings) algorithm() (hash.Algorithm, error) {
	for _, a := range []hash.Algorithm{hash.SHA1, hash.SHAKE128} {
		if a.String() == s.Algorithm {
			return a, nil
		}
	}
	return 0, fmt.Errorf("algorithm %.40q: want sha1 or shake128", s.Algorithm)
}

func (s Settings) compression() (hash.Compression, error) {
	for _, c := range []hash.Compression{hash.Zlib, hash.None} {
		if c.String() == s.Compression {
			return c, nil
		}
	}
	return 0, fmt.Errorf("compression %.40q: want zlib or none", s.Compression)
}

// ttl is TTL as a duration.
func (s Settings) ttl() time.Duration { return time.Duration(s.TTL) * time.Second }

// ReadSettings reads and checks the settings of a publisher's folder, with defaults in place.
func ReadSettings(dir string) (Settings, error) {
	path := filepath.Join(dir, SettingsFile)
	s, err := parseSettings(path)
	if errors.Is(err, os.ErrNotExist) {
		return s, fmt.Errorf("%s is no publisher's folder: %w: make one with publish create", dir, err)
	}
	if err != nil {
		return s, fmt.Errorf("settings %s: %w", path, err)
	}
	return s, nil
}

func parseSettings(path string) (Settings, error) {
	b, err := readSmall(path, maxSettings)
	if err != nil {
		return Settings{}, err
	}
	in := json.NewDecoder(strings.NewReader(string(b)))
	in.DisallowUnknownFields()
	var s Settings
	if err := in.Decode(&s); err != nil {
		return Settings{}, err
	}
	s = s.complete()
	return s, s.check()
}

// readSmall reads a file of at most limit bytes.
func readSmall(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return storage.ReadBounded(f, limit)
}
