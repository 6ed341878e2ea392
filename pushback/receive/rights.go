package receive

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

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
	if n := c.node("*"); n != nil && name != "" {
		return n, nil
	}
	return nil, refusef("the node %.100q may send no layers: add it to the configuration's nodes", name)
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
	most := c.Limits.Archive
	if n.Archive > 0 {
		most = min(most, n.Archive)
	}
	switch {
	case r.Size > most:
		return refusef("%d bytes, the limit is %d", r.Size, most)
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

// wait returns how long a layer has to wait for its node to be within its rates; taken are the layers that came before,
// of all nodes.
func (c *Config) wait(r *Record, taken []Record, now time.Time) (time.Duration, string) {
	n, err := c.rights(r.Node)
	if err != nil || n.PerHour == 0 && n.PerDay == 0 {
		return 0, ""
	}
	var hour []time.Time
	var day []Record
	for _, t := range taken {
		if t.Node != r.Node || t.Digest == r.Digest {
			continue
		}
		if now.Sub(t.Since) < time.Hour {
			hour = append(hour, t.Since)
		}
		if now.Sub(t.Since) < 24*time.Hour {
			day = append(day, t)
		}
	}
	slices.SortFunc(hour, time.Time.Compare)
	if n.PerHour > 0 && len(hour) >= n.PerHour {
		return hour[len(hour)-n.PerHour].Add(time.Hour).Sub(now),
			fmt.Sprintf("%s has sent %d layers within an hour", r.Node, len(hour))
	}
	slices.SortFunc(day, func(a, b Record) int { return b.Since.Compare(a.Since) })
	total := r.Size
	for _, t := range day { // the newest first: what has to be a day old before this one is taken is the first too much
		if total += t.Size; n.PerDay > 0 && total > n.PerDay {
			return t.Since.Add(24 * time.Hour).Sub(now), fmt.Sprintf("%s has sent too many bytes within a day", r.Node)
		}
	}
	return 0, ""
}
