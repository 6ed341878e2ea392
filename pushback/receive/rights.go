package receive

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// anybody is the name of the entry for all nodes that have none, and of senders without a name.
const anybody = "*"

// errRefused refuses a layer for good: the same one isn't taken later, either, unless the configuration changes.
var errRefused = errors.New("refused")

func refusef(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errRefused, fmt.Errorf(format, args...))
}

// rights returns what a node may do; everything within the limits where no nodes are configured. Who tells of objects
// or reads metrics sends layers only where it is configured as a node, too: stores and monitoring keep their tokens
// where more people read them.
func (c *Config) rights(name string) (*Node, error) {
	if n := c.node(name); n != nil && name != "" {
		return n, nil
	}
	switch {
	case name != "" && name == c.Events:
		return nil, refusef("the token of %s, the event_sender, may only tell of new objects", name)
	case name != "" && name == c.Metrics:
		return nil, refusef("the token of %s, the metrics_reader, may send no layers", name)
	case len(c.Nodes) == 0:
		return &Node{Name: name}, nil
	}
	if n := c.node(anybody); n != nil && name != "" {
		return n, nil
	}
	return nil, refusef("the node %.100q may send no layers: add it to the configuration's nodes", name)
}

// origin is who answers for a layer: of an object the node whose folder it lies in, or else whoever may write there;
// otherwise the node, if it isn't only claimed to be that one; "" is nobody in particular.
func (c *Config) origin(r *Record) string {
	folder := folderOf(r.Key)
	if owner := c.owner(folder); folder != "" && owner != "" {
		return owner
	}
	if first, _, _ := strings.Cut(folder, "/"); first != "" {
		return first + "/"
	}
	if r.Key == "" || len(c.Nodes) == 0 || c.node(r.Node) != nil {
		return r.Node
	}
	return ""
}

// node is the entry of a name; nil if there is none.
func (c *Config) node(name string) *Node {
	if at := slices.IndexFunc(c.Nodes, func(n Node) bool { return n.Name == name }); at >= 0 {
		return &c.Nodes[at]
	}
	return nil
}

// sender returns which node an object of the bucket comes from: the one whose folder it lies in, whatever its metadata
// claims. folder is the key's, below the prefix of all.
func (c *Config) sender(folder, claimed string) (string, error) {
	for _, n := range c.Nodes {
		if slices.ContainsFunc(n.Prefixes, func(p string) bool { return strings.HasPrefix(folder+"/", p+"/") }) {
			return n.Name, nil
		}
	}
	if len(c.Nodes) == 0 {
		return claimed, nil
	}
	if claimed == "" && c.node(anybody) != nil {
		claimed = anybody // a node of 2017, or somebody else's tool
	}
	n, err := c.rights(claimed)
	if err == nil && len(n.Prefixes) > 0 {
		err = refusef("%s has folders of its own: it doesn't lie in one", n.Name)
	}
	return claimed, err
}

// admit refuses a layer that its node may not send.
func (c *Config) admit(r *Record) error {
	n, err := c.rights(r.Node)
	if err != nil {
		return err
	}
	most, key := c.Limits.Archive, "limits.archive"
	if n.Archive > 0 && n.Archive < most {
		most, key = n.Archive, "the node's archive"
	}
	switch {
	case r.Size > most:
		return refusef("%d bytes, the limit is %d (%s)", r.Size, most, key)
	case n.PerDay > 0 && r.Size > n.PerDay:
		return refusef("%d bytes, of which %s may send %d within a day", r.Size, r.Node, n.PerDay)
	case len(n.Images) > 0 && r.Image == "":
		return refusef("it isn't said which image it is of, and the node %s may only send layers of %s", r.Node,
			strings.Join(n.Images, ", "))
	case len(n.Images) > 0 && !slices.ContainsFunc(n.Images, func(p string) bool { return matches(p, r.Image) }):
		return refusef("the node %s may send no layers of the image %.200q", r.Node, r.Image)
	}
	return nil
}

// approval reports whether a person decides on a layer.
func (c *Config) approval(r *Record) bool {
	n, err := c.rights(r.Node)
	return c.Approval || err == nil && n.Approval
}

// matches reports whether a text fits a pattern, whose stars stand for any run of characters.
func matches(pattern, text string) bool {
	head, rest, star := strings.Cut(pattern, "*")
	text, ok := strings.CutPrefix(text, head)
	if !star || !ok {
		return ok && text == ""
	}
	for {
		part, after, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(text, part)
		}
		at := strings.Index(text, part)
		if at < 0 {
			return false
		}
		text, rest = text[at+len(part):], after
	}
}

// sent is what nodes have sent within a day: of each node in order, what came within a minute together.
type sent map[string][]sending

type sending struct {
	at     time.Time // of the last
	layers int
	bytes  int64
}

const (
	sentTogether = time.Minute
	sentFor      = 24 * time.Hour
)

// sentBefore is what records tell, which are in the order in which the layers came. Of a layer that came several times
// they tell the last.
func sentBefore(records []Record) sent {
	s := sent{}
	now := time.Now()
	for _, r := range records {
		if r.Since.After(now) { // by a clock that was ahead
			r.Since = now
		}
		s.add(r.Node, r.Size, r.Since)
	}
	return s
}

// add adds a layer, and forgets what is old.
func (s sent) add(node string, size int64, at time.Time) {
	all := slices.DeleteFunc(s[node], func(o sending) bool { return at.Sub(o.at) >= sentFor })
	if last := len(all) - 1; last >= 0 && at.Truncate(sentTogether).Equal(all[last].at.Truncate(sentTogether)) {
		all[last] = sending{at, all[last].layers + 1, all[last].bytes + size}
	} else {
		all = append(all, sending{at, 1, size})
	}
	s[node] = all
}

// forget drops nodes that have sent nothing for so long: anybody who may write to the bucket may claim any name.
func (s sent) forget(now time.Time) {
	maps.DeleteFunc(s, func(_ string, all []sending) bool {
		for i := range all {
			if all[i].at.After(now) { // by a clock that was ahead
				all[i].at = now
			}
		}
		return now.Sub(all[len(all)-1].at) >= sentFor
	})
}

// of is what a node has sent.
func (s sent) of(node string) []sending { return s[node] }

// within is how many layers a node has sent in a while up to now.
func (s sent) within(while time.Duration, node string, now time.Time) (layers int) {
	for _, o := range s[node] {
		if now.Sub(o.at) < while {
			layers += o.layers
		}
	}
	return layers
}

// wait returns how long a layer has to wait for its node to be within its rates, and why; before is what the node has
// sent.
func (c *Config) wait(r *Record, before []sending, now time.Time) (time.Duration, string) {
	n, err := c.rights(r.Node)
	if err != nil || n.PerHour == 0 && n.PerDay == 0 {
		return 0, ""
	}
	layers, bytes := 0, r.Size
	for _, b := range slices.Backward(before) { // the newest first: what has to be old enough is the first too much
		age := max(0, now.Sub(b.at))
		if layers += b.layers; n.PerHour > 0 && layers >= n.PerHour && age < time.Hour {
			return time.Hour - age, fmt.Sprintf("%s has sent %d layers within an hour", r.Node, layers)
		}
		if bytes += b.bytes; n.PerDay > 0 && bytes > n.PerDay && age < sentFor {
			return sentFor - age, fmt.Sprintf("%s has sent too many bytes within a day", r.Node)
		}
	}
	return 0, ""
}
