package fetch

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	mathrand "math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Geo has servers sorted by how near they are to whoever asks for files: the proxy, or without one this host. A server
// knows that (CernVM-FS client, network/download.cc: GeoSortServers). Those of external files need not, as they are
// ordinary web servers: the repository's are asked for them, too (mountpoint.cc: SetupExternalDownloadMgr).
type Geo struct {
	Use      bool
	Template string // who asks, instead of the proxy's name or, without a proxy, a random one
}

const (
	// geoTries is how many servers are asked before the configured order has to do.
	geoTries = 3
	// geoAgain is how soon the order is asked for again where nobody told it.
	geoAgain = 10 * time.Minute
	// geoProxy stands in the request's path for who asks.
	geoProxy = "@proxy@"
	maxGeo   = 4 << 10
)

// sortBy has the servers sorted, where the other Fetcher is to, by what its servers say. Folders neither know that nor
// are anywhere.
func (f *Fetcher) sortBy(locator *Fetcher) {
	f.locator = locator
	folder := func(s *server) bool { return s.file }
	due := int64(0)
	if !locator.cfg.Geo.Use || len(f.all) < 2 || slices.ContainsFunc(f.all, folder) ||
		slices.ContainsFunc(locator.all, folder) {
		due = math.MaxInt64
	}
	f.sortDue.Store(due)
}

// errGeo is a reply that isn't an order.
var errGeo = fmt.Errorf("%w: not an order of the servers", ErrBadData)

// sort puts the servers in the order that a server gives, and leaves those out that are too many. The first request
// waits for it; where it fails, the configured order is used, and the question is repeated after a while.
func (f *Fetcher) sort(ctx context.Context) error {
	select {
	case f.sorting <- struct{}{}:
		defer func() { <-f.sorting }()
	default:
		if f.sorted.Load() {
			return nil // somebody is at it
		}
		select {
		case f.sorting <- struct{}{}:
			defer func() { <-f.sorting }()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if time.Now().UnixNano() < f.sortDue.Load() {
		return nil
	}
	order, err := f.locator.order(ctx, f.all)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		f.sortDue.Store(time.Now().Add(geoAgain).UnixNano())
		f.log.Warn("no geographic order of the servers, using the configured one", slog.Any("err", err))
	default:
		f.sortDue.Store(math.MaxInt64)
	}
	f.arrange(order)
	f.sorted.Store(true)
	return nil
}

// arrange uses the servers in the order given, of indices into all; nil: as they are configured.
func (f *Fetcher) arrange(order []int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	servers := slices.Clone(f.all)
	for i, at := range order {
		servers[i] = f.all[at]
	}
	if most := f.cfg.MaxServers; most > 0 {
		servers = servers[:min(len(servers), most)]
	}
	f.servers = servers
}

// order asks some of the servers, chosen at random, how near those of a list are.
func (f *Fetcher) order(ctx context.Context, list []*server) ([]int, error) {
	if err := f.resolve(ctx); err != nil {
		return nil, err
	}
	var hosts []string
	for _, s := range list {
		hosts = append(hosts, s.base.Hostname())
	}
	path := "api/v1.0/geo/" + geoProxy + "/" + strings.Join(hosts, ",")
	var errs []error
	for _, i := range mathrand.Perm(len(f.all))[:min(len(f.all), geoTries)] {
		var order []int
		w := walk{path: path, only: f.all[i], retries: math.MaxInt}
		err := f.walk(ctx, &w, func(body io.Reader) error {
			b, err := io.ReadAll(io.LimitReader(body, maxGeo))
			if err == nil {
				order, err = parseOrder(b, len(list))
			}
			return err
		})
		if err == nil || ctx.Err() != nil {
			return order, err
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// parseOrder reads a reply such as "2,1,3": each of n servers once, counted from 1.
func parseOrder(reply []byte, n int) ([]int, error) {
	var order []int
	for text := range strings.SplitSeq(string(bytes.TrimSpace(reply)), ",") {
		i, err := strconv.Atoi(text)
		if err != nil || i < 1 || i > n || slices.Contains(order, i-1) {
			return nil, fmt.Errorf("%w: %.40q", errGeo, reply)
		}
		order = append(order, i-1)
	}
	if len(order) != n {
		return nil, fmt.Errorf("%w: %d of %d servers", errGeo, len(order), n)
	}
	return order, nil
}

// asks is who asks for the order on a route.
func (f *Fetcher) asks(p *proxy) string {
	switch {
	case f.cfg.Geo.Template != "":
		return f.cfg.Geo.Template
	case p.direct():
		return f.whoami
	}
	return p.host
}

// randomName is who asks without a proxy: servers take the request's own address where the name isn't known.
func randomName() string { return rand.Text() }
