package fetch

import (
	"errors"
	"testing"

	"cvmfs-graphdriver/test/engine"
	"cvmfs-graphdriver/test/testutil"
)

// squid is a proxy of a row that is Debian's squid.
var squid = party{kind: "squid"}

// squidRows are what sites have: a squid before servers of which the first misbehaves.
var squidRows = []reading{
	{name: "squid, all well", servers: []party{ok, ok}},
	{name: "squid, server closed", servers: []party{closed, ok}},
	{name: "squid;DIRECT, server closed", servers: []party{closed, ok}, proxies: "p;DIRECT"},
	{
		name: "squid, server stalls", servers: []party{bad(testutil.Fault{Silent: true}), ok},
		ours: cost{asked: 1, proxied: 1}, ref: cost{asked: 2, proxied: 2},
	},
	{
		name: "squid;DIRECT, server stalls", servers: []party{bad(testutil.Fault{Silent: true}), ok}, proxies: "p;DIRECT",
		ours: cost{asked: 2, proxied: 1, alone: 1}, ref: cost{asked: 4, proxied: 2, alone: 1},
	},
	{
		name: "squid, server's data stalls", servers: []party{bad(only(data, testutil.Fault{Silent: true})), ok},
		ours: cost{asked: 2, proxied: 1}, ref: cost{asked: 3, proxied: 2},
	},
	{
		name: "squid, server drips", servers: []party{bad(drip), ok},
		ours: cost{asked: 1, proxied: 1}, ref: cost{asked: 2, proxied: 2},
	},
	{
		name: "squid, server truncates data", servers: []party{bad(only(data, testutil.Fault{Cut: 9})), ok},
		ours: cost{asked: 3}, ref: cost{asked: 3},
	},
	{
		name: "squid, server 404 for data", servers: []party{bad(only(data, testutil.Fault{Status: 404})), ok},
		ours: cost{asked: 2}, ref: cost{asked: 2},
	},
	{
		name: "squid, server garbage for data", servers: []party{bad(only(data, garbage)), ok},
		ours: cost{asked: 3}, ref: cost{asked: 3},
	},
	{
		name: "squid, server 503", servers: []party{bad(testutil.Fault{Status: 503}), ok},
		ours: cost{asked: 1}, ref: cost{asked: 1},
	},
	{
		name: "squid, server unresolvable", servers: []party{unknown, ok},
	},
	{
		name: "squid, nobody's well", servers: []party{closed, bad(testutil.Fault{Status: 503})}, fails: true,
		ours: cost{asked: 1}, ref: cost{asked: 1},
	},
}

func TestFailOverThroughASquidCostsNoMoreThanTheReference(t *testing.T) {
	t.Parallel()
	for _, row := range squidRows {
		if row.proxies == "" {
			row.proxies = "p"
		}
		row.via = map[string]party{"p": squid}
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			row.hold(t)
		})
	}
}

// startSquid runs a squid until the test ends and gives its URL.
func startSquid(t testing.TB) string {
	t.Helper()
	cache, err := engine.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	program, err := engine.FindSquid(t.Context(), cache)
	if errors.Is(err, engine.ErrNotFetched) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	addr := testutil.ClosedAddress(t, "127.0.0.1")
	stop, err := program.Start(t.Context(), t.TempDir(), addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return "http://" + addr
}
