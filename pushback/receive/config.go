package receive

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"cvmfs-graphdriver/convert"
	"cvmfs-graphdriver/convert/sink"
	"cvmfs-graphdriver/internal/layertar"
)

// Config is what a service works with.
type Config struct {
	Target     string // of layers, as package sink has it
	Repository string // its FQRN, for a target that doesn't say
	Layout     convert.Layout
	State      string // folder of records and archives
	Audit      string // file of the decisions

	Listen      string // HOST:PORT; "": nothing but the bucket
	Certificate string // files of TLS, read again when they are needed; "": none
	Key         string
	PlainHTTP   bool   // tokens and layers may come from other hosts without TLS
	Tokens      string // file of the tokens
	OpenStatus  bool   // a layer's status is told to whoever asks, and the reason of a failure
	Events      string // whose token tells of new objects, besides those of nodes, and does no more; "": no one's
	Metrics     string // whose token reads metrics, as all may, and does no more; "": no one's

	Bucket Bucket
	Limits Limits
	Nodes  []Node // who may send layers; none: all that have a token, or may write to the bucket

	Approval bool          // a person decides on each layer
	GiveUp   time.Duration // a layer that can't be published for so long has failed
	Keep     time.Duration // records of what is decided
	Upload   time.Duration // an upload that nobody goes on with is kept so long

	place sink.Options // where a release manager machine has things elsewhere than usual
}

// Bucket is where a store has layers.
type Bucket struct {
	Address     string        // s3://BUCKET[/PREFIX]?endpoint=URL; "": none
	Credentials string        // file, as Amazon's tools have it; "": the environment
	Poll        time.Duration // between two looks into it
}

// Limits bound what is taken.
type Limits struct {
	Archive int64 // bytes of an archive, as it comes
	Content int64 // bytes of it, uncompressed
	Entries int   // of an archive
	Queue   int   // layers that aren't decided
	Spool   int64 // bytes of archives that are kept
	Uploads int   // at once
}

// Node is what one that sends layers may do.
type Node struct {
	Name     string   // "*" stands for all that have no entry of their own
	Images   []string // patterns of origins: "*" matches any run of characters; none: all
	Prefixes []string // folders of the bucket that nobody else may write to; none: its name in the metadata is believed

	Archive  int64 // bytes of an archive; 0: as for all
	Queue    int   // layers that aren't decided; 0: as for all
	PerHour  int   // layers; 0: any number
	PerDay   int64 // bytes of archives; 0: any number
	Approval bool  // a person decides on each layer
}

const maxConfig = 1 << 20 // bytes

// defaults are what a configuration doesn't say.
func defaults() *Config {
	return &Config{
		State:  "/var/lib/docker2cvmfs-receive",
		Bucket: Bucket{Poll: time.Minute},
		Limits: Limits{
			Archive: 8 << 30, Content: 64 << 30, Entries: 1_000_000, Queue: 256, Spool: 64 << 30, Uploads: 16,
		},
		GiveUp: 24 * time.Hour, Keep: 30 * 24 * time.Hour, Upload: 24 * time.Hour,
	}
}

