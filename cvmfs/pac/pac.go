// Package pac finds proxies by proxy auto-configuration: a script, written in JavaScript, whose function
// FindProxyForURL says through which proxy to go to a server. Such scripts come over the network, mostly without
// encryption, from whoever answers first.
//
// So a script can do nothing but answer. It is evaluated by a process of its own, the program itself started again,
// that has no files, no network, no other programs, and little memory and time (sandbox.go), by an interpreter that is
// written in a language without stray pointers. What names mean it asks its parent, a bounded number of times. Where
// that process is killed or ends by itself there is no answer.
package pac

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// Limits of what is taken from a script.
const (
	MaxScript = 1 << 20 // bytes of a script

	maxOutput  = 1 << 20 // bytes of all that the process says
	maxLookups = 64      // names that it may ask for
	maxWait    = 10 * time.Second
	maxSaid    = 1 << 10 // bytes of its errors that are told
)

// ErrScript says that a script gave no answer.
var ErrScript = errors.New("the proxy auto-configuration script gives no answer")

// Question is a file that is to be got, and the host that has it.
type Question struct {
	URL, Host string
}

// Script is a script and what it may know of this host.
type Script struct {
	Text []byte
	// Resolve tells the addresses of a name.
	Resolve func(ctx context.Context, name string) ([]netip.Addr, error)
}

// argument makes a program evaluate a script instead of doing what it's for.
const argument = "evaluate-pac"

// Evaluate returns what the script's FindProxyForURL answers to each question, as it says it. The program must call
// [Main] first of all.
func (s Script) Evaluate(ctx context.Context, questions []Question) ([]string, error) {
	if len(s.Text) > MaxScript {
		return nil, fmt.Errorf("%w: it has more than %d bytes", ErrScript, MaxScript)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, maxWait, fmt.Errorf("%w: not within %v", ErrScript, maxWait))
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", argument)
	cmd.Env = environ()
	said := &bounded{limit: maxSaid}
	cmd.Stderr = said
	cmd.WaitDelay = time.Second
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the process for the proxy auto-configuration script: %w", err)
	}
	answers, err := s.talk(ctx, json.NewEncoder(in), json.NewDecoder(io.LimitReader(out, maxOutput)), questions)
	cancel() // whatever it still does
	ended := cmd.Wait()
	switch {
	case err == nil && len(answers) == len(questions):
		return answers, nil
	case errors.Is(err, ErrScript):
		return nil, err
	case context.Cause(ctx) != nil && !errors.Is(context.Cause(ctx), context.Canceled):
		return nil, context.Cause(ctx)
	}
	line, _, _ := strings.Cut(said.String(), "\n")
	return nil, fmt.Errorf("%w: its process fails: %w: %.200q", ErrScript, errors.Join(ended, err), line)
}

// environ is the environment of the process.
func environ() []string {
	env := []string{"GODEBUG=asyncpreemptoff=1", "GOMAXPROCS=1"}
	if zone, set := os.LookupEnv("TZ"); set { // an empty one is UTC, none is the host's
		env = append(env, "TZ="+zone)
	}
	return env
}

// talk tells the process what to do and answers its questions until it has answered ours.
func (s Script) talk(ctx context.Context, to *json.Encoder, from *json.Decoder,
	questions []Question,
) ([]string, error) {
	// The process may end before it has read all.
	sent := to.Encode(request{Script: s.Text, Questions: questions, Addresses: localAddresses(ctx)})
	for lookups := 0; ; {
		var r reply
		if err := from.Decode(&r); err != nil {
			return nil, errors.Join(sent, err)
		}
		switch {
		case r.Err != "":
			return nil, fmt.Errorf("%w: %.200q", ErrScript, r.Err)
		case r.Name == "":
			return r.Answers, nil
		case lookups == maxLookups:
			return nil, fmt.Errorf("%w: it asks for more than %d names", ErrScript, maxLookups)
		}
		lookups++
		addrs, err := s.Resolve(ctx, r.Name)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			addrs = nil // scripts can only be told that there are none
		}
		if err := to.Encode(addresses(addrs)); err != nil {
			return nil, err
		}
	}
}

// request, reply and addresses are what the process is told, says, and is answered.
type (
	request struct {
		Script    []byte
		Questions []Question
		Addresses addresses // of this host, the one of its way to others first
	}
	reply struct {
		Name    string   // to be resolved
		Answers []string // to the questions
		Err     string   // why there are none
	}
	addresses []netip.Addr
)

// localAddresses returns this host's addresses by which others may know it.
func localAddresses(ctx context.Context) (found addresses) {
	// Nothing is sent: this asks the kernel for the way to the world. The address is one of those for documentation.
	if c, err := new(net.Dialer).DialContext(ctx, "udp4", "192.0.2.1:9"); err == nil {
		if a, ok := c.LocalAddr().(*net.UDPAddr); ok {
			found = append(found, a.AddrPort().Addr().Unmap())
		}
		_ = c.Close() // nothing was sent
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return found
	}
	for _, a := range all {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		ip, _ := netip.AddrFromSlice(n.IP)
		if ip = ip.Unmap(); ip.IsGlobalUnicast() && !slices.Contains(found, ip) {
			found = append(found, ip)
		}
	}
	return found
}

// Proxies turns an answer into the notation of CVMFS_HTTP_PROXY, as the CernVM-FS client does (wpad.cc): each proxy is
// a group of its own, and "" means that the answer has none that can be used. What of it can't be is in skipped.
func Proxies(answer string) (proxies string, skipped []string) {
	if answer == "" {
		return "DIRECT", nil
	}
	var groups []string
	for part := range strings.SplitSeq(answer, ";") {
		part = strings.Join(strings.FieldsFunc(part, func(r rune) bool { return r == ' ' || r == '\t' }), "")
		name, ok := strings.CutPrefix(part, "PROXY")
		switch {
		case part == "":
		case part == "DIRECT", ok && name != "":
			groups = append(groups, name)
		default:
			skipped = append(skipped, part)
		}
	}
	return strings.Join(groups, ";"), skipped
}

// bounded keeps the first bytes of what is written.
type bounded struct {
	bytes.Buffer
	limit int
}

func (b *bounded) Write(p []byte) (int, error) {
	b.Buffer.Write(p[:min(len(p), b.limit-b.Len())])
	return len(p), nil
}
