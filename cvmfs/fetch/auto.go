package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"cvmfs-graphdriver/cvmfs/pac"
	"cvmfs-graphdriver/internal/durable"
)

// Discover is the group of proxies that stands for those that are found by proxy auto-configuration.
const Discover = "auto"

// Auto says how the group Discover is found.
type Auto struct {
	URLs     []string // of scripts: http, https or file; the first that gives proxies counts
	Proxies  string   // what is found, in the notation of CVMFS_HTTP_PROXY; "": what a script says
	NoDirect bool     // DIRECT doesn't count among what is found
	Cache    string   // file that keeps what was found, for when no script can be had; "": none
}

const (
	autoAgain    = time.Hour   // how soon scripts are asked again
	autoMissing  = time.Minute // the same where none gave an answer
	maxAutoCache = 64 << 10
	maxFound     = 64 // proxies that a script may name: each may be waited for
)

// errNoProxy says that nothing was found and nothing else is configured.
var errNoProxy = errors.New("set CVMFS_HTTP_PROXY to the site's proxies, as http://PROXY:3128, or to DIRECT")

// chain returns the groups as they are configured, with what is found now in place of Discover, and how soon that is to
// be found again; 0: never.
func (f *Fetcher) chain(ctx context.Context) (groups [][]*member, again time.Duration) {
	if !f.discovers {
		return f.configured, 0
	}
	found, err := f.discover(ctx)
	again = autoAgain
	if err != nil {
		again = autoMissing
		f.log.Warn("proxy auto-configuration failed", slog.Any("err", err), slog.String("proxies", hidden(found)))
	}
	for _, group := range f.configured {
		if group != nil {
			groups = append(groups, group)
			continue
		}
		groups = append(groups, f.members(found)...)
	}
	if len(groups) == 0 {
		again = failedTTL
		if err == nil {
			err = fmt.Errorf("none of the proxies found can be used: %.200q", hidden(found))
		}
		groups = [][]*member{{{err: fmt.Errorf("%w: %w", err, errNoProxy)}}}
	}
	return groups, again
}

// members reads what was found. A proxy that was found before stays the same, with what is known of it.
func (f *Fetcher) members(found string) (groups [][]*member) {
	members := map[string]*member{}
	for text := range strings.SplitSeq(found, ";") {
		var group []*member
		for spec := range strings.SplitSeq(text, "|") {
			if spec = strings.TrimSpace(spec); spec == "" || spec == "DIRECT" && f.cfg.Auto.NoDirect {
				continue
			}
			m := f.found[spec]
			if m == nil {
				var err error
				if m, err = newMember(spec); err != nil {
					f.log.Warn("proxy auto-configuration: a proxy can't be used", slog.Any("err", err))
					continue
				}
			}
			members[spec] = m
			group = append(group, m)
		}
		if group != nil {
			groups = append(groups, group)
		}
	}
	f.found = members
	return groups
}

// discover returns the proxies that the first script with an answer gives. With an error, they are those that were
// found the last time, if any.
func (f *Fetcher) discover(ctx context.Context) (string, error) {
	auto := f.cfg.Auto
	if auto.Proxies != "" {
		return auto.Proxies, nil
	}
	var errs failures
	for _, at := range auto.URLs {
		found, err := f.evaluated(ctx, at)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", shownURL(at), err))
			continue
		}
		f.log.Info("proxies found", slog.String("script", shownURL(at)), slog.String("proxies", hidden(found)))
		if auto.Cache != "" {
			if err := durable.Replace(auto.Cache, 0o600, []byte(found)); err != nil {
				f.log.Warn("what proxy auto-configuration found can't be kept", slog.Any("err", err))
			}
		}
		return found, nil
	}
	if len(errs) == 0 {
		errs = failures{errors.New("no proxy auto-configuration script is named: set CVMFS_PAC_URLS")}
	}
	return f.foundBefore(), errs
}

// foundBefore is what is kept of former times.
func (f *Fetcher) foundBefore() string {
	if f.cfg.Auto.Cache == "" {
		return ""
	}
	b, err := readFile(f.cfg.Auto.Cache, maxAutoCache)
	if err != nil {
		return "" // there is none
	}
	return string(b)
}

// evaluated gets a script and asks it for the way to each server. The answer for the first one counts, as in the
// CernVM-FS client (wpad.cc), yet each must have one.
func (f *Fetcher) evaluated(ctx context.Context, at string) (string, error) {
	text, err := f.script(ctx, at)
	if err != nil {
		return "", err
	}
	var questions []pac.Question
	for _, s := range f.all {
		u, host := *s.base, s.base.Hostname()
		u.User = nil
		if s.file {
			host = "localhost"
		}
		questions = append(questions, pac.Question{URL: u.String() + "/.cvmfspublished", Host: host})
	}
	answers, err := pac.Script{Text: text, Resolve: f.names.addresses}.Evaluate(ctx, questions)
	if err != nil {
		return "", err
	}
	proxies, skipped := pac.Proxies(answers[0])
	if proxies == "" {
		return "", fmt.Errorf("%w that can be used: %.200q", pac.ErrScript, answers[0])
	}
	if n := strings.Count(strings.ReplaceAll(proxies, "|", ";"), ";"); n >= maxFound || len(proxies) > maxAutoCache {
		return "", fmt.Errorf("%w that can be used: it names %d proxies in %d bytes, and may name %d", pac.ErrScript, n+1,
			len(proxies), maxFound)
	}
	if len(skipped) > 0 {
		f.log.Warn("proxy auto-configuration names what can't be used", slog.String("script", shownURL(at)),
			slog.String("proxies", fmt.Sprintf("%.200q", skipped)))
	}
	return proxies, nil
}

// script gets a script, without a proxy.
func (f *Fetcher) script(ctx context.Context, at string) ([]byte, error) {
	u, err := url.Parse(at)
	if err != nil {
		return nil, cause(err)
	}
	if u.Scheme == "file" {
		return readFile(u.Path, pac.MaxScript)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, f.cfg.TimeoutDirect, errSlow)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, http.NoBody)
	if err != nil {
		return nil, cause(err)
	}
	req.Header.Set("User-Agent", f.cfg.UserAgent)
	client := f.newProxy(&member{}, netip.Addr{}).client
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return nil, cause(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	return readUpTo(resp.Body, pac.MaxScript)
}

func readFile(name string, limit int64) ([]byte, error) {
	file, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a fifo must not hold us
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return readUpTo(file, limit)
}

func readUpTo(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("more than %d bytes", limit)
	}
	return b, err
}

// shownURL is an address as it may be printed.
func shownURL(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return hideCredentials(text)
	}
	return redact(u)
}

// hidden is a chain of proxies as it may be printed.
func hidden(proxies string) string {
	parts := strings.FieldsFunc(proxies, func(r rune) bool { return r == ';' || r == '|' })
	for i, p := range parts {
		if strings.ContainsRune(p, '@') {
			parts[i] = hideCredentials(p)
		}
	}
	return strings.Join(parts, ";")
}