// ReadFile reads a configuration's file, and tells of all that is wrong with it, with line numbers.
func ReadFile(file string) (*Config, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	c, err := Read(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

// Read reads a configuration.
func Read(r io.Reader) (*Config, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxConfig+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxConfig {
		return nil, fmt.Errorf("more than %d bytes", maxConfig)
	}
	root, err := document(b)
	if err != nil {
		return nil, err
	}
	c, f := defaults(), &faults{}
	c.read(root, f)
	if err := f.err(); err != nil {
		return nil, err
	}
	c.Limits.Archive = min(c.Limits.Archive, c.Limits.Spool) // a larger one would find no place
	c.Audit = cmp.Or(c.Audit, filepath.Join(c.State, "audit.jsonl"))
	return c, c.check()
}

// read reads all keys, and the layout that some of them make.
func (c *Config) read(root *yaml.Node, f *faults) {
	var version int
	var layout, subdirectory string
	f.section(root, []field{
		{"version", "1", func(n *yaml.Node) error {
			if n.Decode(&version) != nil || version != 1 {
				return errWanted
			}
			return nil
		}},
		text("target", &c.Target),
		text("repository", &c.Repository),
		text("layout", &layout),
		text("subdirectory", &subdirectory),
		text("state", &c.State),
		text("audit", &c.Audit),
		text("listen", &c.Listen),
		text("certificate", &c.Certificate),
		text("key", &c.Key),
		yes("plain_http", &c.PlainHTTP),
		text("tokens", &c.Tokens),
		yes("open_status", &c.OpenStatus),
		text("event_sender", &c.Events),
		text("metrics_reader", &c.Metrics),
		{"bucket", "", func(n *yaml.Node) error { c.Bucket.read(n, f); return nil }},
		{"limits", "", func(n *yaml.Node) error { c.Limits.read(n, f); return nil }},
		{"nodes", "a list of nodes", func(n *yaml.Node) error { return c.readNodes(n, f) }},
		yes("approval", &c.Approval),
		pause("give_up_after", &c.GiveUp),
		pause("keep_records", &c.Keep),
		pause("keep_uploads", &c.Upload),
	})
	var err error
	if c.Layout, err = convert.ParseLayout(layout, subdirectory); err != nil {
		f.add(root.Line, "%v", err)
	}
	if version == 0 && len(f.all) == 0 {
		f.add(root.Line, "no version: want version: 1")
	}
}

func (b *Bucket) read(n *yaml.Node, f *faults) {
	f.section(n, []field{
		text("address", &b.Address), text("credentials", &b.Credentials), pause("poll", &b.Poll),
	})
	if b.Address == "" {
		f.add(n.Line, "bucket: no address: want s3://BUCKET?endpoint=https://HOST")
	}
}

func (l *Limits) read(n *yaml.Node, f *faults) {
	f.section(n, []field{
		size("archive", &l.Archive), size("content", &l.Content), count("entries", &l.Entries),
		count("queue", &l.Queue), size("spool", &l.Spool), count("uploads", &l.Uploads),
	})
	if l.Entries > layertar.MaxEntries || l.Content > layertar.MaxBytes {
		f.add(n.Line, "limits: no more than %d entries and %d bytes of content can be converted", layertar.MaxEntries,
			int64(layertar.MaxBytes))
	}
}

func (c *Config) readNodes(list *yaml.Node, f *faults) error {
	if list.Kind != yaml.SequenceNode {
		return errWanted
	}
	for _, n := range list.Content {
		var node Node
		f.section(n, []field{
			text("name", &node.Name), texts("images", &node.Images), texts("prefixes", &node.Prefixes),
			size("archive", &node.Archive), count("queue", &node.Queue),
			count("layers_per_hour", &node.PerHour), size("bytes_per_day", &node.PerDay),
			yes("approval", &node.Approval),
		})
		for i, p := range node.Prefixes {
			node.Prefixes[i] = strings.Trim(p, "/")
		}
		switch {
		case node.Name == "" || strings.ContainsAny(node.Name, " \t\n"):
			f.add(n.Line, "name: want that of a node, without blanks, or *")
		case slices.ContainsFunc(c.Nodes, func(o Node) bool { return o.Name == node.Name }):
			f.add(n.Line, "the node %s is there twice", node.Name)
		case node.Name == anybody && len(node.Prefixes) > 0:
			f.add(n.Line, "prefixes: those of * would be everybody's: give nodes their own")
		}
		for _, p := range node.Prefixes {
			if p == "" || c.owner(p) != "" {
				f.add(n.Line, "prefixes: %.100q is empty, or another node's: want a folder that is one node's own", p)
			}
		}
		c.Nodes = append(c.Nodes, node)
	}
	if len(c.Nodes) == 0 {
		return errors.New("an empty list: nobody could send anything")
	}
	return nil
}

// owner is the node that a folder of the bucket belongs to, whole or in part; "" if it is nobody's.
func (c *Config) owner(prefix string) string {
	for _, n := range c.Nodes {
		for _, p := range n.Prefixes {
			if strings.HasPrefix(prefix+"/", p+"/") || strings.HasPrefix(p+"/", prefix+"/") {
				return n.Name
			}
		}
	}
	return ""
}

// check refuses what doesn't go together.
func (c *Config) check() error {
	var wrong []error
	say := func(when bool, format string, args ...any) {
		if when {
			wrong = append(wrong, fmt.Errorf(format, args...))
		}
	}
	say(c.Target == "" && c.Repository == "", "no target: want native:DIR, cvmfs_server:FQRN or dir:DIR")
	say(c.Listen == "" && c.Bucket.Address == "", "neither listen nor bucket: layers could come by no door")
	say(!filepath.IsAbs(c.State), "state %.100q: want an absolute path", c.State)
	say((c.Certificate == "") != (c.Key == ""), "of certificate and key one is there: give both, or none")
	say(c.Listen != "" && c.Tokens == "", "listen needs tokens: a file with a line NODE TOKEN for each that may send")
	say(c.Events != "" && c.Tokens == "", "event_sender needs tokens")
	say(c.Metrics != "" && c.Tokens == "", "metrics_reader needs tokens")
	if c.Listen == "" {
		return errors.Join(wrong...)
	}
	host, _, err := net.SplitHostPort(c.Listen)
	say(err != nil, "listen %.100q: want HOST:PORT", c.Listen)
	ip := net.ParseIP(host)
	local := host == "localhost" || ip != nil && ip.IsLoopback()
	say(err == nil && !local && c.Certificate == "" && !c.PlainHTTP,
		"listen %s: others could read the tokens: give certificate and key, or allow it by plain_http", c.Listen)
	return errors.Join(wrong...)
}
